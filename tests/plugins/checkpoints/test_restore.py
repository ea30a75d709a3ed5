"""Restore: the newest that is whole, from the nearest place, and nothing newer left behind."""

import logging
from pathlib import Path

import pytest

from plugins.checkpoints.disk import Disk
from plugins.checkpoints.manifest import local_manifest_file, verify_files
from plugins.checkpoints.restore import restore
from plugins.checkpoints.stores.folder import FolderStore
from plugins.errors import StoreError
from plugins.slime import layout

RUN, STAGE = "run-1", "sft"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def damage(store: FolderStore, iteration: int, name: str = "common.pt") -> None:
    folder = f"iter_{iteration:07d}"
    path = store.root / RUN / STAGE / folder / folder / name
    path.write_bytes(bytes(reversed(path.read_bytes())))


def quarantined(save_dir: Path) -> set[str]:
    return {path.name for path in (save_dir / ".quarantine").glob("*/*")}


def test_an_empty_store_and_an_empty_save_dir_are_a_cold_start(store, tmp_path) -> None:
    assert restore(store, RUN, STAGE, tmp_path / "pod") is None
    assert list((tmp_path / "pod").iterdir()) == []


def test_the_newest_checkpoint_is_restored_on_a_new_pod(store, trainer, tmp_path) -> None:
    for number in (19, 39):
        store.put(trainer.sealed(number, export=True), trainer.save_dir)
    restored = restore(store, RUN, STAGE, tmp_path / "pod")
    assert restored == store.latest(RUN, STAGE) and restored.iteration == 39
    assert layout.read_tracker(tmp_path / "pod") == 39
    layout.check_complete(tmp_path / "pod", 39, kind="slime", export=True)


@pytest.mark.parametrize("broken", [[39], [39, 29], [19]])
def test_a_broken_checkpoint_is_set_aside_and_the_one_before_is_taken(store, trainer, tmp_path, broken) -> None:
    for number in (19, 29, 39):
        store.put(trainer.sealed(number), trainer.save_dir)
    for number in broken:
        damage(store, number)
    expected = max({19, 29, 39} - set(broken))
    restored = restore(store, RUN, STAGE, tmp_path / "pod")
    assert restored and restored.iteration == expected == layout.read_tracker(tmp_path / "pod")
    aside = {path.name for path in (store.root / RUN / STAGE).glob("*.broken-*")}
    assert aside == {f"iter_{number:07d}.broken-1" for number in broken if number > expected}
    assert store.latest(RUN, STAGE).iteration == expected


def test_when_all_are_broken_it_is_a_cold_start_that_is_said_aloud(store, trainer, tmp_path, caplog) -> None:
    store.put(trainer.sealed(19), trainer.save_dir)
    damage(store, 19)
    with caplog.at_level(logging.WARNING):
        assert restore(store, RUN, STAGE, tmp_path / "pod") is None
    assert "none of 1 checkpoints could be restored" in caplog.text


def test_a_store_that_cannot_be_written_still_gives_the_one_before(store, trainer, tmp_path) -> None:
    for number in (19, 39):
        store.put(trainer.sealed(number), trainer.save_dir)
    damage(store, 39)

    def read_only(_step: str, path: Path) -> None:
        if path.is_relative_to(store.root):
            raise OSError(30, "Read-only file system", str(path))

    restored = restore(FolderStore(store.root, disk=Disk(read_only)), RUN, STAGE, tmp_path / "pod")
    assert restored and restored.iteration == 19


def test_a_sealed_local_copy_that_verifies_is_used_without_a_download(store, trainer) -> None:
    store.put(trainer.sealed(39), trainer.save_dir)
    (trainer.save_dir / layout.TRACKER).unlink()
    steps: list[str] = []
    disk = Disk(lambda step, _path: steps.append(step))
    restored = restore(FolderStore(store.root, disk=disk), RUN, STAGE, trainer.save_dir, disk=disk)
    assert restored and restored.iteration == 39 and "create" not in steps
    assert layout.read_tracker(trainer.save_dir) == 39


def test_a_local_copy_that_was_damaged_is_replaced_by_the_stored_one(store, trainer) -> None:
    manifest = trainer.sealed(39)
    store.put(manifest, trainer.save_dir)
    path = layout.iteration_dir(trainer.save_dir, 39) / "__0_0.distcp"
    path.write_bytes(bytes(reversed(path.read_bytes())))
    assert restore(store, RUN, STAGE, trainer.save_dir) == manifest
    verify_files(trainer.save_dir, manifest)
    assert "iter_0000039" in quarantined(trainer.save_dir)


