"""What may happen to a run in the middle, and what must be true afterwards: state, weights, pods.

Starting servers and pods is what costs time here, so one run goes through many interruptions, one after the other.
"""

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.e2e.world import ROOT, World, command_of, eventually, pids_with

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("world-b")]
Started = list[subprocess.Popen[bytes]]
SFT = {
    "data": str(ROOT / "deployments" / "recipes" / "data" / "demo_sft.jsonl"),
    "num_rollout": 60,
    "save_interval": 3,
    "extra_args": {"rollout-batch-size": 4, "lr": 0.003},
}


@pytest.fixture(scope="session")
def uncut(world: World) -> bytes:
    """Final weights of a run that nothing interrupted."""
    done = world.cli("run", str(world.recipe("uncut", sft=SFT)), "--run-id", "uncut")
    assert done.returncode == 0, done.stderr
    assert world.sealed("uncut")[-1] == 59
    return world.weights("uncut")


def begin(world: World, run_id: str, started: Started) -> subprocess.Popen[bytes]:
    """Start, or go on with, a slow run."""
    recipe = world.recipe(run_id, sft=SFT, env={"TINYSLIME_STEP_DELAY_S": "0.5"}, max_attempts=20)
    process = world.start("run", str(recipe), "--run-id", run_id)
    started.append(process)
    return process


def wait_until_it_trains(world: World, run_id: str, attempt: int) -> None:
    """Wait until this attempt has sealed an iteration of its own."""
    eventually(lambda: world.stage_state(run_id, "sft", attempt) == "RUNNING", f"attempt {attempt} to run")
    before = max(world.sealed(run_id), default=-1)
    eventually(lambda: max(world.sealed(run_id), default=-1) > before, f"attempt {attempt} to seal something")


def on_pod(world: World, run_id: str, words: str) -> int:
    """The oldest process on the run's pod whose command line has these words."""
    (pod,) = world.pod_rows(run_id)
    marker = f"LIUM_POD_ID={pod['id']}"
    return eventually(lambda: sorted(p for p in pids_with(marker) if words in command_of(p)), words)[0]


def reclaim(world: World, run_id: str) -> None:
    """The pod vanishes, as on a spot reclaim."""
    (pod,) = world.pod_rows(run_id)
    httpx.post(
        f"{world.control}/pods/{pod['id']}/kill", json={"reason": "spot reclaim", "how": "vanish"}, timeout=30
    ).raise_for_status()


def stage_of(world: World, run_id: str) -> dict[str, Any]:
    (stage,) = world.status(run_id)["stages"]
    return dict(stage)


def test_whatever_dies_on_the_pod_the_attempt_is_crashed_and_the_run_ends_with_the_weights_of_an_uncut_one(
    world: World, uncut: bytes, started: Started
) -> None:
    process = begin(world, "dies", started)
    blows: list[Callable[[int], None]] = [
        lambda attempt: os.kill(world.engine("dies", "sft", attempt), signal.SIGKILL),
        lambda attempt: os.kill(world.engine("dies", "sft", attempt), signal.SIGTERM),
        lambda _: os.kill(on_pod(world, "dies", "prefect worker start"), signal.SIGKILL),
        lambda _: os.kill(on_pod(world, "dies", "plugins.lium.supervisor"), signal.SIGTERM),
        lambda _: reclaim(world, "dies"),
    ]
    for attempt, blow in enumerate(blows, start=1):
        wait_until_it_trains(world, "dies", attempt)
        blow(attempt)
        eventually(lambda n=attempt: world.stage_state("dies", "sft", n) == "CRASHED", f"{attempt} to be CRASHED")
    assert process.wait(timeout=200) == 0
    assert world.weights("dies") == uncut
    assert stage_of(world, "dies")["attempts"] == len(blows) + 1
    pods = world.status("dies")["pods"]
    assert [pod["name"] for pod in pods] == ["ts-dies-sft-a1", "ts-dies-sft-a2"], "only the lost pod is replaced"
    assert all(pod["ended_at"] and pod["cost_usd"] for pod in pods)
    assert world.pods("dies") == []
    for attempt in (1, len(blows) + 1):
        log = world.cli("logs", "dies", "--stage", "sft", "--attempt", str(attempt)).stdout
        assert "trainer submitted to Ray" in log, f"the log of attempt {attempt} can be read afterwards"
    assert "successfully loaded checkpoint" in log


def test_whatever_ends_the_pipeline_the_same_run_id_goes_on_and_ends_with_the_weights_of_an_uncut_one(
    world: World, uncut: bytes, started: Started
) -> None:
    process = begin(world, "steered", started)
    wait_until_it_trains(world, "steered", 1)
    pipeline = next(run for run in world.flow_runs("run:steered") if "stage:sft" not in run["tags"])
    world.set_state(pipeline["id"], "CANCELLING")  # what the button in the UI does
    assert process.wait(timeout=90) == 130
    assert world.status("steered")["state"] == "Cancelled"
    assert world.stage_state("steered", "sft", 1) == "CANCELLED"
    assert world.pods("steered") == []

    process = begin(world, "steered", started)
    wait_until_it_trains(world, "steered", 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=90) == 130
    assert world.stage_state("steered", "sft", 2) == "CANCELLED"
    assert world.pods("steered") == []
    assert world.left_running("steered") == []

    process = begin(world, "steered", started)
    wait_until_it_trains(world, "steered", 3)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert world.status("steered")["state"] == "Crashed", "a killed pipeline must not look alive"
    assert len(world.pods("steered")) == 1

    process = begin(world, "steered", started)
    assert process.wait(timeout=200) == 0
    assert world.weights("steered") == uncut
    assert stage_of(world, "steered")["attempts"] == 3, "the living stage was adopted"
    assert [pod["name"] for pod in world.status("steered")["pods"]] == [f"ts-steered-sft-a{n}" for n in (1, 2, 3)]
    assert world.pods("steered") == []

    again = world.cli("run", str(world.recipe("steered", sft=SFT)), "--run-id", "steered")
    assert again.returncode == 0
    assert "already complete" in again.stderr
    assert len(world.status("steered")["pods"]) == 3, "nothing was rented for a run that is complete"


def test_stop_ends_a_run_whose_pipeline_was_killed(world: World, started: Started) -> None:
    process = begin(world, "stopped", started)
    wait_until_it_trains(world, "stopped", 1)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    done = world.cli("stop", "stopped")
    assert done.returncode == 0, done.stderr
    assert world.pods("stopped") == []
    assert world.status("stopped")["state"] == "Cancelled"
    assert world.stage_state("stopped", "sft", 1) == "CANCELLED"
    assert world.left_running("stopped") == []
