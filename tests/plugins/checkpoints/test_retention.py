"""Retention: the newest stay, milestones stay, and only what a store has may leave the local disk."""

from pathlib import Path

import pytest

from plugins.checkpoints.retention import prune_local, prune_store
from plugins.checkpoints.stores.folder import FolderStore
from plugins.errors import UserError
from plugins.slime import layout

RUN, STAGE = "run-1", "sft"


def test_only_durable_checkpoints_leave_the_save_dir_with_all_that_belongs_to_them(trainer) -> None:
    for number in (9, 19, 29, 39):
        trainer.sealed(number, export=True)
    assert prune_local(trainer.save_dir, 1, {9, 29, 39}) == [9, 29]
    assert layout.list_iterations(trainer.save_dir) == [19, 39]
    for folder in ("hf", "rollout"):
        assert len(list((trainer.save_dir / folder).iterdir())) == 2
    assert {path.name for path in trainer.save_dir.glob("*.manifest.json")} == {
        "iter_0000019.manifest.json",
        "iter_0000039.manifest.json",
    }
    for number in (19, 39):
        layout.check_complete(trainer.save_dir, number, kind="slime", export=True)


def test_the_iteration_of_the_tracker_stays(trainer) -> None:
    for number in (9, 19, 29):
        trainer.sealed(number)
    layout.write_tracker(trainer.save_dir, 19)  # an asynchronous save: 29 is being written
    assert prune_local(trainer.save_dir, 1, {9, 19, 29}) == [9]
    (trainer.save_dir / layout.TRACKER).write_text("")  # being written this moment
    assert prune_local(trainer.save_dir, 1, {9, 19, 29}) == []


def test_fewer_than_are_kept_is_nothing_to_do(trainer, tmp_path) -> None:
    trainer.sealed(9)
    assert prune_local(trainer.save_dir, 3, {9}) == []
    assert prune_local(tmp_path / "absent", 3, {9}) == []


def test_a_store_keeps_the_newest_and_the_milestones(trainer, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    for number in (9, 19, 29, 39):
        store.put(trainer.sealed(number), trainer.save_dir)
    assert prune_store(store, RUN, STAGE, 2, milestones={9}) == [19]
    assert [manifest.iteration for manifest in store.list(RUN, STAGE)] == [39, 29, 9]
    for manifest in store.list(RUN, STAGE):
        store.verify(manifest)
    assert prune_store(store, RUN, STAGE, 1) == [9, 29]
    assert store.latest(RUN, STAGE).iteration == 39


@pytest.mark.parametrize("keep", [0, -1])
def test_the_newest_checkpoint_cannot_be_given_up(trainer, tmp_path, keep: int) -> None:
    with pytest.raises(UserError, match="at least the newest"):
        prune_local(trainer.save_dir, keep, set())
    with pytest.raises(UserError, match="at least the newest"):
        prune_store(FolderStore(tmp_path / "store"), RUN, STAGE, keep)
