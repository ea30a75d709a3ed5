"""A process that dies at any file step never makes anyone believe in a checkpoint that is not whole."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plugins.checkpoints.manifest import Manifest, read_local, verify_files
from plugins.checkpoints.restore import restore
from plugins.checkpoints.stores.folder import FolderStore
from plugins.errors import TornCheckpoint
from plugins.slime import layout
from tests.plugins.checkpoints.die_at import rooms_of

RUN, STAGE = "run-1", "sft"


@pytest.fixture
def rooms(tmp_path: Path) -> Callable[..., Iterator[Path]]:
    """Every state an action leaves when it dies: folders with `store/` and `save/`; in the last it got through."""

    def run(action: str, *, at_least: int) -> Iterator[Path]:
        left = rooms_of("folder", action, tmp_path / "room", tmp_path / f"rooms-{action}")
        assert len(left) > at_least
        return iter(left)

    return run


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "room" / "save").mkdir(parents=True)
    (tmp_path / "room" / "store").mkdir()
    return tmp_path / "room"


@pytest.fixture
def inside(room: Path, trainer):
    """The trainer whose save dir is in the room."""
    trainer.save_dir = room / "save"
    return trainer


def check_readable(room: Path, allowed: set[str]) -> Manifest:
    """What the store offers after a death: whole, published, and restorable into a new save dir."""
    store = FolderStore(room / "store")
    latest = store.latest(RUN, STAGE)
    assert latest is not None and latest.lineage.get("mark", "") in allowed
    store.verify(latest)
    for manifest in store.list(RUN, STAGE):
        store.verify(manifest)
    pod = room / "new-pod"
    restored = restore(store, RUN, STAGE, pod)
    assert restored is not None and restored == store.list(RUN, STAGE)[0]
    verify_files(pod, restored)
    layout.check_complete(pod, restored.iteration, kind="slime")
    assert layout.read_tracker(pod) == restored.iteration
    return latest


def test_a_sealer_that_dies_leaves_a_sealed_checkpoint_or_none(rooms, room, inside) -> None:
    inside.save(39, export=True)
    sealed = [read_local(each / "save", 39) for each in rooms("seal", at_least=1)]
    assert sealed[0] is None and sealed[-1] is not None
    for each in filter(None, sealed):
        verify_files(room / "save", each)


def test_a_publisher_that_dies_leaves_the_old_checkpoint_or_the_new_one(rooms, room, inside) -> None:
    store = FolderStore(room / "store")
    store.put(inside.sealed(19, mark="old"), inside.save_dir)
    new = inside.sealed(39, mark="new")
    selected = []
    for each in rooms("put", at_least=30):
        selected.append(check_readable(each, {"old", "new"}).iteration)
        again = FolderStore(each / "store")
        again.put(new, inside.save_dir)  # the next try, or the next attempt, gets through
        assert again.latest(RUN, STAGE) == new
        assert not list((each / "store" / RUN / STAGE / ".incoming").iterdir())
    assert selected == sorted(selected) and set(selected) == {19, 39}


def test_publishing_other_bytes_of_an_iteration_never_loses_that_iteration(rooms, room, inside, second) -> None:
    store = FolderStore(room / "store")
    store.put(second.sealed(19, mark="older"), second.save_dir)
    store.put(second.sealed(39, seed="first", mark="old"), second.save_dir)
    new = inside.sealed(39, seed="second", attempt=2, mark="new")
    for each in rooms("put", at_least=30):
        check_readable(each, {"old", "new"})
        again = FolderStore(each / "store")
        again.put(new, inside.save_dir)
        assert [manifest.lineage["mark"] for manifest in again.list(RUN, STAGE)] == ["new", "older"]
        assert not list((each / "store" / RUN / STAGE).glob("*replaced*"))


def test_a_restore_that_dies_is_put_right_by_the_next_one(rooms, room, inside, second) -> None:
    store = FolderStore(room / "store")
    for number in (19, 39):
        store.put(second.sealed(number), second.save_dir)
    inside.save(39, seed="torn", upto=2)
    inside.save(59, upto=6)  # the tracker names it, and it is not complete
    for each in rooms("restore", at_least=30):
        save_dir = each / "save"
        restored = restore(FolderStore(each / "store"), RUN, STAGE, save_dir)
        assert restored is not None and restored.iteration == 39
        verify_files(save_dir, restored)
        layout.check_complete(save_dir, 39, kind="slime")
        assert layout.read_tracker(save_dir) == 39 and layout.list_iterations(save_dir) == [39]
        assert not (save_dir / ".incoming").exists() and not list(save_dir.glob(".*.partial"))


def test_between_two_steps_of_a_restore_the_tracker_never_names_what_was_not_verified(rooms, room, second) -> None:
    FolderStore(room / "store").put(second.sealed(39), second.save_dir)
    for each in rooms("restore", at_least=30):
        if layout.read_tracker(each / "save") is not None:
            layout.check_complete(each / "save", 39, kind="slime")


@pytest.mark.parametrize("action", ["set_aside", "prune_store"])
def test_taking_checkpoints_out_of_a_store_never_shows_half_of_one(rooms, room, inside, action: str) -> None:
    store = FolderStore(room / "store")
    for number in (9, 19, 39):
        store.put(inside.sealed(number, mark="kept"), inside.save_dir)
    for each in rooms(action, at_least=3):
        latest = check_readable(each, {"kept"})
        assert latest.iteration in ((39, 19) if action == "set_aside" else (39,))


def test_pruning_a_save_dir_never_leaves_half_a_sealed_checkpoint(rooms, room, inside) -> None:
    for number in (9, 19, 39):
        inside.sealed(number)
    for each in rooms("prune_local", at_least=7):
        for number in (9, 19, 39):
            if manifest := read_local(each / "save", number):
                verify_files(each / "save", manifest)
        assert read_local(each / "save", 39)


def test_a_trainer_that_dies_at_any_file_is_never_resumed_from_that_save(room, inside, second) -> None:
    store = FolderStore(room / "store")
    store.put(second.sealed(19), second.save_dir)
    files = len(inside.files(39))
    for upto in range(files):
        save_dir = room / f"save-{upto}"
        inside.save_dir = save_dir
        inside.save(19)
        inside.save(39, upto=upto)
        with pytest.raises(TornCheckpoint):
            layout.check_complete(save_dir, 39, kind="slime")
        restored = restore(store, RUN, STAGE, save_dir)
        assert restored is not None and restored.iteration == 19
        assert layout.list_iterations(save_dir) == [19] and layout.read_tracker(save_dir) == 19
