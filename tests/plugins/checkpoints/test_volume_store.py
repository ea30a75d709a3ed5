"""What is special about a volume: files written once and in order, and a state that survives a cut write."""

import ast
import errno
import inspect
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from plugins.checkpoints.disk import sha256_of
from plugins.checkpoints.stores import volume, volume_files
from plugins.checkpoints.stores.backend import Change, LostSwap, Source
from plugins.checkpoints.stores.open import open_store
from plugins.checkpoints.stores.volume import VolumeBackend
from plugins.errors import StoreError, TornCheckpoint, UserError
from tests.plugins.checkpoints.die_at import rooms_of
from tests.plugins.checkpoints.store_kits import RUN, STAGE, VolumeKit

KEY = f"{RUN}/{STAGE}/state.json"


@pytest.fixture
def kit(tmp_path: Path) -> VolumeKit:
    return VolumeKit(tmp_path)


def swap(backend: VolumeBackend, text: str, tag: str | None) -> None:
    backend.publish(Change("a test", KEY, json.dumps({"text": text}), tag))


def text_of(backend: VolumeBackend) -> str:
    found = backend.read(KEY)
    assert found
    return str(json.loads(found[0])["text"])


def numbers(kit: VolumeKit) -> list[str]:
    return sorted(path.name for path in (kit.root / RUN / STAGE).glob("state*"))


def test_a_state_is_a_new_file_and_the_last_two_stay(kit) -> None:
    backend = kit.backend()
    tag = None
    for text in ("a", "b", "c", "d"):
        swap(backend, text, tag)
        found = backend.read(KEY)
        assert found and text_of(kit.backend()) == text
        tag = found[1]
    assert numbers(kit) == ["state.3.json", "state.4.json"]
    with pytest.raises(LostSwap):
        swap(backend, "e", None)
    with pytest.raises(LostSwap):
        swap(backend, "e", "3")
    assert text_of(backend) == "d"


@pytest.mark.parametrize("torn", [b"", b'{"text": "c', b"\0" * 40])
def test_a_write_that_was_cut_never_loses_the_state_before(kit, torn: bytes) -> None:
    naps: list[float] = []
    backend = VolumeBackend(kit.root, sleep=naps.append)
    swap(backend, "a", None)
    swap(backend, "b", "1")
    (kit.root / RUN / STAGE / "state.3.json").write_bytes(torn)
    assert text_of(backend) == "b" and naps == [1.0]  # its writer may not be through yet
    found = backend.read(KEY)
    assert found
    swap(backend, "d", found[1])
    assert text_of(backend) == "d" and numbers(kit) == ["state.2.json", "state.4.json"]


def test_a_torn_state_that_turns_out_whole_is_not_written_over(kit) -> None:
    backend = kit.backend()
    swap(backend, "a", None)
    path = kit.root / RUN / STAGE / "state.2.json"
    path.write_bytes(b"{")
    found = backend.read(KEY)
    assert found and json.loads(found[0]) == {"text": "a"}
    path.write_text('{"text": "slow, but through"}')
    with pytest.raises(LostSwap):
        swap(backend, "b", found[1])
    assert text_of(backend) == "slow, but through"


@pytest.mark.parametrize("removed", [True, False])
def test_a_writer_that_was_overtaken_while_it_wrote_finds_out(kit, removed: bool) -> None:
    def keeps(what: str) -> None:
        if what.startswith("remove ") and not removed:
            raise StoreError("the file of the one that was overtaken stays")

    others: list[str] = []

    def overtake(what: str) -> None:
        if what.startswith("append ") and what.endswith("state.2.json") and not others:
            others.append(what)
            backend = kit.backend(keeps)
            found = backend.read(KEY)  # sees the other's file, empty as yet, and takes it for torn
            assert found
            swap(backend, "overtook", found[1])

    swap(kit.backend(), "a", None)
    with pytest.raises(LostSwap):
        swap(kit.backend(overtake), "b", "1")
    assert others and text_of(kit.backend()) == "overtook"


def test_files_are_written_in_order_under_their_final_names() -> None:
    """No renames, no locks, no writes at offsets: a mount of object storage has none of them."""
    used = set()
    for module in (volume, volume_files):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
    assert not used & {"rename", "replace", "flock", "pwrite", "seek", "lseek", "truncate", "link", "symlink_to"}


