"""What may happen to a run in the middle, and what must be true afterwards: state, weights, pods."""

import os
import signal
import subprocess

import httpx
import pytest

from tests.e2e.world import World, command_of, eventually, pids_with

pytestmark = pytest.mark.e2e
SLOW = {"env": {"TINYSLIME_STEP_DELAY_S": "0.5"}}
Started = list[subprocess.Popen[bytes]]


@pytest.fixture(scope="session")
def uncut(world: World) -> bytes:
    """Final weights of a run that nothing interrupted."""
    done = world.cli("run", str(world.recipe("uncut")), "--run-id", "uncut")
    assert done.returncode == 0, done.stderr
    assert world.sealed("uncut")[-1] == 11
    return world.weights("uncut")


def begin(world: World, run_id: str, started: Started, sealed: int = 3) -> subprocess.Popen[bytes]:
    """Start a slow run and wait until it has sealed an iteration and trains on."""
    process = world.start("run", str(world.recipe(run_id, **SLOW)), "--run-id", run_id)
    started.append(process)
    eventually(lambda: process.poll() is not None or sealed in world.sealed(run_id), f"{run_id} to seal {sealed}")
    assert process.poll() is None, "the run ended too early"
    return process


def supervisor(world: World, run_id: str) -> int:
    """Process id of the supervisor daemon on the run's pod."""
    (pod,) = world.pod_rows(run_id)
    mine = [pid for pid in pids_with(f"LIUM_POD_ID={pod['id']}") if "plugins.lium.supervisor" in command_of(pid)]
    return min(mine) if mine else 0


def result_of(world: World, run_id: str) -> dict[str, object]:
    (stage,) = world.status(run_id)["stages"]
    return dict(stage)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill-9", "SIGTERM"])
def test_a_stage_whose_engine_is_killed_crashes_and_goes_on_on_the_same_pod_with_equal_weights(
    world: World, uncut: bytes, started: Started, number: signal.Signals
) -> None:
    run_id = f"engine-{number.name.lower()}"
    process = begin(world, run_id, started)
    os.kill(world.engine(run_id, "sft", 1), number)
    eventually(lambda: world.stage_state(run_id, "sft", 1) == "CRASHED", "attempt 1 to be CRASHED")
    assert process.wait(timeout=150) == 0
    assert world.weights(run_id) == uncut
    assert world.rents(run_id) == 1
    assert result_of(world, run_id)["attempts"] == 2
    assert world.pods(run_id) == []


def test_a_pod_told_to_end_crashes_its_stage_truthfully_and_the_run_goes_on_with_equal_weights(
    world: World, uncut: bytes, started: Started
) -> None:
    process = begin(world, "preempt", started)
    os.kill(eventually(lambda: supervisor(world, "preempt"), "the supervisor"), signal.SIGTERM)
    eventually(lambda: world.stage_state("preempt", "sft", 1) == "CRASHED", "attempt 1 to be CRASHED")
    assert process.wait(timeout=150) == 0
    assert world.weights("preempt") == uncut
    assert world.pods("preempt") == []


def test_a_lost_pod_is_replaced_and_the_run_resumes_from_the_store_with_equal_weights(
    world: World, uncut: bytes, started: Started
) -> None:
    process = begin(world, "lost", started)
    (pod,) = world.pod_rows("lost")
    host = world.lium.removesuffix("/api")
    body = {"reason": "spot reclaim", "how": "vanish"}
    httpx.post(f"{host}/_emulator/pods/{pod['id']}/kill", json=body, timeout=30).raise_for_status()
    eventually(lambda: world.stage_state("lost", "sft", 1) == "CRASHED", "attempt 1 to be CRASHED")
    assert process.wait(timeout=180) == 0
    assert world.weights("lost") == uncut
    assert [row["name"] for row in world.status("lost")["pods"]] == ["ts-lost-sft-a1", "ts-lost-sft-a2"]
    assert world.pods("lost") == []


def test_a_killed_pipeline_is_gone_on_with_by_the_next_start_which_adopts_pod_and_stage(
    world: World, uncut: bytes, started: Started
) -> None:
    process = begin(world, "adopt", started)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    again = world.cli("run", str(world.recipe("adopt", **SLOW)), "--run-id", "adopt")
    assert again.returncode == 0, again.stderr
    assert world.weights("adopt") == uncut
    assert result_of(world, "adopt")["attempts"] == 1
    assert world.rents("adopt") == 1
    assert world.pods("adopt") == []


def test_ctrl_c_gives_the_pod_back_and_the_same_run_id_continues_from_the_sealed_checkpoint(
    world: World, uncut: bytes, started: Started
) -> None:
    process = begin(world, "ctrl-c", started)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=90) == 130
    assert world.pods("ctrl-c") == []
    assert world.status("ctrl-c")["state"] == "Cancelled"
    assert world.stage_state("ctrl-c", "sft", 1) == "CANCELLED"
    assert pids_with("TRAINSTACK_RUN_ID=ctrl-c") == []
    again = world.cli("run", str(world.recipe("ctrl-c")), "--run-id", "ctrl-c")
    assert again.returncode == 0, again.stderr
    assert world.weights("ctrl-c") == uncut
    logs = world.cli("logs", "ctrl-c", "--stage", "sft", "--attempt", "2").stdout
    assert "successfully loaded checkpoint" in logs
    assert "trainer" in world.cli("logs", "ctrl-c", "--stage", "sft", "--attempt", "1").stdout


def test_a_cancel_from_the_ui_reaches_a_pipeline_started_as_plain_python(world: World, started: Started) -> None:
    process = begin(world, "ui-cancel", started)
    (pipeline,) = [run for run in world.flow_runs("run:ui-cancel") if "stage:sft" not in run["tags"]]
    world.set_state(pipeline["id"], "CANCELLING")
    assert process.wait(timeout=90) == 130
    assert world.pods("ui-cancel") == []
    assert world.status("ui-cancel")["state"] == "Cancelled"
    assert world.stage_state("ui-cancel", "sft", 1) == "CANCELLED"


def test_stop_ends_a_run_whose_pipeline_was_killed(world: World, started: Started) -> None:
    process = begin(world, "stopped", started)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    done = world.cli("stop", "stopped")
    assert done.returncode == 0, done.stderr
    assert world.pods("stopped") == []
    assert world.status("stopped")["state"] == "Cancelled"
    assert world.stage_state("stopped", "sft", 1) == "CANCELLED"
    assert pids_with("TRAINSTACK_RUN_ID=stopped") == []


def test_a_run_that_is_complete_is_not_run_again(world: World, uncut: bytes) -> None:
    again = world.cli("run", str(world.recipe("uncut")), "--run-id", "uncut")
    assert again.returncode == 0
    assert "already complete" in again.stderr
    assert world.pods("uncut") == []
