"""A node of a cluster that is lost ends the attempt, whatever the heartbeat of node 0 or the trainer's end says."""

from dataclasses import replace
from uuid import UUID

import pytest

from plugins.errors import ControlPlaneError, PodLost
from tasks.board import AttemptRecord
from tasks.run_stage import Attempt, AttemptEnd
from tasks.stage_contract import Heartbeat
from tests.tasks.fake_market import Link, Scene
from tests.tasks.test_provision_cluster import provision, two_fabrics

FAILED = "TrainerFailed: Run r, r-sft-1: the trainer ended FAILED (exit code 1), at iteration 7 [x]. Its last lines:\nx"


def training(state: str = "RUNNING", message: str = "", **pod: object) -> tuple[Scene, Attempt, Link]:
    here = two_fabrics(**pod)
    link = provision(here.run, ["sft"])
    assert isinstance(link, Link)
    record = AttemptRecord(UUID(int=1), 1, link.name, state, message)
    here.board.records = [record]
    beat = Heartbeat(stage="sft", attempt=1, phase="train")
    beats = iter(range(10_000))
    here.board.heartbeat = lambda stage, attempt_id: (beat, next(beats))  # type: ignore[method-assign]
    return here, Attempt(here.run, link, record, "sft"), link


def test_a_node_whose_row_is_gone_is_named_and_the_attempt_lost_although_node_0_trains_on() -> None:
    here, attempt, link = training()
    lost = link.row.members[0]
    del here.market.listed[lost.id]
    here.run.poller.snapshot = (  # type: ignore[method-assign]
        lambda name, real=here.run.poller.snapshot: replace(
            real(name), row=None, missing=lost.id, good_listings_absent=2
        )
    )
    assert attempt.wait() is AttemptEnd.POD_LOST
    assert attempt.problem.startswith("node 1 (") and "404" in attempt.problem and "shut out" in link.said
    assert here.board.records[0].state == "CRASHED"


def test_a_node_whose_supervisor_is_dead_ends_the_attempt() -> None:
    here, attempt, link = training()
    link.node_trouble = PodLost("the supervisor of node 1 is dead")
    began = here.run.clock.monotonic()
    assert attempt.wait() is AttemptEnd.POD_LOST and attempt.problem == "the supervisor of node 1 is dead"
    assert here.run.clock.monotonic() - began < 60


def test_a_node_that_is_silent_is_lost_after_unreachable_after_s_and_not_before() -> None:
    here, attempt, link = training(unreachable_after_s=90)
    link.node_trouble = ControlPlaneError("node 1 does not answer over SSH")
    began = here.run.clock.monotonic()
    assert attempt.wait() is AttemptEnd.POD_LOST and "node 1 does not answer over SSH" in attempt.problem
    assert 90 <= here.run.clock.monotonic() - began < 150


def test_a_node_that_answers_again_is_no_loss() -> None:
    here, attempt, link = training(unreachable_after_s=90)
    link.node_trouble = ControlPlaneError("node 1 does not answer over SSH")
    real, began = here.run.clock.sleep, here.run.clock.monotonic()

    def sleep(seconds: float, wake: object = None) -> None:
        real(seconds)
        gone_s = here.run.clock.monotonic() - began
        link.node_trouble = None if 60 < gone_s < 100 else link.node_trouble
        if gone_s > 300:
            here.board.records = [replace(here.board.records[0], state="CRASHED", message="the engine was killed")]

    here.run.clock.sleep = sleep  # type: ignore[method-assign]
    assert attempt.wait() is AttemptEnd.CRASHED and attempt.problem == "the engine was killed"


@pytest.mark.parametrize("state", ["FAILED", "CRASHED"])
def test_a_trainer_that_failed_because_a_node_was_lost_has_not_failed_itself(state: str) -> None:
    here, attempt, link = training(state, FAILED)
    del here.market.listed[link.row.ids[1]]
    assert attempt.wait() is AttemptEnd.POD_LOST
    assert "node 1 (" in attempt.problem and "is gone: it broke" in attempt.problem and "exit code 1" in attempt.problem


def test_a_trainer_that_failed_on_a_sound_cluster_has_failed_itself() -> None:
    _, attempt, _ = training("FAILED", FAILED)
    assert attempt.wait() is AttemptEnd.TRAINER_FAILED and attempt.problem == FAILED


def test_after_a_failure_a_silent_node_is_waited_for() -> None:
    here, attempt, link = training("FAILED", FAILED, unreachable_after_s=30)
    link.node_trouble = ControlPlaneError("node 1 does not answer over SSH")
    began = here.run.clock.monotonic()
    assert attempt.wait() is AttemptEnd.POD_LOST and here.run.clock.monotonic() - began >= 30