def test_a_mount_without_fsync_is_good_enough_and_a_failing_one_is_not(kit, trainer, monkeypatch) -> None:
    manifest = trainer.sealed(19)
    real, answer = os.fsync, [errno.EINVAL]

    def fsync(fd: int) -> None:
        if str(kit.root) in str(Path(f"/proc/self/fd/{fd}").readlink()):
            raise OSError(answer[0], os.strerror(answer[0]))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    kit.open().put(manifest, trainer.save_dir)
    kit.open().verify(manifest)
    answer[0] = errno.EIO
    with pytest.raises(StoreError, match="the disk itself failed"):
        kit.open().put(trainer.sealed(39), trainer.save_dir)
    assert [one.iteration for one in kit.open().list(RUN, STAGE)] == [19]


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "owner and rights"), (errno.EIO, "disk itself")]
)
def test_a_volume_that_fails_at_any_step_is_one_clear_error_and_hurts_nothing(kit, trainer, code, remedy) -> None:
    kit.open().put(trainer.sealed(19), trainer.save_dir)
    manifest, failures = trainer.sealed(39), 0
    for at in range(1000):
        left = [at]

        def fail(what: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(code, os.strerror(code), what)

        try:
            kit.open(fail).put(manifest, trainer.save_dir)
        except StoreError as error:
            assert remedy in str(error) and str(kit.root) in str(error)
            failures += 1
        else:
            break
        latest = kit.open().latest(RUN, STAGE)
        assert latest and latest.iteration in (19, 39)
    assert failures >= 4
    kit.open().verify(manifest)


def test_a_volume_that_takes_less_than_it_was_given_is_found_out(kit, trainer) -> None:
    def shorten(what: str) -> None:
        if what.startswith("create ") and "manifest" in what:
            common = kit.root / RUN / STAGE / "iter_0000019.a1" / "iter_0000019" / "common.pt"
            common.write_bytes(common.read_bytes()[:-1])

    manifest = trainer.sealed(19)
    kit.open(shorten).put(manifest, trainer.save_dir)
    assert kit.open().latest(RUN, STAGE) is None
    with pytest.raises(TornCheckpoint, match=r"common\.pt: has \d+ bytes"):
        kit.open().get(manifest, trainer.save_dir)
    kit.open().put(manifest, trainer.save_dir)
    kit.open().verify(manifest)


def test_large_files_have_a_note_of_their_hash_so_that_nothing_is_read_to_find_out(kit, trainer, tmp_path) -> None:
    big = trainer.save_dir / "iter_0000019" / "__0_1.distcp"
    trainer.save(19)
    content = os.urandom(3 * 2**20)

    big.write_bytes(content)
    source = Source(f"{RUN}/{STAGE}/iter_0000019.a1/x", big, len(content), sha256_of(content))
    writes: list[str] = []
    for text, count in (("a", 3), ("b", 0)):
        writes.clear()
        found = kit.backend().read(KEY)
        backend = VolumeBackend(kit.root, before=lambda step, path: writes.append(f"{step} {path.name}"))
        backend.publish(Change("t", KEY, json.dumps({"text": text}), found and found[1], (source,)))
        assert writes.count("append x") == (1 if count else 0)
    folder = kit.root / RUN / STAGE / "iter_0000019.a1"
    checked = subprocess.run(["sha256sum", "-c", ".x.sha256"], cwd=folder, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert {item.key.rpartition("/")[2] for item in backend.list(f"{RUN}/")} >= {"x"}
    assert ".x.sha256" not in {item.key.rpartition("/")[2] for item in backend.list(f"{RUN}/")}


def test_the_check_says_what_is_missing(tmp_path: Path, caplog) -> None:
    (tmp_path / "mnt").mkdir()
    for path in (tmp_path / "mnt", tmp_path / "mnt" / "new"):
        VolumeBackend(path).check()
        assert not list(path.iterdir()) or path.name == "mnt"
    assert "no volume is mounted there" in caplog.text or tmp_path.stat().st_dev != Path("/").stat().st_dev
    with pytest.raises(StoreError, match=r"no such folder: is the volume attached\?.*`pod\.volume`"):
        VolumeBackend(tmp_path / "nowhere" / "deeper").check()
    with pytest.raises(StoreError, match=r"`pod\.volume`"):
        VolumeBackend(Path("/no-such-mount")).check()
    assert not Path("/no-such-mount").exists()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"a file stands where a folder is needed|no such folder"):
        VolumeBackend(tmp_path / "file").check()

    def full(step: str, _path: Path) -> None:
        if step == "append":
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match="disk is full"):
        VolumeBackend(tmp_path / "mnt", before=full).check()
    assert not list((tmp_path / "mnt").glob(".probe*"))


def test_a_uri_opens_and_opens_again() -> None:
    assert open_store("volume:").uri == open_store("volume:/mnt").uri == "volume:/mnt"
    assert open_store(open_store("volume:/mnt/some/folder").uri).uri == "volume:/mnt/some/folder"
    with pytest.raises(UserError, match="names no absolute path"):
        open_store("volume:somewhere")


@pytest.fixture
def rooms(tmp_path: Path, trainer) -> Any:
    """Every state that an action leaves when its process dies; in the last one it got through."""
    (tmp_path / "room" / "save").mkdir(parents=True)
    (tmp_path / "room" / "store").mkdir()
    trainer.save_dir = tmp_path / "room" / "save"

    def run(action: str) -> list[Path]:
        return rooms_of("volume", action, tmp_path / "room", tmp_path / "rooms")

    return run


@pytest.mark.parametrize("action", ["put", "feed", "delete"])
def test_a_process_that_dies_at_any_step_leaves_the_old_checkpoint_or_the_new_one(
    rooms, trainer, second, tmp_path, action: str
) -> None:
    store = open_store(f"volume:{tmp_path / 'room' / 'store'}")
    store.put(second.sealed(19, mark="old"), second.save_dir)
    new = trainer.sealed(39, mark="new")
    if action == "delete":
        store.put(new, trainer.save_dir)
    left = rooms(action)
    assert len(left) > (5 if action == "delete" else 15)
    seen = []
    for room in left:
        kit = VolumeKit.__new__(VolumeKit)
        kit.root = room / "store"
        opened = kit.open()
        found = opened.list(RUN, STAGE)
        for manifest in found:
            opened.verify(manifest)
        seen.append([manifest.iteration for manifest in found])
        kit.open().put(new, trainer.save_dir)  # the next try gets through, whatever was left
        kit.open().verify(new)
        assert [manifest.iteration for manifest in kit.open().list(RUN, STAGE)] == [39, 19]
        shutil.rmtree(room)
    order = [[39, 19], [19]] if action == "delete" else [[19], [39, 19]]
    assert seen[0] == order[0] and seen[-1] == order[1] and seen == sorted(seen, key=order.index)
