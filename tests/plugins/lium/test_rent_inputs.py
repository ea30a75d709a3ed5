"""Templates and volumes on the emulator; what it does not have (slow and failed checks) from a stand-in of the API."""

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from lium import Config, Lium
from lium.sdk.exceptions import LiumError

from plugins.errors import ControlPlaneError, UserError
from plugins.lium.boundary import boundary
from plugins.lium.rent_inputs import (
    image_reference,
    refuse_held_volume,
    template_for_image,
    volume_holder,
    volume_id,
)

DIGEST = "sha256:" + "0123456789abcdef" * 4
MAKE = "POST /api/templates"


def ask(what: str, call: Callable[[], Any]) -> Any:
    with boundary(what):
        return call()


def no_sleep(pause_s: float) -> None:
    raise AssertionError(f"nothing is to be waited for, not {pause_s} s")


def client(url: str, key: str = "key", ssh_key: Path | None = None) -> Lium:
    return Lium(Config(api_key=key, base_url=url, ssh_key_path=ssh_key))


def renting_client(world) -> Lium:
    return client(world.settings.base_url, world.settings.api_key, world.settings.ssh_key_path)


class TemplateServer:
    """`/users/me`, `/templates` and `/pods` of one account; `turn` is called before every listing of templates."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.pods: list[dict] = []
        self.listings = 0
        self.turn: Callable[[int], None] = lambda _: None
        self.first_status = "VERIFY_PENDING"
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/api/templates":
                    stand_in.listings += 1
                    stand_in.turn(stand_in.listings)
                self.answer({"/api/users/me": {"id": "me"}, "/api/pods": stand_in.pods}.get(self.path, stand_in.rows))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.answer(stand_in.add(body["name"], stand_in.first_status))

            def answer(self, content: object) -> None:
                text = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.lium = client(f"http://127.0.0.1:{self._server.server_port}/api")
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def add(self, name: str, status: str, created_at: str = "2026-05-05T00:00:00Z", row_id: str = "") -> dict:
        row = {"id": row_id or str(uuid.uuid4()), "name": name, "status": status, "user_id": "me"}
        self.rows.append(row | {"created_at": created_at})
        return row

    def set_status(self, status: str) -> None:
        for row in self.rows:
            row["status"] = status

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TemplateServer]:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = TemplateServer()
    yield made
    made.close()


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "repository", "tag", "digest"),
    [
        ("example/trainer:1", "example/trainer", "1", ""),
        ("trainer", "trainer", "latest", ""),
        ("localhost:5000/a/b", "localhost:5000/a/b", "latest", ""),
        ("ghcr.io/a/b_c:v1.2-x", "ghcr.io/a/b_c", "v1.2-x", ""),
        (f"ghcr.io/a/b@{DIGEST}", "ghcr.io/a/b", "", DIGEST),
        (f"a/b:1@{DIGEST}", "a/b", "1", DIGEST),
    ],
)
def test_an_image_is_split_into_repository_tag_and_digest(image, repository, tag, digest) -> None:
    read = image_reference(image)
    assert (read.repository, read.tag, read.digest) == (repository, tag, digest)


@pytest.mark.parametrize("image", ["", "A/B:1", "a b", "a:", "a@sha256:12", "a/b@latest", "https://x/y", "a:1\n"])
def test_what_is_no_image_is_refused_before_anything_is_made(server: TemplateServer, image: str) -> None:
    with pytest.raises(UserError, match="is not the name of an image: write repository:tag"):
        template_for_image(server.lium, ask, image)
    assert (server.rows, server.listings) == ([], 0)


def test_every_reference_has_a_name_of_its_own_that_can_be_read() -> None:
    names = [image_reference(image).template_name for image in ("a/b:1", "a/b:2", "c/b:1", f"a/b@{DIGEST}")]
    assert len(set(names)) == 4 and all(name.startswith("ts-") and name.endswith("-b") for name in names)
    assert image_reference("a/b").template_name == image_reference("a/b:latest").template_name
    assert len(image_reference("x/" + "y" * 200).template_name) <= 64


# -- templates --------------------------------------------------------------------------------------------------------


def test_a_template_is_made_once_and_used_by_every_run_with_the_image(world) -> None:
    notes: list[str] = []
    lium = renting_client(world)
    first = template_for_image(lium, ask, "example/trainer:1", sleep=no_sleep, note=notes.append)
    again = template_for_image(client(world.settings.base_url, world.settings.api_key), ask, "example/trainer:1")
    assert first == again
    assert template_for_image(lium, ask, "example/trainer:2", sleep=no_sleep) != first
    assert world.calls().count(MAKE) == 2
    assert len(notes) == 1 and "example/trainer:1" in notes[0]


def test_the_template_is_private_kept_and_names_tag_or_digest(world) -> None:
    lium = renting_client(world)
    ids = [template_for_image(lium, ask, image) for image in ("example/trainer:7", f"example/trainer@{DIGEST}")]
    rows = {row["id"]: row for row in lium._request("GET", "/templates").json()}
    tagged, digested = (rows[template_id] for template_id in ids)
    for row in (tagged, digested):
        assert (row["docker_image"], row["is_private"], row["one_time_template"]) == ("example/trainer", True, False)
    assert (tagged["docker_image_tag"], tagged["docker_image_digest"]) == ("7", "")
    assert (digested["docker_image_tag"], digested["docker_image_digest"]) == ("", DIGEST)


def test_an_image_with_neither_tag_nor_digest_is_latest_and_says_so(world) -> None:
    notes: list[str] = []
    lium = renting_client(world)
    found = template_for_image(lium, ask, "example/trainer", note=notes.append)
    assert any("example/trainer:latest is taken" in line for line in notes)
    assert template_for_image(lium, ask, "example/trainer:latest") == found


def test_a_public_template_of_the_name_is_not_taken(server: TemplateServer) -> None:
    name = image_reference("a/b:1").template_name
    foreign = server.add(name, "VERIFY_SUCCESS", "2020-01-01T00:00:00Z")
    server.rows[0]["user_id"] = "somebody"
    server.first_status = "CREATED"
    assert template_for_image(server.lium, ask, "a/b:1", sleep=no_sleep) != foreign["id"]


@pytest.mark.parametrize("status", ["VERIFY_SUCCESS", "CREATED", "UPDATED", "verify_success"])
def test_the_check_of_an_image_is_waited_for(server: TemplateServer, status: str) -> None:
    pauses: list[float] = []
    notes: list[str] = []
    server.turn = lambda number: server.set_status(status) if number == 6 else None
    found = template_for_image(server.lium, ask, "a/b:1", sleep=pauses.append, note=notes.append)
    assert found == server.rows[0]["id"] and len(server.rows) == 1
    assert pauses == [2.0, 4.0, 8.0, 10.0]
    assert [line for line in notes if "VERIFY_PENDING" in line] == notes[1:] and len(notes) == 2


def test_an_unknown_status_is_waited_over(server: TemplateServer) -> None:
    server.first_status = "A_NEW_WORD"
    server.turn = lambda number: server.set_status("VERIFY_SUCCESS") if number == 4 else None
    assert template_for_image(server.lium, ask, "a/b:1", sleep=lambda _: None) == server.rows[0]["id"]


def test_an_image_that_cannot_be_verified_is_the_users_error(server: TemplateServer) -> None:
    server.turn = lambda number: server.set_status("VERIFY_FAILED") if number == 3 else None
    with pytest.raises(
        UserError, match=r"could not verify image a/b:1 \(template ts-.*-b is VERIFY_FAILED\).*registry"
    ):
        template_for_image(server.lium, ask, "a/b:1", sleep=lambda _: None)


def test_waiting_has_an_end_and_goes_on_with_the_same_template(server: TemplateServer) -> None:
    pauses: list[float] = []
    with pytest.raises(ControlPlaneError, match=r"a/b:1 is still VERIFY_PENDING after 25 s"):
        template_for_image(server.lium, ask, "a/b:1", timeout_s=25, sleep=pauses.append)
    assert sum(pauses) == 25
    server.set_status("CREATED")
    assert template_for_image(server.lium, ask, "a/b:1", sleep=no_sleep) == server.rows[0]["id"]
    assert len(server.rows) == 1


def test_of_two_templates_made_at_the_same_moment_every_run_takes_the_oldest(server: TemplateServer) -> None:
    name = image_reference("a/b:1").template_name

    def another_run(number: int) -> None:
        if number == 2:  # between this run's look and its look after making one
            server.add(name, "CREATED", "2026-05-04T00:00:00Z", "ffffffff")

    server.first_status, server.turn = "CREATED", another_run
    assert template_for_image(server.lium, ask, "a/b:1", sleep=no_sleep) == "ffffffff"
    server.rows.reverse()
    assert template_for_image(server.lium, ask, "a/b:1", sleep=no_sleep) == "ffffffff"
    assert len(server.rows) == 2


def test_equally_old_templates_are_told_apart_by_id_and_a_failed_one_is_not_taken(server: TemplateServer) -> None:
    name = image_reference("a/b:1").template_name
    server.add(name, "CREATED", row_id="b")
    server.add(name, "CREATED", row_id="a")
    assert template_for_image(server.lium, ask, "a/b:1", sleep=no_sleep) == "a"
    server.rows[1]["status"] = "VERIFY_FAILED"
    assert template_for_image(server.lium, ask, "a/b:1", sleep=no_sleep) == "b"


def test_a_template_whose_answer_was_lost_is_found_by_the_next_try(world) -> None:
    lium = renting_client(world)
    lost = {"done": False}

    def losing(what: str, call: Callable[[], Any]) -> Any:
        answer = ask(what, call)
        if what.startswith("make") and not lost["done"]:
            lost["done"] = True
            raise ControlPlaneError("the answer was lost")
        return answer

    with pytest.raises(ControlPlaneError):
        template_for_image(lium, losing, "example/lost:1")
    template_for_image(lium, losing, "example/lost:1")
    assert world.calls().count(MAKE) == 1


# -- volumes ----------------------------------------------------------------------------------------------------------


def test_a_volume_is_made_once_and_found_by_name_id_and_huid(world) -> None:
    lium = renting_client(world)
    made = volume_id(lium, ask, "new:name=runs,desc=of mine")
    assert volume_id(lium, ask, "new:name=runs") == made
    huid = lium.volumes()[0].huid
    assert [volume_id(lium, ask, wanted) for wanted in ("runs", f"id:{made}", f"id:{huid}")] == [made] * 3
    assert [(volume.name, volume.description) for volume in lium.volumes()] == [("runs", "of mine")]


def test_a_name_that_several_volumes_have_is_refused_with_their_ids(world) -> None:
    lium = renting_client(world)
    ids = sorted(lium.volume_create("runs").id for _ in range(2))
    for wanted in ("runs", "new:name=runs"):
        with pytest.raises(UserError, match=f"several volumes are called 'runs': name one of them as id:{ids[0]}, id:"):
            volume_id(lium, ask, wanted)
    assert volume_id(lium, ask, f"id:{ids[1]}") == ids[1]


def test_two_runs_that_make_a_volume_at_the_same_moment_are_told_before_anything_is_rented(world) -> None:
    lium = renting_client(world)

    def raced(what: str, call: Callable[[], Any]) -> Any:
        if what.startswith("make"):
            client(world.settings.base_url, world.settings.api_key).volume_create("runs")
        return ask(what, call)

    with pytest.raises(UserError, match="several volumes are called 'runs'"):
        volume_id(lium, raced, "new:name=runs")


def test_a_missing_volume_is_refused_with_those_there_are(world) -> None:
    lium = renting_client(world)
    volume_id(lium, ask, "new:name=runs")
    with pytest.raises(UserError, match="no volume is called 'rnus': the account has runs; new:name=rnus makes one"):
        volume_id(lium, ask, "rnus")
    for wanted in ("new:desc=3", "new:name=x,size=3"):
        with pytest.raises(UserError, match="write new:name=NAME"):
            volume_id(lium, ask, wanted)


def test_a_volume_held_by_another_pod_is_refused_by_name(world) -> None:
    lium = renting_client(world)
    held = volume_id(lium, ask, "new:name=runs")
    assert volume_holder(lium, ask, held) is None
    refuse_held_volume(lium, ask, held, "runs")
    pod = f"ts-{uuid.uuid4().hex[:8]}-sft-a1"
    renting_client(world).rent(gpu_type="RTX4090", name=pod, volume_id=held)
    assert volume_holder(lium, ask, held) == pod
    for wanted in ("runs", "new:name=runs,desc=x"):
        with pytest.raises(
            UserError, match=rf"volume runs is held by pod {pod}; .* wait, stop that pod, or use another"
        ):
            refuse_held_volume(lium, ask, held, wanted, ["ts-other"])
    refuse_held_volume(lium, ask, held, "runs", [pod])
    assert volume_holder(lium, ask, volume_id(lium, ask, "new:name=free")) is None


def test_a_listing_that_does_not_say_who_holds_a_volume_refuses_nothing(server: TemplateServer) -> None:
    server.pods = [{"id": "1", "pod_name": "p"}, {"id": "2", "pod_name": "q", "volume_id": None}]
    assert volume_holder(server.lium, ask, "v") is None
    refuse_held_volume(server.lium, ask, "v", "runs")


def test_the_servers_own_refusal_of_a_held_volume_names_code_and_pod(world) -> None:
    """What `boundary.py` can tell a held volume by: code and words of the answer."""
    lium = renting_client(world)
    held = volume_id(lium, ask, "new:name=runs")
    pod = f"ts-{uuid.uuid4().hex[:8]}-sft-a1"
    lium.rent(gpu_type="RTX4090", name=pod, volume_id=held)
    with pytest.raises(LiumError, match=rf"^API error 409: .* is attached to pod {pod}") as caught:
        lium.rent(gpu_type="RTX4090", name="second", volume_id=held)
    assert caught.value.code == "volume_in_use"
