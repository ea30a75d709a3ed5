"""Sealing: complete or refused, hashed in one pass, nothing half done."""

import errno
import hashlib
import json
import os
import threading
from collections import defaultdict
from pathlib import Path

import pytest

from plugins.checkpoints.disk import Disk
from plugins.checkpoints.manifest import Manifest, local_manifest_file, read_local, verify_files
from plugins.checkpoints.seal import seal
from plugins.errors import StoreError, TornCheckpoint, UserError
from plugins.slime import layout

WHO = {"run_id": "run-1", "stage": "sft", "attempt": 1, "token": 1}


def test_a_seal_lists_every_file_with_its_size_and_hash(trainer) -> None:
    trainer.save(19, export=True)
    manifest = seal(trainer.save_dir, 19, **WHO, export=True, parent="folder:/s/r/sft/iter_0000009", lineage={"a": [1]})
    assert [entry.path for entry in manifest.files] == [
        path.as_posix() for path in layout.checkpoint_files(trainer.save_dir, 19, kind="slime")
    ]
    for entry in manifest.files:
        content = (trainer.save_dir / entry.path).read_bytes()
        assert (entry.size_bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert manifest.export_path == "hf/19" and manifest.versions["python"] and manifest.lineage == {"a": [1]}
    assert read_local(trainer.save_dir, 19) == manifest == Manifest.from_json(manifest.to_json())
    verify_files(trainer.save_dir, manifest)


def test_the_manifest_lies_beside_the_trainers_folder_and_not_in_it(trainer, tree) -> None:
    trainer.save(19)
    before = tree(layout.iteration_dir(trainer.save_dir, 19))
    seal(trainer.save_dir, 19, **WHO)
    assert tree(layout.iteration_dir(trainer.save_dir, 19)) == before
    assert local_manifest_file(trainer.save_dir, 19).exists()


def test_no_part_of_an_unfinished_save_is_sealed(trainer) -> None:
    total = len(trainer.files(19, export=True))
    for upto in range(total):
        trainer.save(19, export=True, upto=upto)
        with pytest.raises(TornCheckpoint):
            seal(trainer.save_dir, 19, **WHO, export=True)
        assert read_local(trainer.save_dir, 19) is None
    trainer.save(19, export=True)
    assert seal(trainer.save_dir, 19, **WHO, export=True).iteration == 19


def test_the_sink_gets_every_byte_once(trainer) -> None:
    trainer.save(19)
    got: dict[str, bytearray] = defaultdict(bytearray)
    lock = threading.Lock()

    def sink(path: str, offset: int, chunk: memoryview) -> None:
        with lock:
            assert offset == len(got[path])
            got[path] += chunk

    manifest = seal(trainer.save_dir, 19, **WHO, sink=sink)
    assert {path: bytes(content) for path, content in got.items()} == {
        entry.path: (trainer.save_dir / entry.path).read_bytes() for entry in manifest.files
    }


@pytest.mark.parametrize("change", ["append", "rewrite", "replace", "add", "remove"])
def test_a_file_that_changes_while_it_is_sealed_is_named_and_nothing_is_sealed(trainer, change: str) -> None:
    trainer.save(19)
    path = layout.iteration_dir(trainer.save_dir, 19) / "__0_1.distcp"
    content = path.read_bytes()

    def meddle(_path: str, _offset: int, _chunk: memoryview) -> None:
        if change == "append":
            path.write_bytes(content + b"x")
        elif change == "rewrite":
            path.write_bytes(content)
            os.utime(path, ns=(1, 1))
        elif change == "replace" and not (trainer.save_dir / "old").exists():
            stat = path.stat()
            path.with_name("new").write_bytes(content)
            os.utime(path.with_name("new"), ns=(stat.st_atime_ns, stat.st_mtime_ns))
            path.rename(trainer.save_dir / "old")  # kept, so that its inode number is not given out again
            path.with_name("new").rename(path)
        elif change == "add":
            path.with_name("__1_0.distcp").touch()
        elif change == "remove":
            path.unlink(missing_ok=True)

    with pytest.raises(TornCheckpoint, match=r"__[01]_\d\.distcp"):
        seal(trainer.save_dir, 19, **WHO, sink=meddle, workers=1)
    assert not local_manifest_file(trainer.save_dir, 19).exists()


def test_an_unfinished_export_is_left_out_unless_it_was_asked_for(trainer) -> None:
    trainer.save(19, export=True)
    (layout.export_dir(trainer.save_dir, 19) / "model.safetensors").unlink()
    with pytest.raises(TornCheckpoint, match="safetensors"):
        seal(trainer.save_dir, 19, **WHO, export=True)
    manifest = seal(trainer.save_dir, 19, **WHO)
    assert manifest.export_path is None
    assert not [entry for entry in manifest.files if entry.path.startswith("hf/")]
    trainer.save(19, export=True)
    assert seal(trainer.save_dir, 19, **WHO).export_path == "hf/19"  # it came later: the rest is as it was sealed


def test_what_was_sealed_once_and_changed_since_is_not_sealed_again(trainer) -> None:
    trainer.sealed(19)
    path = layout.iteration_dir(trainer.save_dir, 19) / "__0_0.distcp"
    path.write_bytes(path.read_bytes().swapcase()[::-1])
    with pytest.raises(TornCheckpoint, match=r"__0_0\.distcp.*attempt 1 sealed"):
        seal(trainer.save_dir, 19, **{**WHO, "attempt": 2, "token": 2})


def test_sealing_again_by_the_next_attempt_names_that_attempt(trainer) -> None:
    trainer.sealed(19)
    manifest = seal(trainer.save_dir, 19, **{**WHO, "attempt": 2, "token": 2})
    assert read_local(trainer.save_dir, 19) == manifest and manifest.attempt == 2


def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half_sealed(trainer, tree) -> None:
    trainer.save(19)
    before = tree(trainer.save_dir)
    for step in ("write", "rename"):

        def full(name: str, path: Path, step: str = step) -> None:
            if name == step:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        with pytest.raises(
            StoreError, match=r"iter_0000019.manifest.json: cannot write .*the disk is full: free space"
        ):
            seal(trainer.save_dir, 19, **WHO, disk=Disk(full))
        assert tree(trainer.save_dir) == before


def test_a_plain_checkpoint_is_sealed_by_its_tracker(trainer) -> None:
    folder = layout.iteration_dir(trainer.save_dir, 4) / "deep" / "er"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"w")
    with pytest.raises(TornCheckpoint, match="not called 4 complete"):
        seal(trainer.save_dir, 4, **WHO, kind="plain")
    layout.write_tracker(trainer.save_dir, 4)
    manifest = seal(trainer.save_dir, 4, **WHO, kind="plain")
    assert [entry.path for entry in manifest.files] == ["iter_0000004/deep/er/weights.bin"]


