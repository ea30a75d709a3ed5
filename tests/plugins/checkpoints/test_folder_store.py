"""What is special about the folder store beside its contract: where things lie, its order, its lock, its disk."""

import errno
import json
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from plugins.checkpoints.disk import Disk
from plugins.checkpoints.manifest import Manifest, verify_files
from plugins.checkpoints.stores.folder import FolderStore
from plugins.checkpoints.stores.open import open_store
from plugins.errors import Fenced, StoreError, UserError

RUN, STAGE = "run-1", "sft"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def shelf(store: FolderStore) -> Path:
    return store.root / RUN / STAGE


def no_leftovers(store: FolderStore) -> None:
    names = {path.name for path in shelf(store).iterdir()}
    assert not [name for name in names if ".partial" in name or "replaced" in name or "deleted" in name]
    assert not list((shelf(store) / ".incoming").iterdir())


def test_the_store_lies_as_documented(store, trainer) -> None:
    manifest = trainer.sealed(19, export=True)
    assert store.put(manifest, trainer.save_dir) == f"folder:{store.root}/run-1/sft/iter_0000019"
    place = shelf(store) / "iter_0000019"
    assert {path.name for path in place.iterdir()} == {"manifest.json", "iter_0000019", "rollout", "hf"}
    assert (place / "hf" / "19" / "config.json").exists()
    assert json.loads((shelf(store) / "claim.json").read_text()) == {"token": 1}
    assert json.loads((shelf(store) / "latest.json").read_text()) == {
        "iteration": 19,
        "token": 1,
        "attempt": 1,
        "manifest": manifest.digest(),
    }
    no_leftovers(store)


def test_the_pointer_is_written_after_the_manifest_and_that_after_the_data(store, trainer) -> None:
    seen: list[str] = []

    def look(step: str, path: Path) -> None:
        if path.name in ("latest.json", "manifest.json") or step == "append":
            seen.append(path.name if step != "append" else "data")
        if path.name == "latest.json":  # about to become visible: everything it names must be there
            verify_files(shelf(store) / "iter_0000019", manifest)

    manifest = trainer.sealed(19)
    FolderStore(store.root, disk=Disk(look)).put(manifest, trainer.save_dir)
    assert [name for at, name in enumerate(seen) if name not in seen[:at]] == ["data", "manifest.json", "latest.json"]
    assert max(at for at, name in enumerate(seen) if name == "data") < seen.index("manifest.json")


def test_an_attempt_that_is_superseded_while_it_copies_publishes_nothing(store, trainer) -> None:
    store.put(trainer.sealed(19), trainer.save_dir)
    claimed = threading.Event()

    def take_over(step: str, _path: Path) -> None:
        if step == "append" and not claimed.is_set():
            claimed.set()
            FolderStore(store.root).claim(RUN, STAGE, 2)  # needs no waiting: copying holds no lock

    with pytest.raises(Fenced):
        FolderStore(store.root, disk=Disk(take_over)).put(trainer.sealed(39), trainer.save_dir)
    assert [manifest.iteration for manifest in store.list(RUN, STAGE)] == [19]
    no_leftovers(store)


def test_writers_that_race_leave_every_checkpoint_whole_and_the_pointer_on_the_newest(store, trainer) -> None:
    manifests = [trainer.sealed(number) for number in (9, 19, 29, 39)]
    start = threading.Barrier(2 * len(manifests))
    errors: list[BaseException] = []

    def write(manifest: Manifest) -> None:
        start.wait(timeout=30)
        try:
            FolderStore(store.root).put(manifest, trainer.save_dir)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(manifest,)) for manifest in manifests * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors
    assert store.list(RUN, STAGE) == manifests[::-1]
    for manifest in manifests:
        store.verify(manifest)
    assert json.loads((shelf(store) / "latest.json").read_text())["iteration"] == 39
    store.put(manifests[0], trainer.save_dir)
    no_leftovers(store)


def test_set_aside_keeps_the_data_and_the_reason_and_the_pointer_goes_back(store, trainer) -> None:
    old, new = (trainer.sealed(number) for number in (19, 39))
    for manifest in (old, new):
        store.put(manifest, trainer.save_dir)
    store.set_aside(new, "hash of common.pt is wrong")
    store.set_aside(new, "again")
    assert store.list(RUN, STAGE) == [old] and store.latest(RUN, STAGE) == old
    broken = shelf(store) / "iter_0000039.broken-1"
    assert json.loads((broken / "broken.json").read_text())["reason"] == "hash of common.pt is wrong"
    assert (broken / "iter_0000039" / "common.pt").exists()
    assert json.loads((shelf(store) / "latest.json").read_text())["iteration"] == 19
    store.put(new, trainer.save_dir)
    store.set_aside(new, "once more")
    assert (shelf(store) / "iter_0000039.broken-2").exists()


def test_the_pointer_goes_with_the_last_checkpoint(store, trainer) -> None:
    manifest = trainer.sealed(19)
    store.put(manifest, trainer.save_dir)
    store.delete(manifest)
    assert not (shelf(store) / "latest.json").exists()
    no_leftovers(store)


def test_a_manifest_that_is_damaged_or_of_another_stage_is_left_out(store, trainer) -> None:
    for number in (9, 19, 29, 39):
        store.put(trainer.sealed(number), trainer.save_dir)
    text = (shelf(store) / "iter_0000039" / "manifest.json").read_text()
    (shelf(store) / "iter_0000039" / "manifest.json").write_text(text[:-30])
    (shelf(store) / "iter_0000029" / "manifest.json").write_text(text)
    other = shelf(store) / "iter_0000019" / "manifest.json"
    other.write_text(other.read_text().replace('"sft"', '"rl"'))
    assert [manifest.iteration for manifest in store.list(RUN, STAGE)] == [9]
    store.put(trainer.sealed(39), trainer.save_dir)  # what could not be read is kept aside, not overwritten
    assert (shelf(store) / "iter_0000039.broken-1").exists()
    assert store.latest(RUN, STAGE).iteration == 39


