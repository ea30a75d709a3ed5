"""Background publishing: the newest wins, a store that fails only delays, and `finish` tells the truth."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plugins.checkpoints.disk import Disk
from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.milestones import MilestoneRule
from plugins.checkpoints.publisher import Origin, Publisher
from plugins.checkpoints.stores.folder import FolderStore
from plugins.checkpoints.throttle import Throttle
from plugins.errors import Fenced, StoreError

RUN, STAGE = "run-1", "sft"
LONG_S = 30.0


class Faulty:
    """A disk that is full until somebody makes room."""

    def __init__(self) -> None:
        self.full = True

    def __call__(self, step: str, _path: Path) -> None:
        if self.full and step in ("append", "write"):
            raise OSError(errno.ENOSPC, "No space left on device")


class Gated(FolderStore):
    """A slow store: `put` waits at a gate, and notes which iterations came to it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate, self.came = threading.Event(), []

    def begin(self, run_id, stage, iteration, token, progress=None) -> None:
        return None

    def put(self, manifest: Manifest, save_dir: Path, progress=None) -> str:
        self.came.append(manifest.iteration)
        assert self.gate.wait(LONG_S)
        return super().put(manifest, save_dir, progress)


@pytest.fixture
def publish(trainer) -> Iterator[Callable[..., Publisher]]:
    made: list[Publisher] = []

    def make(store, *, run_id=RUN, token=1, keep=5, **settings) -> Publisher:
        origin = Origin(run_id, STAGE, token, token, "slime", export=settings.pop("export", False))
        settings = {"log": lambda _line: None, "first_pause_s": 0.01, **settings}
        made.append(
            Publisher(store if isinstance(store, list) else [store], trainer.save_dir, origin, keep=keep, **settings)
        )
        return made[-1]

    yield make
    for publisher in made:
        publisher.stop()


def iterations(store: FolderStore) -> list[int]:
    return [manifest.iteration for manifest in store.list(RUN, STAGE)]