def test_a_sealed_local_checkpoint_newer_than_the_store_is_taken(store, trainer) -> None:
    store.put(trainer.sealed(19), trainer.save_dir)
    newer = trainer.sealed(39)
    assert restore(store, RUN, STAGE, trainer.save_dir) == newer
    assert layout.list_iterations(trainer.save_dir) == [19, 39]


def test_a_local_checkpoint_helps_when_the_stored_one_is_broken(store, trainer) -> None:
    store.put(trainer.sealed(19), trainer.save_dir)
    local = trainer.sealed(29)
    store.put(trainer.sealed(39), trainer.save_dir)
    damage(store, 39)
    (layout.iteration_dir(trainer.save_dir, 39) / "common.pt").unlink()
    assert restore(store, RUN, STAGE, trainer.save_dir) == local


def test_a_local_checkpoint_of_a_superseded_attempt_is_not_taken(store, trainer, second) -> None:
    trainer.sealed(59)
    store.put(second.sealed(49, attempt=2), second.save_dir)
    restored = restore(store, RUN, STAGE, trainer.save_dir)
    assert restored and (restored.iteration, restored.attempt) == (49, 2)
    assert layout.list_iterations(trainer.save_dir) == [49]
    assert "iter_0000059" in quarantined(trainer.save_dir)


def test_everything_newer_is_quarantined_and_nothing_is_lost(store, trainer, tree) -> None:
    store.put(trainer.sealed(19, export=True), trainer.save_dir)
    trainer.save(39, upto=6, export=True)
    trainer.save(59, export=True)
    content = set(tree(trainer.save_dir).values())
    restored = restore(store, RUN, STAGE, trainer.save_dir)
    assert restored and restored.iteration == 19
    layout.check_complete(trainer.save_dir, 19, kind="slime", export=True)
    assert layout.list_iterations(trainer.save_dir) == [19] and layout.read_tracker(trainer.save_dir) == 19
    assert quarantined(trainer.save_dir) == {"iter_0000039", "iter_0000059", "rollout", "hf", layout.TRACKER}
    left = {path.name for path in (trainer.save_dir / "rollout").iterdir()}
    assert left == {"global_dataset_state_dict_19.pt"}
    assert {path.name for path in (trainer.save_dir / "hf").iterdir()} == {"19"}
    assert content <= set(tree(trainer.save_dir).values())


@pytest.mark.parametrize("tracker", ["59", "", "release", "9"])
def test_a_stale_tracker_is_put_right(store, trainer, tracker: str) -> None:
    store.put(trainer.sealed(19), trainer.save_dir)
    (trainer.save_dir / layout.TRACKER).write_text(tracker)
    restored = restore(store, RUN, STAGE, trainer.save_dir)
    assert restored and layout.read_tracker(trainer.save_dir) == 19
    assert quarantined(trainer.save_dir) == {layout.TRACKER}


def test_a_cold_start_leaves_no_unsealed_checkpoint_to_start_from(store, trainer) -> None:
    trainer.save(19, export=True)
    assert restore(store, RUN, STAGE, trainer.save_dir) is None
    assert layout.read_tracker(trainer.save_dir) is None and layout.list_iterations(trainer.save_dir) == []
    trainer.save(19, seed="new", export=True)
    assert restore(store, RUN, STAGE, trainer.save_dir) is None  # a second time: a second folder
    assert len(list((trainer.save_dir / ".quarantine").iterdir())) == 2


def test_what_was_sealed_for_another_run_or_stage_is_not_restored(store, trainer) -> None:
    trainer.sealed(19)
    assert restore(store, RUN, "rl", trainer.save_dir) is None
    assert not local_manifest_file(trainer.save_dir, 19).exists()


def test_a_second_restore_changes_nothing(store, trainer, tree, tmp_path) -> None:
    store.put(trainer.sealed(19), trainer.save_dir)
    pod = tmp_path / "pod"
    first = restore(store, RUN, STAGE, pod)
    before = tree(pod)
    assert restore(store, RUN, STAGE, pod) == first and tree(pod) == before


def test_a_save_dir_that_cannot_be_made_is_a_clear_error(store, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/save: cannot make the folder .*name another folder"):
        restore(store, RUN, STAGE, tmp_path / "file" / "save")