@pytest.mark.parametrize("name", ["", "Run", "../up", "a" * 41, "-a", "a/b", "a\n"])
def test_names_that_cannot_be_folders_are_the_users_error(trainer, name: str) -> None:
    trainer.save(19)
    for wrong in ({"run_id": name}, {"stage": name}):
        with pytest.raises(UserError, match="use 1 to 40"):
            seal(trainer.save_dir, 19, **{**WHO, **wrong})


def test_what_json_cannot_hold_is_the_users_error(trainer) -> None:
    trainer.save(19)
    with pytest.raises(UserError, match="cannot be described"):
        seal(trainer.save_dir, 19, **WHO, lineage={"where": object()})
    with pytest.raises(UserError, match="attempt"):
        seal(trainer.save_dir, 19, **{**WHO, "attempt": 0})


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "iter_0000019/../../x", "iter_0000019", "iter_0000039/common.pt", "hf/1/config.json",
     "iter_0000019//common.pt", "iter_0000019/./x", layout.TRACKER, "rollout/other.pt", "iter_0000019/a\0b"],
)  # fmt: skip
def test_a_manifest_may_name_files_of_its_iteration_only(trainer, path: str) -> None:
    value = json.loads(trainer.sealed(19).to_json())
    value["files"][0]["path"] = path
    with pytest.raises(TornCheckpoint, match="no file of iteration 19"):
        Manifest.from_json(json.dumps(value), "here")


def test_damaged_manifests_are_torn_and_newer_ones_ask_for_a_newer_trainstack(trainer) -> None:
    text = trainer.sealed(19).to_json()
    for damaged in (
        text[:-20],
        "",
        "[]",
        "3",
        text.replace('"size_bytes": ', '"size_bytes": -'),
        text.replace("1", "z", 1),
    ):
        with pytest.raises(TornCheckpoint, match="here"):
            Manifest.from_json(damaged, "here")
    with pytest.raises(StoreError, match="install a newer one") as caught:
        Manifest.from_json(text.replace('"format": 1', '"format": 2'), "here")
    assert not isinstance(caught.value, TornCheckpoint)
