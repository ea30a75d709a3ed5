"""The doctor against real clients and servers on loopback: the emulator, and small stand-ins of the other services."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncssh
import httpx
import prefect
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL, temporary_settings

from blocks.recipe import Recipe
from tasks.doctor import Check, Finding, checks, examine, look_at
from tasks.prerequisites import docker_engine, hub, lium_api, prefect_api, s3, ssh_key
from tasks.prerequisites.finding import clock

NOWHERE = "http://127.0.0.1:9"  # the discard port, where nothing listens
SECRET = "hf_SecretOfTheDoctorsTest"
OURS = ("LIUM_", "HF_", "HUGGING_FACE_", "AWS_", "DOCKER_", "TRAINSTACK_", "XDG_", "PREFECT_API_")


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder with nothing in it, no variables, no Docker; returns the home folder."""
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TRAINSTACK_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("DOCKER_HOST", NOWHERE.replace("http", "tcp"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with temporary_settings(restore_defaults={PREFECT_API_URL, PREFECT_API_KEY, PREFECT_API_AUTH_STRING}):
        yield home


@dataclass
class Service:
    """A stand-in: path -> (status, JSON); a path ends in what is given, and anything else is 404."""

    answers: dict[str, tuple[int, object]]
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def serve() -> Iterator:
    servers: list[ThreadingHTTPServer] = []

    def start(answers: dict[str, tuple[int, object]]) -> Service:
        service = Service(answers)

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                path = self.path.partition("?")[0]
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                service.asked.append(f"{self.command} {path}")
                service.headers.append(dict(self.headers))
                found = [given for end, given in service.answers.items() if path.endswith(end)]
                status, content = found[0] if found else (404, {"message": f"no {path}"})
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(text)

            do_GET = do_POST = do_HEAD = answer

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        service.url = f"http://127.0.0.1:{server.server_port}"
        return service

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a Lium emulator."""
    folder = tmp_path_factory.mktemp("emulator")
    ready = folder / "ready.json"
    argv = [sys.executable, "-m", "plugins.lium.emulator", "--port", "0", "--state", str(folder / "state")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*argv, "--ready-file", str(ready)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)
        yield json.loads(ready.read_text())["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@pytest.fixture
def ssh_pair(bare: Path) -> Path:
    return make_pair(bare / ".ssh" / "id_ed25519")


def make_pair(path: Path, passphrase: str | None = None) -> Path:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(str(path), passphrase=passphrase, cipher_name="aes256-ctr")
    path.chmod(0o600)
    key.write_public_key(f"{path}.pub")
    return path


def recipe(**sections: object) -> Recipe:
    return Recipe.model_validate({"name": "r", "sft": {}, **sections})


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    assert len({item.what for item in findings}) == len(findings)
    return {item.what: item for item in findings}


# -- all of them ------------------------------------------------------------------------------------------------------


def test_a_laptop_without_an_account_lacks_nothing_that_the_demo_needs(bare: Path) -> None:
    findings = examine()
    lacking = [item for item in findings if not item.ok]
    assert not [item for item in lacking if item.required or item.needed_for == "demo"]
    assert {item.needed_for for item in lacking} >= {"renting", "images", "hub", "s3"}
    assert all(item.remedy for item in lacking) and not any(item.remedy for item in findings if item.ok)
    places = ["demo", "renting", "images", "hub", "s3", "train.py"]
    ranks = [places.index(item.needed_for) for item in findings]
    assert ranks == sorted(ranks)


def test_nothing_is_written_rented_or_shown_where_everything_is_configured(
    bare: Path, ssh_pair: Path, emulator: str, serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"key-{uuid.uuid4().hex}"
    service = serve({"/api/whoami-v2": (200, whoami("write")), "/bucket": (200, {})})
    (bare / ".docker").mkdir()
    (bare / ".docker" / "config.json").write_text(json.dumps({"auths": {"ghcr.io": {"auth": SECRET}}}))
    for name, value in {
        "LIUM_API_KEY": key,
        "LIUM_BASE_URL": emulator,
        "HF_TOKEN": SECRET,
        "HF_ENDPOINT": service.url,
        "AWS_ACCESS_KEY_ID": SECRET,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": service.url,
        "TRAINSTACK_S3_BUCKET": "bucket",
    }.items():
        monkeypatch.setenv(name, value)
    before = {path: path.stat().st_mtime_ns for path in bare.rglob("*")}
    findings = by_name(examine())
    assert {path: path.stat().st_mtime_ns for path in bare.rglob("*")} == before
    assert [
        name for name, item in findings.items() if not item.ok and item.needed_for not in ("images", "train.py")
    ] == []
    assert findings["registry login"].ok
    assert SECRET not in repr(findings) and key not in repr(findings) and key[:6] not in repr(findings)
    calls = httpx.get(f"{emulator.removesuffix('/api')}/_emulator/log", timeout=20).json()
    mine = {f"{row['method']} {row['path'].removeprefix('/api')}" for row in calls if row["api_key_tail"] == key[-4:]}
    assert mine == {"GET /users/me", "GET /version", "POST /executors/rent-by-spec"}
    assert httpx.get(f"{emulator}/pods", headers={"X-API-KEY": key}, timeout=20).json() == []
    assert {call.partition(" ")[0] for call in service.asked} == {"GET", "HEAD"}


def test_a_check_that_fails_in_an_unknown_way_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIUM_API_KEY", SECRET)

    def broken() -> list[Finding]:
        raise RuntimeError(f"what nobody\nthought of: {SECRET}")

    found = look_at([Check("a", "s3", broken), Check("b", "hub", lambda: [Finding("b", True, "there")])])
    assert [(item.what, item.ok, item.needed_for) for item in found] == [("a", False, "s3"), ("b", True, "demo")]
    assert found[0].found == "the check itself failed: RuntimeError: what nobody thought of: ***" and found[0].remedy


def test_a_check_that_hangs_is_a_finding_and_keeps_nobody() -> None:
    never = threading.Event()
    try:
        found = look_at([Check("a", "hub", lambda: [Finding("a", never.wait(60), "")])], patience_s=0.2)
    finally:
        never.set()
    assert [(item.what, item.ok, item.found) for item in found] == [("a", False, "no answer within 0 s")]


def test_the_command_ends_though_a_check_hangs_for_ever() -> None:
    code = (
        "import threading; from tasks.doctor import Check, look_at\n"
        "print(look_at([Check('a', 'hub', threading.Event().wait)], patience_s=0.1)[0].found)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("no answer within")


def test_checks_run_beside_each_other() -> None:
    meeting = threading.Barrier(2, timeout=20)

    def meet() -> list[Finding]:
        meeting.wait()
        return [Finding("met", True, "")]

    assert all(item.ok for item in look_at([Check("a", "demo", meet), Check("b", "demo", meet)]))


def test_every_check_is_named_once() -> None:
    names = [check.what for check in checks(None, time.time)]
    assert len(set(names)) == len(names)


# -- clock ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "asked_s", "answered_s", "ok", "words"),
    [
        ("Thu, 01 Jan 1970 00:16:40 GMT", 1000.0, 1000.5, True, "the same"),
        ("Thu, 01 Jan 1970 00:16:40 GMT", 995.0, 1001.0, True, "the same"),
        ("Thu, 01 Jan 1970 00:16:40 GMT", 1010.5, 1010.6, True, "10 s ahead"),
        ("Thu, 01 Jan 1970 00:16:40 GMT", 1012.0, 1012.1, False, "11 s ahead"),
        ("Thu, 01 Jan 1970 00:16:40 GMT", 900.0, 901.0, False, "99 s behind"),
        ("noon", 1.0, 1.0, False, "the answer names no time"),
        (None, 1.0, 1.0, False, "the answer names no time"),
    ],
)
def test_a_clock_is_judged_as_far_as_whole_seconds_allow(there, asked_s, answered_s, ok, words) -> None:
    found = clock("x", there, asked_s, answered_s, 10.0, "renting")
    assert (found.ok, found.found) == (ok, words)


# -- Lium -------------------------------------------------------------------------------------------------------------


def lium_stand_in(serve, monkeypatch: pytest.MonkeyPatch, rent: tuple[int, object], balance: object = 50.0):
    service = serve(
        {
            "/users/me": (200, {"id": "me", "balance": balance}),
            "/version": (200, {"features": ["rent_by_spec"]}),
            "/rent-by-spec": rent,
        }
    )
    monkeypatch.setenv("LIUM_BASE_URL", f"{service.url}/api")
    monkeypatch.setenv("LIUM_API_KEY", "key-of-somebody-else")
    return service


def refusal(code: str, message: str) -> dict:
    return {"error": {"code": code, "message": message}, "message": message}


NO_MACHINE = (409, refusal("no_matching_node", "gpu_count=1: none of the 0 node(s)"))


def test_a_key_is_accepted_and_may_rent(ssh_pair: Path, emulator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIUM_API_API_KEY", f"key-{uuid.uuid4().hex}")
    monkeypatch.setenv("LIUM_BASE_URL", emulator)
    found = by_name(lium_api.look())
    assert list(found) == ["Lium API key", "right to rent", "Lium balance", "clock, against Lium"]
    assert all(item.ok for item in found.values())
    assert found["Lium API key"].found == f"LIUM_API_API_KEY; accepted by {emulator}"
    assert found["right to rent"].found.startswith("yes; 1x H200 for ")


def test_the_clock_of_this_machine_is_held_against_liums(emulator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIUM_API_KEY", f"key-{uuid.uuid4().hex}")
    monkeypatch.setenv("LIUM_BASE_URL", emulator)
    found = by_name(lium_api.look(now=lambda: time.time() - 3600))["clock, against Lium"]
    assert not found.ok and found.found.endswith("s behind")
    lax = recipe(pod={"preflight": {"max_clock_skew_s": 7200}})
    assert by_name(lium_api.look(lax, now=lambda: time.time() - 3600))["clock, against Lium"].ok


def test_a_refused_key_names_where_it_was_found(bare: Path, emulator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIUM_BASE_URL", emulator)
    (bare / ".lium").mkdir()
    file = bare / ".lium" / "config.ini"
    file.write_text("[api]\napi_key = bad-key-of-%somebody\n")
    found = by_name(lium_api.look())
    assert found["Lium API key"].found == f"{file}; refused by {emulator} (401)"
    assert str(file) in found["Lium API key"].remedy
    assert not found["right to rent"].ok and "bad-key" not in repr(found)
    file.write_text("this is no ini file")
    assert f"{file} cannot be read" in by_name(lium_api.look())["Lium API key"].found


def test_a_key_in_a_block_cannot_be_read_without_a_prefect_api() -> None:
    found = by_name(lium_api.look(recipe(lium={"credentials_block": "mine"})))["Lium API key"]
    assert not found.ok and "No Prefect API is configured" in found.found and found.remedy


def test_a_key_without_the_right_to_rent_says_which_right_is_missing(ssh_pair, serve, monkeypatch) -> None:
    lium_stand_in(serve, monkeypatch, (403, refusal("missing_scope", "API key 'ci' does not have the 'rent' scope")))
    found = by_name(lium_api.look())
    assert found["Lium API key"].ok and not found["right to rent"].ok
    assert found["right to rent"].found == "the key lacks the right 'rent'"


@pytest.mark.parametrize(
    ("answer", "ok", "words"),
    [
        (NO_MACHINE, True, "yes; no H200 as wanted just now"),
        (
            (403, refusal("insufficient_balance", "this pod requires at least $2.49, your balance is $0.10")),
            False,
            "refused for the balance: Lium asks for at least 2.49 USD",
        ),
        ((402, refusal("API_KEY_BUDGET_EXCEEDED", "budget exceeded")), False, "refused: the key's own budget is used"),
        ((403, refusal("suspended", "account suspended")), False, "account suspended"),
        ((400, refusal("bad_request", "no such thing")), False, "no such thing"),
    ],
)
def test_what_a_dry_run_says_of_the_right_to_rent(ssh_pair, serve, monkeypatch, answer, ok, words) -> None:
    lium_stand_in(serve, monkeypatch, answer)
    found = by_name(lium_api.look())["right to rent"]
    assert found.ok is ok and words in found.found
    assert "somebody" not in found.found and "key-of" not in found.found


def test_the_right_is_not_tried_without_an_ssh_key(serve, monkeypatch) -> None:
    service = lium_stand_in(serve, monkeypatch, NO_MACHINE)
    found = by_name(lium_api.look())["right to rent"]
    assert (found.ok, found.found) == (False, "not tried: no SSH key pair")
    assert not any("rent" in call for call in service.asked)


@pytest.mark.parametrize(
    ("balance", "pod", "ok"),
    [
        (4.9, {"gpu_count": 2, "max_price_per_gpu_hour": 2.5}, False),
        (5.0, {"gpu_count": 2, "max_price_per_gpu_hour": 2.5}, True),
        (0, {}, False),
        (0.01, {}, True),
        (None, {}, False),
    ],
)
def test_a_balance_pays_an_hour_at_the_recipes_ceiling(ssh_pair, serve, monkeypatch, balance, pod, ok) -> None:
    lium_stand_in(serve, monkeypatch, NO_MACHINE, balance)
    found = by_name(lium_api.look(recipe(pod=pod)))["Lium balance"]
    assert found.ok is ok
    assert ("an hour at the recipe's ceiling costs 5.00 USD" in found.found) is bool(pod)


def test_a_lium_that_does_not_answer_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIUM_API_KEY", SECRET)
    monkeypatch.setenv("LIUM_BASE_URL", "http://name:word@127.0.0.1:9/api")
    found = by_name(lium_api.look())
    assert not found["Lium API key"].ok and "Lium does not answer" in found["Lium API key"].found
    assert not found["Lium balance"].ok


def test_a_recipe_for_the_emulator_needs_no_key_and_asks_nobody(serve, monkeypatch) -> None:
    service = lium_stand_in(serve, monkeypatch, NO_MACHINE)
    found = lium_api.look(recipe(lium={"base_url": "emulator"}))
    assert [(item.what, item.ok) for item in found] == [("Lium API key", True)] and service.asked == []


# -- SSH key ----------------------------------------------------------------------------------------------------------


def test_a_sound_pair_is_found(ssh_pair: Path) -> None:
    assert [(item.ok, item.found) for item in ssh_key.look()] == [(True, str(ssh_pair))]


def test_what_is_wrong_with_a_pair_is_said_with_its_remedy(bare: Path, ssh_pair: Path, monkeypatch) -> None:
    ssh_pair.chmod(0o644)
    assert ssh_key.look()[0].remedy == f"chmod 600 {ssh_pair}"
    ssh_pair.chmod(0o600)
    Path(f"{ssh_pair}.pub").write_text(Path(f"{make_pair(bare / '.ssh' / 'other')}.pub").read_text())
    assert "id_ed25519.pub is not its public half" in ssh_key.look()[0].found
    monkeypatch.setenv("LIUM_SSH_KEY_PATH", str(make_pair(bare / ".ssh" / "locked", "a long passphrase")))
    locked = ssh_key.look()[0]
    assert not locked.ok and "has a passphrase" in locked.found and "LIUM_SSH_KEY_PATH" in locked.remedy
    (bare / ".ssh" / "locked").write_text("no key")
    assert "not a private key that can be read" in ssh_key.look()[0].found
    Path(f"{bare}/.ssh/locked.pub").unlink()
    assert (ssh_key.look()[0].ok, ssh_key.look()[0].found) == (False, "none")


# -- Docker -----------------------------------------------------------------------------------------------------------


def test_an_engine_that_answers_shows_its_version(tmp_path: Path, serve, monkeypatch) -> None:
    service = serve(
        {
            "/_ping": (200, "OK"),
            "/version": (200, {"Version": "28.2.2", "ApiVersion": "1.45", "MinAPIVersion": "1.24"}),
            "/info": (200, {"DockerRootDir": str(tmp_path)}),  # there too, and not the engine's
        }
    )
    monkeypatch.setenv("DOCKER_HOST", service.url.replace("http", "tcp"))
    found = by_name(docker_engine.engine())
    assert (found["Docker engine"].ok, found["Docker engine"].found) == (True, "28.2.2")
    assert found["disk of Docker"].found == "not to be seen from here"
    service.answers["/_ping"] = (500, {"message": "unwell"})
    assert not docker_engine.engine()[0].ok


def test_a_machine_without_docker_gets_a_remedy() -> None:
    (found,) = docker_engine.engine()
    assert (found.ok, found.needed_for) == (False, "images") and "127.0.0.1:9" in found.found and found.remedy


@pytest.mark.parametrize(
    ("config", "ok", "known"),
    [
        ({"auths": {"https://index.docker.io/v1/": {"auth": SECRET}}}, True, "docker.io"),
        (
            {"auths": {"ghcr.io": {"identitytoken": SECRET}}, "credHelpers": {"x.ecr.aws": "ecr"}},
            True,
            "ghcr.io, x.ecr.aws",
        ),
        ({"auths": {"ghcr.io": {}}, "credsStore": "desktop"}, True, "ghcr.io"),
        ({"auths": {"ghcr.io": {}}}, False, "none"),
        ({}, False, "none"),
        ([], False, "cannot be read"),
    ],
)
def test_registries_with_a_login_are_named_and_no_token_is(bare: Path, config, ok, known) -> None:
    (bare / ".docker").mkdir()
    (bare / ".docker" / "config.json").write_text(json.dumps(config))
    (found,) = docker_engine.login()
    assert found.ok is ok and (found.found == known or known == "cannot be read")
    assert SECRET not in repr(found) and ("cannot be read" in found.found) is (known == "cannot be read")


@pytest.mark.parametrize(
    ("image", "lacking"),
    [
        ("ghcr.io/a/b:1", None),
        ("a/b:1", "docker.io"),
        ("b", "docker.io"),
        ("localhost:5000/b", "localhost:5000"),
        ("localhost/b", "localhost"),
    ],
)
def test_the_registry_of_the_recipes_image_needs_a_login(bare: Path, image: str, lacking: str | None) -> None:
    (bare / ".docker").mkdir()
    (bare / ".docker" / "config.json").write_text(json.dumps({"auths": {"ghcr.io": {"auth": SECRET}}}))
    (found,) = docker_engine.login(recipe(pod={"image": image}))
    assert found.ok is (lacking is None)
    assert found.found == ("ghcr.io" if found.ok else f"ghcr.io; not {lacking}, where the recipe's image is")


# -- Hub --------------------------------------------------------------------------------------------------------------


def whoami(role: str, scoped: list | None = None) -> dict:
    return {"name": "ann", "auth": {"accessToken": {"role": role, "fineGrained": {"scoped": scoped or []}}}}


def scope(name: str, *permissions: str) -> dict:
    return {"entity": {"type": "user", "name": name}, "permissions": list(permissions)}


@pytest.mark.parametrize(
    ("who", "ok", "words"),
    [
        (whoami("write"), True, "role write"),
        (whoami("read"), False, "role read"),
        (whoami("fineGrained", [scope("ann", "repo.content.read"), scope("org", "repo.write")]), True, "to org"),
        (whoami("fineGrained", [scope("ann", "repo.content.read")]), False, "may not write"),
        ({"name": "ann"}, False, "role unknown"),
    ],
)
def test_the_write_right_of_a_hub_token(serve, monkeypatch, who, ok, words) -> None:
    service = serve({"/api/whoami-v2": (200, who)})
    monkeypatch.setenv("HF_ENDPOINT", service.url)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    found = by_name(hub.look())
    assert found["Hub token"].ok and found["Hub token"].found == f"HF_TOKEN; ann at {service.url}"
    assert found["Hub write right"].ok is ok and words in found["Hub write right"].found
    assert service.headers[0]["Authorization"] == f"Bearer {SECRET}" and SECRET not in repr(found)


def test_a_stored_token_is_found_and_a_refused_one_says_where_it_is(bare: Path, serve, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", serve({"/api/whoami-v2": (401, {"error": "Invalid"})}).url)
    assert [item.ok for item in hub.look()] == [False, False] and hub.look()[0].found == "none"
    file = bare / ".cache" / "huggingface" / "token"
    file.parent.mkdir(parents=True)
    file.write_text(f"{SECRET}\n")
    found = hub.look()
    assert [item.ok for item in found] == [False, False] and f"{file}; refused by" in found[0].found
    assert SECRET not in repr(found)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    assert f"{NOWHERE} does not answer" in hub.look()[0].found


# -- S3 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "ok", "words"),
    [
        (200, True, "may be read; writing is not tried"),
        (403, False, "may not use it (403)"),
        (404, False, "no such bucket (404)"),
        (503, False, "refused (503)"),
    ],
)
def test_the_bucket_of_the_recipe_is_asked_for_once(serve, monkeypatch, status, ok, words) -> None:
    service = serve({"/runs": (status, {})})
    monkeypatch.setenv("AWS_ENDPOINT_URL", service.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDofnobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    found = by_name(s3.look(recipe(checkpoint={"store": "s3://runs/a/b"})))
    assert found["S3 credentials"].found == "found by env"
    assert found["S3 bucket"].ok is ok and words in found["S3 bucket"].found
    assert service.asked == ["HEAD /runs"] and SECRET not in repr(found) and "AKIDofnobody" not in repr(found)


def test_an_unknown_aws_profile_is_named(monkeypatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nope")
    assert [(item.ok, item.found) for item in s3.look()] == [(False, "The config profile (nope) could not be found")]


def test_s3_without_credentials_bucket_or_answer(monkeypatch) -> None:
    assert [(item.what, item.ok) for item in s3.look()] == [("S3 credentials", False)]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert [item.ok for item in s3.look()] == [True, True]
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOWHERE)
    monkeypatch.setenv("TRAINSTACK_S3_BUCKET", "runs")
    found = by_name(s3.look())["S3 bucket"]
    assert not found.ok and "no answer (EndpointConnectionError)" in found.found


@pytest.mark.parametrize(
    ("store", "bucket"),
    [("s3://b/p", "b"), ("s3:b/p", "b"), ("s3:b", "b"), ("folder:/x", None), ("folder:/s3:b", None)],
)
def test_the_bucket_of_a_store(store: str, bucket: str | None) -> None:
    assert s3.bucket_of(recipe(checkpoint={"store": store})) == bucket


# -- Prefect ----------------------------------------------------------------------------------------------------------


def prefect_stand_in(serve, version: tuple[int, object] = (200, prefect.__version__), health: int = 200) -> Service:
    return serve({"/api/health": (health, True), "/api/admin/version": version})


def test_without_a_prefect_api_a_local_one_will_start() -> None:
    (found,) = prefect_api.look()
    assert found.ok and "a local server starts when needed" in found.found


def test_a_prefect_api_of_our_version_is_sound_and_gets_our_password(serve) -> None:
    service = prefect_stand_in(serve)
    with temporary_settings({PREFECT_API_URL: f"{service.url}/api", PREFECT_API_AUTH_STRING: "admin:word"}):
        found = by_name(examine())
    assert found["Prefect API"].ok and found["Prefect API"].found.endswith(f"version {prefect.__version__}")
    assert found["clock, against the Prefect API"].ok and "admin:word" not in repr(found)
    sent = service.headers[service.asked.index("GET /api/admin/version")]["Authorization"]
    assert base64.b64decode(sent.removeprefix("Basic ")) == b"admin:word"


@pytest.mark.parametrize(
    ("version", "health", "words"),
    [
        ((200, "3.0.0"), 200, f"has version 3.0.0, this machine {prefect.__version__}"),
        ((401, {}), 200, "refuses us (401)"),
        ((404, {}), 200, "has version unknown (404)"),
        ((200, prefect.__version__), 503, "is not healthy (503)"),
    ],
)
def test_a_prefect_api_that_will_not_do_is_required_to_be_put_right(serve, version, health, words) -> None:
    with temporary_settings({PREFECT_API_URL: f"{prefect_stand_in(serve, version, health).url}/api"}):
        found = prefect_api.look()[0]
    assert (found.ok, found.required) == (False, True) and words in found.found


def test_a_prefect_api_that_does_not_answer(serve) -> None:
    with temporary_settings({PREFECT_API_URL: "http://me:word@127.0.0.1:9/api"}):
        (found,) = prefect_api.look(now=time.time)
    assert (found.ok, found.required) == (False, True)
    assert f"{NOWHERE}/api does not answer" in found.found and "word" not in found.found


def test_pods_reach_the_api_by_the_public_url_or_a_tunnel(serve) -> None:
    assert "tunnel over SSH will be used" in prefect_api.way()[0].found
    service = prefect_stand_in(serve)
    assert prefect_api.way(recipe(api_url=f"{service.url}/api"))[0].ok
    for url, words in ((f"{service.url}/wrong", "/wrong/health answers 404"), (NOWHERE, "does not answer")):
        (found,) = prefect_api.way(recipe(api_url=url))
        assert not found.ok and words in found.found and "leave it out" in found.remedy
