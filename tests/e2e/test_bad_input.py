"""What a run can only find out once servers run: no such machine, a trainer that fails, a store that fills up."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient

from plugins.checkpoints.restore import restore
from plugins.checkpoints.stores.folder import FolderStore
from tasks.status import run_status
from tests.e2e.world import ANY_DISK, World

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("world-a")]
PRICES = {"max_price_per_gpu_hour": 9.0, "budget_usd": 9.0, "preflight": ANY_DISK}
SHAPE = {"num-layers": 1, "hidden-size": 32, "ffn-hidden-size": 64, "num-attention-heads": 2, "seq-length": 48}


@dataclass(frozen=True)
class Failure:
    """A run that failed: its last message, its status, the names of the pods it ever had."""

    said: str
    status: dict[str, Any]

    @property
    def rented(self) -> list[str]:
        return [row["name"] for row in self.status["pods"]]


def failed_run(world: World, run_id: str, **changes: Any) -> Failure:
    """Run a recipe that must fail: with a message on stderr, no traceback, and no pod left."""
    done = world.cli("run", str(world.recipe(run_id, **changes)), "--run-id", run_id)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert world.pods(run_id) == []
    with SyncPrefectClient(world.api) as client:
        status = run_status(client, run_id)
    assert status["state"] == "Failed"
    return Failure(done.stderr[done.stderr.rindex("\nFailed: ") + 1 :], status)


def test_more_gpus_than_any_machine_has_ends_the_run_at_once_and_says_which_setting_waits(world: World) -> None:
    failure = failed_run(world, "too-many", pod={"gpu": "H200", "gpu_count": 64, **PRICES, "budget_usd": 999.0})
    assert "CapacityError" in failure.said and "64" in failure.said
    assert "pod.capacity_wait_minutes" in failure.said and "pod.gpu_count" in failure.said
    assert failure.rented == []


def test_an_unknown_gpu_is_answered_with_those_that_look_like_it(world: World) -> None:
    failure = failed_run(world, "which-gpu", pod={"gpu": "H20O", **PRICES})
    assert "'H20O'" in failure.said and "did you mean H200" in failure.said
    assert failure.rented == []


def test_a_trainer_that_fails_twice_alike_ends_the_run_with_its_last_words(world: World) -> None:
    failure = failed_run(world, "odd-heads", model={"args": {**SHAPE, "num-attention-heads": 3}})
    assert failure.said.count("must be an even multiple of --num-attention-heads 3") == 1
    assert "failed 2 times in the same way" in failure.said and "exit code 2" in failure.said
    assert len(failure.said) < 1000
    (stage,) = failure.status["stages"]
    assert (stage["state"], stage["attempts"]) == ("Failed", 2)
    assert failure.rented == ["ts-odd-heads-sft-a1"]
    assert failure.status["pods"][0]["ended_at"] is not None


def test_a_trainer_that_stands_still_twice_in_the_same_place_ends_the_run_with_what_it_seems_to_wait_for(
    world: World,
) -> None:
    failure = failed_run(
        world,
        "stands-still",
        env={"TINYSLIME_STEP_DELAY_S": "600"},
        watchdog={"stall_minutes": 0.1, "start_minutes": 2},
    )
    assert "failed 2 times in the same way" in failure.said and "made no progress and was stopped" in failure.said
    assert "at iteration 0 [stall-rollout-wait in rollout]" in failure.said and "What to do: " in failure.said
    (stage,) = failure.status["stages"]
    assert (stage["state"], stage["attempts"]) == ("Failed", 2)


def test_a_run_that_nobody_knows_is_said_to_be_unknown(world: World) -> None:
    for command in ("status", "stop"):
        done = world.cli(command, "no-such-run")
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        assert "No run 'no-such-run' is known" in done.stderr


@pytest.fixture
def small_disk(world: World) -> Iterator[Path]:
    """A file system with room for one checkpoint, where the emulated pods see it too."""
    folder = world.folder / "state" / "store" / "small-disk"
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "small", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_store_fails_the_run_and_what_was_sealed_before_can_be_restored(
    world: World, small_disk: Path, tmp_path: Path
) -> None:
    failure = failed_run(
        world,
        "full",
        checkpoint={"store": f"folder:{small_disk}", "final_upload_minutes": 0.05, "keep": 3},
        env={"TINYSLIME_STEP_DELAY_S": "0.3"},  # the first checkpoint is in the store before the last one is saved
    )
    assert "StoreError" in failure.said and "No space left on device" in failure.said
    assert str(small_disk) in failure.said
    assert failure.status["stages"][0]["attempts"] == 1
    store = FolderStore(small_disk)
    sealed = [manifest.iteration for manifest in store.list("full", "sft")]
    assert sealed and 11 not in sealed
    kept = restore(store, "full", "sft", tmp_path / "save")
    assert kept is not None and kept.iteration == sealed[0]