def until(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG_S
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_is_offered_becomes_sealed_and_durable(trainer, tmp_path: Path, publish) -> None:
    store, said = FolderStore(tmp_path / "store"), []
    publisher = publish(store, log=said.append)
    trainer.save(3)
    publisher.offer(3)
    publisher.finish(LONG_S)
    assert (publisher.sealed, publisher.durable.iteration, publisher.warning) == (3, 3, None)
    assert publisher.uri == f"{store.uri}/{RUN}/{STAGE}/iter_0000003"
    assert said == [f"checkpoint 3 sealed and durable: {publisher.uri}"]


def test_a_checkpoint_names_the_one_before_as_its_parent(trainer, tmp_path: Path, publish) -> None:
    publisher = publish(FolderStore(tmp_path / "store"))
    for iteration in (3, 7):
        trainer.save(iteration)
        publisher.offer(iteration)
        publisher.finish(LONG_S)
    assert publisher.durable.parent.endswith("/iter_0000003")


def test_while_a_store_is_slow_the_newest_checkpoint_replaces_the_one_that_waits(
    trainer, tmp_path: Path, publish
) -> None:
    store = Gated(tmp_path / "store")
    publisher = publish(store)
    for iteration in (3, 7, 11):
        trainer.save(iteration)
        publisher.offer(iteration)
        until(lambda n=iteration: store.came == [3] and publisher.sealed == n)
    store.gate.set()
    publisher.finish(LONG_S)
    assert store.came == [3, 11]
    assert iterations(store) == [11, 3]


def test_a_store_that_fails_warns_and_gets_the_checkpoint_when_it_works_again(trainer, tmp_path: Path, publish) -> None:
    disk, said = Faulty(), []
    store = FolderStore(tmp_path / "store", disk=Disk(before=disk))
    publisher = publish(store, log=said.append)
    trainer.save(3)
    publisher.offer(3)
    until(lambda: len(said) >= 2)
    assert "No space left on device" in publisher.warning and said[0].startswith("WARNING Checkpoint 3 is not durable")
    disk.full = False
    publisher.finish(LONG_S)
    assert (iterations(store), publisher.warning) == ([3], None)


def test_a_newer_checkpoint_takes_the_place_of_one_the_store_refuses(trainer, tmp_path: Path, publish) -> None:
    disk = Faulty()
    store = FolderStore(tmp_path / "store", disk=Disk(before=disk))
    publisher = publish(store, first_pause_s=60.0)
    trainer.save(3)
    publisher.offer(3)
    until(lambda: publisher.warning)
    disk.full = False
    trainer.save(7)
    publisher.offer(7)
    publisher.finish(LONG_S)
    assert iterations(store) == [7]


def test_finish_that_runs_out_of_time_says_what_the_store_said(trainer, tmp_path: Path, publish) -> None:
    publisher = publish(FolderStore(tmp_path / "store", disk=Disk(before=Faulty())))
    trainer.save(3)
    publisher.offer(3)
    until(lambda: publisher.warning)
    with pytest.raises(StoreError, match=r"Checkpoint 3 is not durable yet.*No space left on device"):
        publisher.finish(0.05)
    assert not publisher.wait(0)


def test_a_newer_attempt_fences_the_writer_off(trainer, tmp_path: Path, publish) -> None:
    store = FolderStore(tmp_path / "store")
    store.claim(RUN, STAGE, 2)
    publisher = publish(store, token=1)
    trainer.save(3)
    publisher.offer(3)
    with pytest.raises(Fenced, match="superseded"):
        publisher.finish(LONG_S)
    assert "superseded" in publisher.fenced and iterations(store) == []


def test_a_checkpoint_that_is_still_being_written_is_waited_for(trainer, tmp_path: Path, publish) -> None:
    store = FolderStore(tmp_path / "store")
    publisher = publish(store)
    trainer.save(3, upto=6)  # all but the data cursor, which slime writes after the tracker
    publisher.offer(3)
    assert not publisher.wait(0.05) and publisher.sealed is None
    trainer.save(3)
    publisher.finish(LONG_S)
    assert iterations(store) == [3]


def test_a_checkpoint_that_never_gets_complete_is_an_error_at_the_end(trainer, tmp_path: Path, publish) -> None:
    store = FolderStore(tmp_path / "store")
    publisher = publish(store, settle_s=0.05)
    trainer.save(3, upto=6)
    publisher.offer(3)
    with pytest.raises(StoreError, match=r"Checkpoint 3 is not complete and was not sealed: .*global_dataset_state"):
        publisher.finish(LONG_S)
    trainer.save(7)
    publisher.offer(7)
    publisher.finish(LONG_S)
    assert iterations(store) == [7]


def test_what_can_never_be_sealed_is_an_error_at_the_end_and_not_a_silent_success(
    trainer, tmp_path: Path, publish
) -> None:
    publisher = publish(FolderStore(tmp_path / "store"), run_id="No Name")
    trainer.save(3)
    publisher.offer(3)
    with pytest.raises(StoreError, match="Checkpoint 3 cannot be sealed: run id 'No Name'"):
        publisher.finish(LONG_S)


def test_stop_drops_what_waits_and_finish_then_says_so(trainer, tmp_path: Path, publish) -> None:
    publisher = publish(FolderStore(tmp_path / "store", disk=Disk(before=Faulty())), first_pause_s=60.0)
    trainer.save(3)
    publisher.offer(3)
    until(lambda: publisher.warning)
    publisher.stop()
    with pytest.raises(StoreError, match="Checkpoint 3"):
        publisher.finish(LONG_S)


def test_finish_without_an_offer_returns_at_once(tmp_path: Path, publish) -> None:
    publisher = publish(FolderStore(tmp_path / "store"))
    publisher.finish(0)
    assert publisher.durable is None


def test_old_checkpoints_go_from_the_save_dir_and_the_store(trainer, tmp_path: Path, publish) -> None:
    store = FolderStore(tmp_path / "store")
    publisher = publish(store, keep=2)
    for iteration in (3, 7, 11):
        trainer.save(iteration)
        publisher.offer(iteration)
        publisher.finish(LONG_S)
    assert iterations(store) == [11, 7]
    assert sorted(path.name for path in trainer.save_dir.glob("iter_*") if path.is_dir()) == [
        "iter_0000007",
        "iter_0000011",
    ]


@pytest.fixture
def pair(publish, tmp_path: Path):
    """A near and a far store and a publisher for both."""
    near, far = FolderStore(tmp_path / "near"), Gated(tmp_path / "far")

    def make(**settings) -> tuple[FolderStore, Gated, Publisher]:
        return near, far, publish([near, far], **settings)

    return make


def test_a_slow_store_delays_no_other_store(trainer, pair) -> None:
    _near, far, publisher = pair()
    for iteration in (3, 7, 11):
        trainer.save(iteration)
        publisher.offer(iteration)
        until(lambda n=iteration: publisher.durable and publisher.durable.iteration == n)
    assert far.came == [3] and publisher.durable.iteration == 11
    assert "folder: checkpoint 3, 0 %" in publisher.on_its_way
    far.gate.set()
    publisher.finish(LONG_S)
    assert far.came == [3, 11] and iterations(far) == [11, 3]


def test_local_files_that_a_slow_store_still_reads_are_not_removed(trainer, pair) -> None:
    _near, far, publisher = pair(keep=1)
    for iteration in (3, 7, 11):
        trainer.save(iteration)
        publisher.offer(iteration)
        until(lambda n=iteration: publisher.durable and publisher.durable.iteration == n)
    assert (trainer.save_dir / "iter_0000003").is_dir(), "it is on its way to the far store"
    far.gate.set()
    publisher.finish(LONG_S)
    assert iterations(far) == [11]
    until(lambda: not (trainer.save_dir / "iter_0000003").exists())


def test_one_store_that_has_the_last_checkpoint_is_enough_and_the_other_is_a_warning(
    trainer, tmp_path, publish
) -> None:
    disk = Faulty()
    broken = FolderStore(tmp_path / "broken", disk=Disk(before=disk))
    publisher = publish([FolderStore(tmp_path / "near"), broken])
    trainer.save(3)
    publisher.offer(3)
    until(lambda: publisher.durable and publisher.warning)
    publisher.finish(0.05)
    assert "No space left on device" in publisher.warning


def test_the_checkpoint_is_read_once_when_the_first_store_takes_it_while_it_is_hashed(
    trainer, tmp_path, publish
) -> None:
    steps: list[str] = []
    store = FolderStore(tmp_path / "store", disk=Disk(lambda step, _path: steps.append(step)))
    publisher = publish(store)
    trainer.save(3)
    publisher.offer(3)
    publisher.finish(LONG_S)
    assert "append" not in steps, "no file was copied after it was sealed"
    store.verify(publisher.durable)


def test_with_a_bandwidth_limit_nothing_is_sent_faster_and_sealing_is_not_held_up(trainer, tmp_path, publish) -> None:
    sent: list[int] = []

    class Counting(Throttle):
        def __call__(self, sent_bytes: int) -> None:
            sent.append(sent_bytes)

    publisher = publish(FolderStore(tmp_path / "store"), throttle=Counting(1.0))
    trainer.save(3)
    publisher.offer(3)
    publisher.finish(LONG_S)
    assert sum(sent) == publisher.durable.size_bytes


def test_a_writer_that_only_waits_hears_that_it_was_overtaken(trainer, tmp_path, publish) -> None:
    store = FolderStore(tmp_path / "store")
    store.claim(RUN, STAGE, 1)
    publisher = publish(store, token=1, fence_look_s=0.01)
    store.claim(RUN, STAGE, 2)
    until(lambda: publisher.fenced)
    assert "superseded" in publisher.fenced


def test_figures_of_the_iteration_and_milestones_come_with_the_manifest(trainer, tmp_path, publish) -> None:
    landed: list[int] = []
    store = FolderStore(tmp_path / "store")
    publisher = publish(
        store,
        keep=1,
        rule=MilestoneRule(best="reward"),
        metrics=lambda iteration: {"reward": {3: 0.1, 7: 0.9, 11: 0.2}[iteration]},
        landed=lambda manifest, _uri: landed.append(manifest.iteration),
    )
    for iteration in (3, 7, 11):
        trainer.save(iteration)
        publisher.offer(iteration)
        publisher.finish(LONG_S)
    assert landed == [3, 7, 11]
    assert iterations(store) == [11, 7], "the best one stays besides the newest"
    assert store.latest(RUN, STAGE).metrics == {"reward": 0.2}


def test_a_milestone_that_has_to_give_way_is_stored_later_and_stays_on_the_pod_until_then(trainer, pair) -> None:
    _near, far, publisher = pair(keep=1, rule=MilestoneRule(interval=4))
    for iteration in (2, 3, 6, 7, 9):  # 3 and 7 are milestones
        trainer.save(iteration)
        publisher.offer(iteration)
        until(lambda n=iteration: publisher.durable and publisher.durable.iteration == n)
    assert (trainer.save_dir / "iter_0000003").is_dir() and (trainer.save_dir / "iter_0000007").is_dir()
    far.gate.set()
    publisher.finish(LONG_S)
    assert far.came == [2, 9, 7, 3] and iterations(far) == [9, 7, 3]


def test_milestones_that_a_store_never_takes_up_are_bounded_and_the_lost_one_is_named(trainer, pair) -> None:
    said: list[str] = []
    _near, _far, publisher = pair(rule=MilestoneRule(interval=1), log=said.append)
    for iteration in range(8):
        trainer.save(iteration)
        publisher.offer(iteration)
        until(lambda n=iteration: publisher.durable and publisher.durable.iteration == n)
    assert [line.split(" is not in ")[0] for line in said if "is not in" in line] == [
        "WARNING milestone 1",
        "WARNING milestone 2",
    ]


def test_a_store_that_refuses_for_half_an_hour_costs_nothing_but_lag(trainer, tmp_path: Path, publish) -> None:
    """With pauses of 1, 2, 4 ... 60 s half an hour is 35 refusals; here they come one after the other."""
    disk, said = Faulty(), []
    publisher = publish(
        FolderStore(tmp_path / "store", disk=Disk(before=disk)),
        first_pause_s=0.001,
        longest_pause_s=0.002,
        log=said.append,
    )
    trainer.save(3)
    publisher.offer(3)
    until(lambda: sum("trying again" in line for line in said) >= 35)
    trainer.save(7)  # training has gone on all the time
    publisher.offer(7)
    disk.full = False
    publisher.finish(LONG_S)
    assert publisher.durable.iteration == 7 and publisher.warning is None


def test_milestones_that_there_was_no_time_for_are_named(trainer, pair) -> None:
    _near, far, publisher = pair(rule=MilestoneRule(interval=4))
    for iteration in (3, 7, 11):
        trainer.save(iteration)
        publisher.offer(iteration)
        until(lambda n=iteration: publisher.durable and publisher.durable.iteration == n)
    publisher.stop()
    far.gate.set()
    missed = {line.split(" is not in ")[0] for line in publisher.missed if str(far.root) in line}
    assert missed == {"milestone 3", "milestone 7", "milestone 11"}
    assert not [line for line in publisher.missed if str(far.root) not in line], "the near store has them all"
