"""Where an attempt starts from when stores are silent, behind or damaged."""

import threading
from pathlib import Path

import pytest

from plugins.checkpoints.stores.folder import FolderStore
from plugins.checkpoints.stores.several import SeveralStores
from plugins.errors import StoreError, UserError
from tasks import stage_restore
from tasks.stage_attempt import StageEnded
from tests.plugins.checkpoints.conftest import Trainer
from tests.tasks.test_train_stage import RUN, Bench


class Silent(FolderStore):
    """A store that does not answer until it is woken."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.awake = threading.Event()

    def list(self, run_id: str, stage: str):
        if not self.awake.is_set():
            raise StoreError(f"{self.uri} does not answer")
        return super().list(run_id, stage)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(stage_restore, "SILENCE_LOOK_S", 0.01)
    return Bench(tmp_path)


def sealed_in(bench: Bench, store: FolderStore, *iterations: int) -> None:
    trainer = Trainer(bench.folder / "elsewhere")
    for iteration in iterations:
        store.put(trainer.sealed(iteration, export=True), trainer.save_dir)


def start(bench: Bench, stores: SeveralStores, *, durable: int | None, patience_minutes: float):
    stage = bench.stage(2, checkpoint={"store_patience_minutes": patience_minutes})
    stage.order = stage.order.model_copy(update={"durable": durable})
    stage.save_dir.mkdir(parents=True)
    stage_restore.find_start(stage, stores)
    return stage


def test_a_silent_store_that_has_the_newest_checkpoint_is_waited_for(bench: Bench) -> None:
    far = Silent(bench.folder / "far")
    far.awake.set()
    sealed_in(bench, far, 7)
    sealed_in(bench, bench.store, 3)
    far.awake.clear()
    stores = SeveralStores([bench.store, far], lambda line: far.awake.set() if "does not answer" in line else None)
    assert start(bench, stores, durable=7, patience_minutes=1).restored.iteration == 7


def test_a_store_that_stays_silent_costs_the_wait_and_some_work_but_not_the_run(bench: Bench) -> None:
    sealed_in(bench, bench.store, 3)
    stores = SeveralStores([bench.store, Silent(bench.folder / "far")])
    stage = start(bench, stores, durable=7, patience_minutes=0.001)
    assert stage.restored.iteration == 3
    assert any("going on from iteration 3, although iteration 7 was durable once" in line for line in bench.said)


def test_nobody_is_waited_for_when_the_others_have_what_was_durable(bench: Bench) -> None:
    sealed_in(bench, bench.store, 3, 7)
    stores = SeveralStores([bench.store, Silent(bench.folder / "far")])
    assert start(bench, stores, durable=7, patience_minutes=60).restored.iteration == 7


def test_a_cancel_is_heard_while_a_store_is_silent(bench: Bench) -> None:
    bench.ear.ended.set()
    with pytest.raises(StageEnded):
        start(bench, SeveralStores([Silent(bench.folder / "far")]), durable=7, patience_minutes=60)


def test_when_no_store_answers_in_time_the_attempt_fails_and_nothing_starts_from_zero(bench: Bench) -> None:
    with pytest.raises(StoreError, match="does not answer"):
        start(bench, SeveralStores([Silent(bench.folder / "far")]), durable=None, patience_minutes=0.001)


def test_stores_that_lost_what_was_durable_never_mean_a_start_from_zero(bench: Bench) -> None:
    with pytest.raises(UserError, match=rf"No checkpoint of {RUN}/sft .* can be restored"):
        start(bench, SeveralStores([bench.store]), durable=7, patience_minutes=0.001)
