"""The last net: it ends what has our name and no living run, and touches nothing else."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import State

from plugins.lium.pods import PodRow
from tasks.board import WarmPod
from tasks.reap import Keep, judge_all

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def pod(name: str) -> PodRow:
    return PodRow(id=f"id-{name}", name=name, status="RUNNING")


def pipeline(kind: StateType, *, ended_minutes_ago: float | None = None) -> FlowRun:
    ended = None if ended_minutes_ago is None else NOW - timedelta(minutes=ended_minutes_ago)
    return FlowRun(id=uuid4(), flow_id=uuid4(), state=State(type=kind), end_time=ended)


def verdict(name: str, *pipelines: FlowRun, warm: list[WarmPod] | None = None, known: str = "r") -> Keep | None:
    (judged,) = judge_all([pod(name)], {known: list(pipelines)}, warm or [], NOW)
    return judged.keep


@pytest.mark.parametrize(
    "name", ["mine", "ts-r", "ts-r-sft", "ts-r-sft-a", "ts-r-train-a1", "xts-r-sft-a1", "ts-r-sft-a1-b", "TS-r-sft-a1"]
)
def test_a_pod_without_a_name_of_ours_is_never_touched(name: str) -> None:
    assert verdict(name, pipeline(StateType.FAILED, ended_minutes_ago=999)) is Keep.NOT_OURS


def test_a_pod_of_an_ended_run_is_an_orphan() -> None:
    for kind in (StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED):
        assert verdict("ts-r-sft-a1", pipeline(kind, ended_minutes_ago=0)) is None


def test_a_run_that_was_started_again_keeps_its_pod() -> None:
    ended, living = pipeline(StateType.FAILED, ended_minutes_ago=60), pipeline(StateType.RUNNING)
    assert verdict("ts-r-sft-a1", ended, living) is Keep.STEERED
    assert verdict("ts-r-sft-a1", pipeline(StateType.SCHEDULED)) is Keep.STEERED
    assert verdict("ts-r-sft-a1", pipeline(StateType.CANCELLING)) is Keep.STEERED


def test_a_crashed_run_keeps_its_pod_for_a_while_so_that_a_new_start_can_go_on() -> None:
    assert verdict("ts-r-sft-a1", pipeline(StateType.CRASHED, ended_minutes_ago=5)) is Keep.SOON
    assert verdict("ts-r-sft-a1", pipeline(StateType.CRASHED, ended_minutes_ago=16)) is None


def test_a_run_of_another_prefect_api_is_left_alone() -> None:
    assert verdict("ts-other-sft-a1", pipeline(StateType.FAILED, ended_minutes_ago=60)) is Keep.UNKNOWN_RUN


def warm(*, until_minutes: float, claimed_by: str | None = None) -> list[WarmPod]:
    until = (NOW + timedelta(minutes=until_minutes)).timestamp()
    return [WarmPod("ts-r-sft-a1", "id", "NVIDIA H200", 1, "default", 1.0, until, claimed_by)]


def test_a_warm_pod_is_kept_until_its_time_and_then_is_an_orphan() -> None:
    done = pipeline(StateType.COMPLETED, ended_minutes_ago=1)
    assert verdict("ts-r-sft-a1", done, warm=warm(until_minutes=5)) is Keep.WARM
    assert verdict("ts-r-sft-a1", done, warm=warm(until_minutes=-1)) is None


def test_a_claimed_pod_belongs_to_the_run_that_claimed_it() -> None:
    claimed = warm(until_minutes=-1, claimed_by="next")
    assert verdict("ts-r-sft-a1", pipeline(StateType.RUNNING), warm=claimed, known="next") is Keep.STEERED
    ended = pipeline(StateType.COMPLETED, ended_minutes_ago=1)
    assert verdict("ts-r-sft-a1", ended, warm=claimed, known="next") is None
