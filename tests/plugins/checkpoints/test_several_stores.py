"""Several stores as one: what any of them has counts, and one that is down or damaged hides nothing."""

from pathlib import Path

import pytest

from plugins.checkpoints.restore import restore
from plugins.checkpoints.stores.folder import FolderStore
from plugins.checkpoints.stores.several import SeveralStores
from plugins.errors import Fenced, StoreError, TornCheckpoint
from plugins.slime import layout

RUN, STAGE = "run-1", "sft"


class Down(FolderStore):
    """A store that can be switched off."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.up = True

    def _shelf(self, run_id: str, stage: str):
        if not self.up:
            raise StoreError(f"{self.uri} does not answer")
        return super()._shelf(run_id, stage)


@pytest.fixture
def near(tmp_path: Path) -> Down:
    return Down(tmp_path / "near")


@pytest.fixture
def far(tmp_path: Path) -> Down:
    return Down(tmp_path / "far")


@pytest.fixture
def both(near: Down, far: Down) -> SeveralStores:
    return SeveralStores([near, far])


def damage(store: FolderStore, iteration: int) -> None:
    folder = f"iter_{iteration:07d}"
    path = store.root / RUN / STAGE / folder / folder / "common.pt"
    path.write_bytes(bytes(reversed(path.read_bytes())))


def test_the_newest_is_found_wherever_it_is(both, near, far, trainer) -> None:
    old, new = trainer.sealed(19), trainer.sealed(39)
    near.put(old, trainer.save_dir)
    for one in (old, new):
        far.put(one, trainer.save_dir)
    assert both.list(RUN, STAGE) == [new, old]
    assert (
        both.latest(RUN, STAGE) == new and both.uri_of(new) == far.uri_of(new) and both.uri_of(old) == near.uri_of(old)
    )


def test_restore_takes_the_far_copy_when_the_near_one_is_damaged(both, near, far, trainer, tmp_path) -> None:
    for number in (19, 39):
        both.put(trainer.sealed(number), trainer.save_dir)
    damage(near, 39)
    restored = restore(both, RUN, STAGE, tmp_path / "pod")
    assert restored and restored.iteration == 39 == layout.read_tracker(tmp_path / "pod")
    assert [one.iteration for one in near.list(RUN, STAGE)] == [19], "the damaged copy is set aside where it is"
    assert [one.iteration for one in far.list(RUN, STAGE)] == [39, 19]


def test_restore_takes_the_one_before_when_every_copy_is_damaged(both, near, far, trainer, tmp_path) -> None:
    for number in (19, 39):
        both.put(trainer.sealed(number), trainer.save_dir)
    damage(near, 39)
    damage(far, 39)
    restored = restore(both, RUN, STAGE, tmp_path / "pod")
    assert restored and restored.iteration == 19


def test_a_store_that_is_down_is_passed_over_and_named(both, near, far, trainer) -> None:
    one = trainer.sealed(19)
    both.put(one, trainer.save_dir)
    near.up = False
    assert both.list(RUN, STAGE) == [one] and both.silent == [near.uri]
    both.claim(RUN, STAGE, 2)
    far.up = False
    with pytest.raises(StoreError, match="does not answer"):
        both.list(RUN, STAGE)


def test_an_attempt_is_fenced_when_any_store_knows_a_newer_one(both, near, far) -> None:
    far.claim(RUN, STAGE, 5)
    with pytest.raises(Fenced):
        both.claim(RUN, STAGE, 4)


def test_the_line_that_a_later_attempt_left_behind_is_never_restored(
    both, near, far, trainer, second, tmp_path
) -> None:
    start = trainer.sealed(19)
    both.put(start, trainer.save_dir)
    near.put(trainer.sealed(59), trainer.save_dir)  # only the near store got it
    near.up = False
    far.put(second.sealed(39, attempt=2), second.save_dir)  # the next attempt went on from 19 without it
    near.up = True
    restored = restore(both, RUN, STAGE, tmp_path / "pod")
    assert restored and (restored.iteration, restored.attempt) == (39, 2)


def test_a_checkpoint_that_no_store_has_is_torn_and_not_a_silent_success(both, trainer, tmp_path) -> None:
    with pytest.raises(TornCheckpoint, match="in no store"):
        both.get(trainer.sealed(19), tmp_path / "pod")
    with pytest.raises(TornCheckpoint, match="in no store"):
        both.verify(trainer.sealed(19))
