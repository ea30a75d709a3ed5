"""The store on the Hub: its pace, its limits, its check, and the words for what goes wrong."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi

from plugins.checkpoints.hub.library import ANSWER_S, WORK_S, _client, _limit
from plugins.checkpoints.hub.pace import PER_HOUR, Pace
from plugins.checkpoints.hub.place import HubPlace
from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.retention import prune_store
from plugins.checkpoints.seal import seal
from plugins.checkpoints.stores.hub import open_hub
from plugins.checkpoints.stores.open import open_store
from plugins.errors import Fenced, StoreError, UserError
from plugins.slime import layout
from tests.plugins.checkpoints import hub_case
from tests.plugins.checkpoints.hub_case import COMMIT, REPO, RUN, STAGE, TOKEN, URI, Clock, files, opened, pointed

running, hub, store = hub_case.running, hub_case.hub, hub_case.store


def one_file(save_dir: Path, iteration: int) -> Manifest:
    folder = layout.iteration_dir(save_dir, iteration)
    folder.mkdir()
    (folder / "weights.txt").write_text(f"weights of {iteration}")
    (save_dir / layout.TRACKER).write_text(str(iteration))
    return seal(save_dir, iteration, run_id=RUN, stage=STAGE, attempt=1, token=1, kind="plain")


def test_saving_every_minute_with_retention_stays_under_a_hundred_commits_in_every_hour(hub, tmp_path) -> None:
    clock, made = Clock(), []
    store = opened(clock)
    for minute in range(180):
        at, before = clock.at, hub.commits(REPO)
        store.put(one_file(tmp_path, minute), tmp_path)
        prune_store(store, RUN, STAGE, 2)
        made += [at] * (hub.commits(REPO) - before)
        assert len([other for other in made if other > at - 3600]) < 100
        clock.at = at + 60
    assert 180 <= len(made) < 3 * PER_HOUR
    assert [manifest.iteration for manifest in store.list(RUN, STAGE)] == [179, 178]
    assert pointed(hub) == [179, 178, 177]  # the last removal waits for the next commit


def test_whoever_saves_faster_than_the_hub_takes_still_stays_under_it() -> None:
    clock, made = Clock(), []
    pace = Pace(clock.now)
    for _ in range(3 * 360):
        if not pace.wait_s():
            pace.record()
            made.append(clock.at)
        clock.sleep(10)
    assert all(len([other for other in made if at - 3600 < other <= at]) < 100 for at in made)
    assert len(made) > 2 * PER_HOUR


def test_a_store_that_is_at_its_limit_says_when_it_goes_on_and_a_claim_still_gets_through(hub, store, trainer) -> None:
    clock = Clock()
    pace = Pace(clock.now)
    store = open_hub(URI, pace=pace, sleep=clock.sleep)
    for _ in range(90):
        pace.record()
        clock.sleep(1)
    sent = hub.state()["received_bytes"]
    store.claim(RUN, STAGE, 3)
    with pytest.raises(StoreError, match=r"the next one goes at \d\d:\d\d:\d\d \(in 35\d\d s\)"):
        store.put(trainer.sealed(19, attempt=3), trainer.save_dir)
    assert hub.state()["received_bytes"] == sent  # nothing is sent that may have to give way to a newer one
    clock.sleep(3600)
    store.put(trainer.sealed(39, attempt=3), trainer.save_dir)
    assert pointed(hub) == [39]


def test_commits_made_before_a_restart_count(hub, trainer) -> None:
    opened().claim(RUN, STAGE, 1)
    pace = Pace()
    open_hub(URI, pace=pace).claim(RUN, STAGE, 2)
    assert len(pace._made) == 3  # the one that made the repository, and two claims


def test_a_hub_that_refuses_more_commits_is_left_alone_until_it_takes_them(hub, store, trainer) -> None:
    clock = Clock()
    store = opened(clock)
    store.claim(RUN, STAGE, 1)
    hub.fault(COMMIT, status=429, headers={"Retry-After": "1800"})
    manifest = trainer.sealed(19)
    with pytest.raises(StoreError, match="asks to wait 1800 s"):
        store.put(manifest, trainer.save_dir)
    asked = len(hub.calls("/commit/"))
    with pytest.raises(StoreError, match=r"in 1800 s"):
        store.put(manifest, trainer.save_dir)
    assert len(hub.calls("/commit/")) == asked
    clock.sleep(1801)
    hub.fault("POST .*/preupload/", status=429, headers={"Retry-After": "1800"})  # the library would sleep for it
    with pytest.raises(StoreError, match="asks to wait 1800 s"):
        store.put(manifest, trainer.save_dir)
    store.put(manifest, trainer.save_dir)


def test_a_removal_that_waits_is_seen_here_goes_with_the_next_commit_and_is_dropped_when_another_attempt_comes(
    hub, trainer
) -> None:
    clock = Clock()
    pace = Pace(clock.now)
    store = open_hub(URI, pace=pace, sleep=clock.sleep)
    old, new = (trainer.sealed(number) for number in (9, 19))
    for manifest in (old, new):
        store.put(manifest, trainer.save_dir)
    for _ in range(60):
        pace.record()
    before = hub.commits(REPO)
    store.delete(old)
    store.delete(old)
    assert hub.commits(REPO) == before
    assert [one.iteration for one in store.list(RUN, STAGE)] == [19] and pointed(hub) == [19, 9]
    store.put(trainer.sealed(29), trainer.save_dir)
    assert hub.commits(REPO) == before + 1 and pointed(hub) == [29, 19]
    assert not [path for path in files(hub) if "0000009" in path]
    store.delete(new)
    opened().claim(RUN, STAGE, 2)
    assert [one.iteration for one in store.list(RUN, STAGE)] == [29, 19]
    with pytest.raises(Fenced):
        store.put(trainer.sealed(39), trainer.save_dir)


def test_the_check_makes_a_private_repository_and_its_branch_and_leaves_nothing(hub) -> None:
    api = HfApi(hub.url, token=TOKEN)
    api.delete_repo(REPO)
    with pytest.raises(StoreError, match="no such repository, or the token may not see it"):
        opened().list(RUN, STAGE)
    for _ in range(2):
        opened().check()
    assert api.repo_info(REPO).private and files(hub) == set()
    assert opened().list(RUN, STAGE) == []
    hub.fault(COMMIT, status=403, message="Private repository storage limit reached, please upgrade your plan")
    with pytest.raises(StoreError, match=r"takes no more data \(Private repository storage limit reached"):
        opened().check()
    hub.fault("GET .*/whoami", status=503, times=4)
    with pytest.raises(StoreError, match="failed with 503"):
        opened().check()


@pytest.mark.parametrize(
    ("token", "role", "scopes", "uri", "says"),
    [
        ("", "", {}, URI, "no Hugging Face token"),
        ("hf_unknown0to0it", "", {}, URI, "refused the token"),
        ("hf_reader", "read", {}, URI, "'ann' may only read"),
        ("hf_reader", "read", {}, "hub://ann/new", "'ann' may only read"),
        (TOKEN, "", {}, "hub://bob/his", "belongs to 'bob', and the token to 'ann'"),
        ("hf_fine", "fineGrained", {"ann": ["repo.content.read"]}, URI, "fine-grained token of 'ann' has no right"),
        ("hf_fine2", "fineGrained", {"ann/x": ["repo.write"]}, "hub://ann/y", "may not make the repository"),
    ],
)
def test_every_usual_mistake_has_words_of_its_own(hub, monkeypatch, tmp_path, token, role, scopes, uri, says) -> None:
    if role:
        hub.token(token, "ann", role, scopes=scopes)
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=says):
        opened(uri=uri).check()


def test_the_token_is_in_no_message_and_no_log(hub, trainer, caplog, capfd, monkeypatch) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    store, shown = opened(), []
    manifest = trainer.sealed(19)
    faults = [
        (COMMIT, {"status": 403, "message": f"Bearer {TOKEN} may not"}),
        (COMMIT, {"status": 500, "message": f"token {TOKEN}"}),
        ("POST .*/batch", {"status": 403, "message": f"{TOKEN} may not"}),
        ("GET .*/state.json", {"status": 401, "message": f"Invalid credentials {TOKEN}"}),
        ("GET .*/state.json", {"cut": "before", "times": 40}),
    ]
    for match, fault in faults:
        hub.fault(match, **fault)
        with pytest.raises((StoreError, UserError)) as caught:
            store.put(manifest, trainer.save_dir)
        shown.append(str(caught.value))
        hub.clear()
    store.put(manifest, trainer.save_dir)
    out, err = capfd.readouterr()
    for text in (*shown, caplog.text, out, err, repr(store), store.uri):
        assert TOKEN not in text and "signature=" not in text.replace(caplog.text, "")
    assert "..." in shown[0]


def test_nothing_is_listening_and_that_is_said_soon(hub, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    clock = Clock()
    with pytest.raises(StoreError, match="did not answer"):
        opened(clock).list(RUN, STAGE)
    assert clock.at - Clock().at < 10


def test_every_request_of_the_library_has_time_limits_of_ours() -> None:
    asked = httpx2.Request("GET", "http://hub/api/models/a/b/tree/main", extensions={"timeout": {"read": None}})
    commit = httpx2.Request("POST", "http://hub/api/models/a/b/commit/main")
    part, done = httpx2.Request("PUT", "http://s3/part"), httpx2.Request("POST", "http://hub/complete")
    for request, read_s in ((asked, ANSWER_S), (commit, WORK_S), (part, WORK_S), (done, WORK_S)):
        _limit(request)
        assert request.extensions["timeout"]["read"] == read_s and request.extensions["timeout"]["connect"] <= 5
    assert _limit in _client().event_hooks["request"]


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("hub://ann/m", HubPlace("ann/m")),
        ("hub://ann/m/", HubPlace("ann/m")),
        ("hub://ann/m@dev", HubPlace("ann/m", "dev")),
        ("hub://an-n/m.1@dev/a/b_c", HubPlace("an-n/m.1", "dev", "a/b_c")),
    ],
)
def test_a_uri_names_repository_branch_and_folder(uri: str, place: HubPlace) -> None:
    assert HubPlace.of(uri) == place and HubPlace.of(place.uri) == place
    assert open_store(uri).uri == place.uri


@pytest.mark.parametrize(
    "uri",
    ["hub://", "hub://ann", "hub:ann/m", "hub://a/b@", "hub://a/../b", "hub://a/b@x/../y", "hub://a/b c", "s3://a/b"],
)
def test_what_is_no_uri_is_the_users_error(uri: str) -> None:
    with pytest.raises(UserError, match="write hub://user/repo"):
        open_hub(uri)


def test_opening_a_store_imports_nothing_heavy_before_it_is_opened() -> None:
    code = "import sys, plugins.checkpoints.stores.hub; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout.strip().lower()) is False
