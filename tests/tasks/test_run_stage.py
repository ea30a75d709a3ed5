"""How an attempt ended is the pod's word only as far as it makes sense: a pod is a stranger's machine."""

from uuid import UUID

import pytest

from tasks.board import AttemptRecord
from tasks.run_stage import Attempt, AttemptEnd, finished_result, result_of
from tasks.stage_contract import StageResult
from tests.tasks.fake_market import Link, host, scene
from tests.tasks.test_provision_pod import living

RESULT = StageResult(
    run_id="r", stage="sft", attempt=1, outcome="completed", last_iteration=3, checkpoint_uri="folder:/x"
)


def record(message: str, state: str = "COMPLETED") -> AttemptRecord:
    return AttemptRecord(UUID(int=1), 1, "ts-r-sft-a1", state, message)


FALSE = {
    "junk": "junk",
    "nothing": "",
    "no result": "{}",
    "another run's": RESULT.model_copy(update={"run_id": "other"}).model_dump_json(),
    "another stage's": RESULT.model_copy(update={"stage": "rl"}).model_dump_json(),
}


@pytest.mark.parametrize("what", FALSE)
def test_a_result_that_is_none_is_a_crashed_attempt_and_never_a_finished_stage(what: str) -> None:
    here = scene(host(1))
    here.board.records = [record(FALSE[what])]
    attempt = Attempt(here.run, Link(living()), here.board.records[0], "sft")
    assert attempt.wait() is AttemptEnd.CRASHED and "not one of this stage" in attempt.problem
    assert finished_result(here.run, "sft") is None


def test_a_result_of_this_stage_is_believed() -> None:
    here = scene(host(1))
    here.board.records = [record(RESULT.model_dump_json())]
    attempt = Attempt(here.run, Link(living()), here.board.records[0], "sft")
    assert attempt.wait() is AttemptEnd.COMPLETED and attempt.result == RESULT
    assert finished_result(here.run, "sft") == RESULT
    assert result_of(record(RESULT.model_dump_json(), "CRASHED"), "r", "sft") is None