def test_a_manifest_of_a_newer_trainstack_is_an_error_and_not_passed_over(store, trainer) -> None:
    store.put(trainer.sealed(19), trainer.save_dir)
    path = shelf(store) / "iter_0000019" / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(StoreError, match="install a newer one"):
        store.list(RUN, STAGE)


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "owner and rights"), (errno.EROFS, "read-only")]
)
def test_a_disk_that_fails_at_any_step_is_one_clear_error_and_hurts_nothing(
    store, trainer, tmp_path, code, remedy
) -> None:
    store.put(trainer.sealed(19), trainer.save_dir)
    manifest = trainer.sealed(39)
    failures = 0
    for at in range(1000):
        left = [at]

        def fail(_step: str, path: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(code, os.strerror(code), str(path))

        try:
            FolderStore(store.root, disk=Disk(fail, chunk_bytes=512), workers=1).put(manifest, trainer.save_dir)
        except StoreError as error:
            assert remedy in str(error) and str(store.root) in str(error)
            failures += 1
        else:
            break
        latest = store.latest(RUN, STAGE)
        assert latest and latest.iteration in (19, 39)
        store.verify(latest)
    assert failures > 20
    store.put(manifest, trainer.save_dir)
    assert store.latest(RUN, STAGE) == manifest
    no_leftovers(store)


def test_a_full_disk_while_fetching_leaves_the_save_dir_as_it_was(store, trainer, tmp_path, tree) -> None:
    manifest = trainer.sealed(19)
    store.put(manifest, trainer.save_dir)

    def full(step: str, path: Path) -> None:
        if step == "append" and path.name == "common.pt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StoreError, match="disk is full"):
        FolderStore(store.root, disk=Disk(full)).get(manifest, tmp_path / "pod")
    assert tree(tmp_path / "pod") == {}


def test_a_store_that_cannot_be_written_is_found_by_the_check(tmp_path: Path) -> None:
    good = FolderStore(tmp_path / "a" / "b")
    good.check()
    assert list(good.root.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        FolderStore(tmp_path / "file").check()
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        FolderStore(tmp_path / "file" / "deeper").check()


def test_a_store_without_rights_is_found_by_the_check(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    if os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(StoreError, match="owner and rights"):
        FolderStore(tmp_path / "closed" / "store").check()


def test_a_store_that_is_held_by_another_process_says_so(store, trainer) -> None:
    manifest = trainer.sealed(19)
    store.claim(RUN, STAGE, 1)
    from plugins.checkpoints.stores.lock import folder_lock

    impatient = FolderStore(store.root, lock_timeout_s=0.05)
    with folder_lock(shelf(store), 1.0), pytest.raises(StoreError, match=r"another process has held .* 0\.05 s"):
        impatient.put(manifest, trainer.save_dir)
    impatient.put(manifest, trainer.save_dir)


def test_nobody_else_may_write_what_we_store_whatever_the_umask(store, trainer, tmp_path) -> None:
    before = os.umask(0)
    try:
        manifest = trainer.sealed(19, export=True)
        store.put(manifest, trainer.save_dir)
        store.get(manifest, tmp_path / "pod")
    finally:
        os.umask(before)
    for root in (store.root, tmp_path / "pod"):
        for path in [root, *root.rglob("*")]:
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o755 if path.is_dir() else 0o644), path


def test_the_copies_of_dead_writers_are_cleared_and_those_of_living_ones_are_not(store, trainer) -> None:
    dead = shelf(store) / ".incoming" / "iter_0000019-dead"
    dead.mkdir(parents=True)
    (dead / "half").write_bytes(b"x")
    (shelf(store) / ".latest.json.0000.partial").touch()
    (shelf(store) / "iter_0000009.deleted-1").mkdir()
    inside: list[Path] = []

    def another_writer(step: str, path: Path) -> None:
        if step == "fsync" and not inside:
            inside.append(path)
            FolderStore(store.root).put(trainer_39, trainer.save_dir)
            assert path.exists()

    trainer_39 = trainer.sealed(39)
    FolderStore(store.root, disk=Disk(another_writer), workers=1).put(trainer.sealed(19), trainer.save_dir)
    assert [manifest.iteration for manifest in store.list(RUN, STAGE)] == [39, 19]
    no_leftovers(store)


@pytest.mark.parametrize("uri", ["folder:{}", "{}", "folder://{}"])
def test_a_folder_uri_opens_and_opens_again(tmp_path: Path, uri: str) -> None:
    opened = open_store(uri.format(tmp_path))
    assert Path(open_store(opened.uri).uri.removeprefix("folder:")) == Path(opened.uri.removeprefix("folder:"))
    opened.check()


def test_a_home_path_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/store").uri == f"folder:{tmp_path}/store"


@pytest.mark.parametrize(
    "uri", ["", "folder:", "folder:relative/path", "folder://host/x", "gs://bucket/x", "ftp:/x", "volume:relative"]
)
def test_an_unknown_store_is_the_users_error_and_names_what_exists(uri: str) -> None:
    with pytest.raises(UserError, match="folder:/absolute/path"):
        open_store(uri)


def test_a_store_that_moved_with_its_folder_still_reads(store, trainer, tmp_path) -> None:
    manifest = trainer.sealed(19)
    store.put(manifest, trainer.save_dir)
    shutil.move(store.root, tmp_path / "elsewhere")
    FolderStore(tmp_path / "elsewhere").verify(manifest)
