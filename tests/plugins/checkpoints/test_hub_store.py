"""The store on the Hub, against a Hub of ours that the unmodified `huggingface_hub` talks to (`tests/hub_server`)."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from plugins.checkpoints.disk import sha256_of
from plugins.checkpoints.hub.sealed_file import SealedFile
from plugins.checkpoints.retention import prune_store
from plugins.checkpoints.stores.hub import squash_history
from plugins.errors import Fenced, StoreError, TornCheckpoint
from plugins.slime import layout
from tests.plugins.checkpoints import hub_case
from tests.plugins.checkpoints.hub_case import COMMIT, REPO, RUN, STAGE, TOKEN, URI, files, objects, opened, pointed

running, hub, store = hub_case.running, hub_case.hub, hub_case.store


def test_a_checkpoint_comes_back_byte_for_byte_and_lies_as_documented(hub, store, trainer, tmp_path, tree) -> None:
    manifest = trainer.sealed(19, export=True)
    store.claim(RUN, STAGE, 1)
    before, done = hub.commits(REPO), []
    assert store.put(manifest, trainer.save_dir, done.append) == f"{URI}/run-1/sft/iter_0000019"
    assert hub.commits(REPO) - before == 1  # data, manifest and state at once
    assert sum(done) == manifest.size_bytes
    place = "ckpt/run-1/sft/iter_0000019.a1"
    wanted = {f"{place}/{entry.path}" for entry in manifest.files} | {f"{place}/manifest.json"}
    assert files(hub) == wanted | {"ckpt/run-1/sft/state.json"}
    assert hub.calls("POST /_storage/complete")  # the largest went in parts
    assert opened().latest(RUN, STAGE) == manifest
    store.verify(manifest)
    store.get(manifest, tmp_path / "pod")
    assert tree(tmp_path / "pod") == tree(trainer.save_dir)
    assert layout.read_tracker(tmp_path / "pod") == 19
    assert HfApi(hub.url, token=TOKEN).repo_info(REPO).private


def test_what_arrived_before_an_interruption_is_not_sent_again(hub, store, trainer) -> None:
    manifest = trainer.sealed(19)
    store.claim(RUN, STAGE, 1)
    hub.fault(COMMIT, status=400, times=2)
    for _ in range(2):
        with pytest.raises(StoreError, match="refused with 400"):
            store.put(manifest, trainer.save_dir)
    received = hub.state()["received_bytes"]
    assert objects(hub)
    store.put(manifest, trainer.save_dir)
    assert hub.state()["received_bytes"] == received
    store.verify(manifest)


def test_an_upload_that_fails_in_the_middle_keeps_the_files_that_were_done(hub, store, trainer) -> None:
    manifest = trainer.sealed(29, seed="middle", export=True)
    store.claim(RUN, STAGE, 1)
    hub.fault("PUT /_storage/part/.*/2", status=400, times=1)
    with pytest.raises(StoreError, match="refused with 400"):
        store.put(manifest, trainer.save_dir)
    assert (done := objects(hub))
    hub.clear()
    store.put(manifest, trainer.save_dir)
    sent_again = {call.rpartition("/")[2] for call in hub.calls("PUT /_storage/object")}
    assert not sent_again & done
    store.verify(manifest)


def test_a_commit_whose_answer_is_lost_counts_as_made_and_is_not_made_twice(hub, store, trainer) -> None:
    store.claim(RUN, STAGE, 1)
    for number, cut in ((19, "after"), (39, "before")):
        before = hub.commits(REPO)
        hub.fault(COMMIT, cut=cut)
        manifest = trainer.sealed(number)
        if cut == "after":
            store.put(manifest, trainer.save_dir)
        else:
            with pytest.raises(StoreError, match="did not answer"):
                store.put(manifest, trainer.save_dir)
            store.put(manifest, trainer.save_dir)
        assert hub.commits(REPO) - before == 1
        assert pointed(hub)[0] == number


def test_a_hub_that_dies_after_the_commit_leaves_one_that_the_next_try_finds(hub, store, trainer) -> None:
    manifest = trainer.sealed(19)
    store.claim(RUN, STAGE, 1)
    before = hub.commits(REPO)
    hub.fault(COMMIT, cut="after")
    hub.fault("GET .*/commits/", status=404, times=20)
    with pytest.raises(StoreError, match="did not answer"):
        store.put(manifest, trainer.save_dir)
    hub.clear()
    store.put(manifest, trainer.save_dir)
    assert hub.commits(REPO) - before == 1 and pointed(hub) == [19]


def test_a_hub_that_commits_on_another_parent_than_it_was_told_to_is_found_out(hub, store, trainer) -> None:
    store.claim(RUN, STAGE, 1)
    parent = HfApi(hub.url, token=TOKEN).repo_info(REPO, revision="training").sha
    hub.fault(COMMIT, cut="after")
    hub.fault("GET .*/commits/", replace={parent: "0" * 40})
    with pytest.raises(StoreError, match=f"on {'0' * 40} and not on {parent}"):
        store.put(trainer.sealed(19), trainer.save_dir)


def test_a_writer_that_is_killed_while_its_commit_is_on_the_way_never_gets_past_the_next_attempt(
    hub, store, trainer
) -> None:
    trainer.sealed(19)
    store.claim(RUN, STAGE, 1)
    hub.fault(COMMIT, slow_s=1.0)
    code = (
        "import sys; from pathlib import Path; from plugins.checkpoints.stores.hub import open_hub\n"
        "from plugins.checkpoints.manifest import read_local\n"
        "save_dir = Path(sys.argv[2]); open_hub(sys.argv[1]).put(read_local(save_dir, 19), save_dir)"
    )
    with subprocess.Popen([sys.executable, "-c", code, URI, str(trainer.save_dir)]) as writer:
        asked = len(hub.calls("/commit/"))
        while len(hub.calls("/commit/")) == asked and writer.poll() is None:
            time.sleep(0.01)
        writer.kill()
    before, sent = hub.commits(REPO), hub.state()["received_bytes"]
    opened().claim(RUN, STAGE, 2)
    time.sleep(1.2)
    assert writer.returncode == -signal.SIGKILL and hub.commits(REPO) == before + 1 and pointed(hub) == []
    opened().put(trainer.sealed(19, attempt=2), trainer.save_dir)
    assert pointed(hub) == [19] and hub.state()["received_bytes"] == sent


def test_commits_of_others_to_the_branch_do_not_disturb(hub, store, trainer) -> None:
    other = opened()
    store.claim(RUN, STAGE, 1)

    def meanwhile(_bytes: int, seen: list[int] = []) -> None:  # noqa: B006
        if not seen:
            seen.append(1)
            other.claim(RUN, "rl", 7)

    store.put(manifest := trainer.sealed(19), trainer.save_dir, meanwhile)
    assert store.list(RUN, STAGE) == [manifest]
    with pytest.raises(Fenced):
        other.claim(RUN, "rl", 6)


def test_an_attempt_that_is_superseded_while_it_sends_publishes_nothing(hub, store, trainer) -> None:
    store.put(trainer.sealed(19), trainer.save_dir)
    claimed = threading.Event()

    def take_over(_bytes: int) -> None:
        if not claimed.is_set():
            claimed.set()
            opened().claim(RUN, STAGE, 2)

    with pytest.raises(Fenced, match="token 1 was superseded by token 2"):
        store.put(trainer.sealed(39), trainer.save_dir, take_over)
    assert claimed.is_set() and pointed(hub) == [19]
    assert not [path for path in files(hub) if "0000039" in path]


def test_data_that_changed_after_the_seal_never_gets_under_its_hash(hub, store, trainer) -> None:
    manifest = trainer.sealed(19)
    path = layout.iteration_dir(trainer.save_dir, 19) / "common.pt"
    path.write_bytes(b"?" * path.stat().st_size)
    with pytest.raises(TornCheckpoint, match=r"common\.pt.*changed after it was sealed"):
        store.put(manifest, trainer.save_dir)
    entry = next(entry for entry in manifest.files if entry.path.endswith("common.pt"))
    assert entry.sha256 not in objects(hub)
    path.unlink()
    with pytest.raises(TornCheckpoint, match="missing from"):
        store.put(manifest, trainer.save_dir)
    assert pointed(hub) == []


def test_a_download_that_is_cut_goes_on_and_one_that_lies_is_found(hub, store, trainer, tmp_path) -> None:
    manifest = trainer.sealed(19, export=True)
    store.put(manifest, trainer.save_dir)
    hub.fault("GET /_storage/", cut_body_bytes=100, times=3)
    hub.fault("GET .*/resolve/.*config.json", status=503)
    store.get(manifest, tmp_path / "pod")
    hub.fault("GET .*/resolve/.*config.json", replace={"llama": "lammb"})
    with pytest.raises(TornCheckpoint, match=r"config\.json"):
        store.verify(manifest)
    hub.fault("GET /_storage/", cut_body_bytes=0, times=50)
    with pytest.raises(StoreError, match="did not answer"):
        store.get(manifest, tmp_path / "second")
    assert not (tmp_path / "second" / "iter_0000019").exists()


def test_removed_checkpoints_are_gone_from_the_branch_and_stay_in_the_history(hub, store, trainer) -> None:
    for number in (9, 19, 29):
        store.put(trainer.sealed(number), trainer.save_dir)
    assert prune_store(store, RUN, STAGE, 1) == [9, 19]
    assert pointed(hub) == [29] and not [path for path in files(hub) if "0000009" in path or "0000019" in path]
    api = HfApi(hub.url, token=TOKEN)
    assert len(api.list_repo_commits(REPO, revision="training")) > 1
    squash_history(URI)
    assert len(api.list_repo_commits(REPO, revision="training")) == 1 and pointed(hub) == [29]


def test_a_sealed_file_can_be_read_in_any_order_a_client_does(tmp_path: Path) -> None:
    content = os.urandom(10_000)
    (tmp_path / "f").write_bytes(content)
    told: list[int] = []
    file = SealedFile(tmp_path / "f", len(content), sha256_of(content), told.append)
    assert file.read(4_000) == content[:4_000]
    file.seek(2_000)
    assert file.read(4_000) == content[2_000:6_000]
    file.seek(0)
    assert file.read() == content and file.read() == b"" and sum(told) == 10_000
    (tmp_path / "f").write_bytes(content[:-1] + b"?")
    file.seek(0)
    with pytest.raises(TornCheckpoint, match="changed after it was sealed"):
        file.read()
    assert file.seek(0, os.SEEK_END) == 10_000 and file.tell() == 10_000
