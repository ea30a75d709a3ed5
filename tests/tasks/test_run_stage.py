"""How an attempt ended is the pod's word only as far as it makes sense: a pod is a stranger's machine."""

from uuid import UUID

import pytest

from blocks.recipe import Recipe
from plugins.errors import UserError
from tasks.board import AttemptRecord
from tasks.chain import Verbs, _Chain, carry_stages
from tasks.check_recipe import Checked
from tasks.provision_pod import provision_pod as provision
from tasks.run_stage import Attempt, AttemptEnd, finished_result, result_of
from tasks.stage_contract import Heartbeat, StageResult
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


def test_a_pod_that_is_gone_before_its_worker_took_the_attempt_is_lost_without_asking_it_over_ssh() -> None:
    here = scene(host(1))
    here.board.records = [record("", "SCHEDULED")]
    link = Link(living())  # it has no `ensure_supervisor`: to ask it would be an error

    attempt = Attempt(here.run, link, here.board.records[0], "sft")
    began = here.run.clock.monotonic()
    assert attempt.wait() is AttemptEnd.POD_LOST and "its look-up says 404" in attempt.problem
    assert here.run.clock.monotonic() - began < 30 and link.said == ["shut out"]


def chain(outcomes: list[tuple[AttemptEnd, int | None, str]], **recipe: object):
    """A chain on one host whose attempts end as given: (end, newest durable iteration, problem)."""
    here = scene(host(1))
    here.run.recipe = here.run.recipe.model_copy(update=recipe)
    here.run.store = EmptyStore()  # type: ignore[assignment]
    verbs = Verbs(provision.fn, lambda run, pod: 0.0, lambda run, row, why: None, lambda run, result: "uri")
    made = _Chain(here.run, ["sft"], Checked(), verbs)
    left = list(outcomes)

    def begin(name: str, *, retry: bool) -> Ended:
        return Ended(*left.pop(0))

    made._begin = begin  # type: ignore[method-assign,assignment]
    return made, left


class EmptyStore:
    uri = "folder:/x"

    def latest(self, run_id: str, stage: str) -> None:
        return None


class Ended:
    def __init__(self, end: AttemptEnd, durable: int | None, problem: str) -> None:
        self.end, self.problem, self.number, self.result = end, problem, 1, RESULT
        self.beat = Heartbeat(stage="sft", attempt=1, phase="train", durable=durable)

    def wait(self) -> AttemptEnd:
        return self.end


LOST, DONE = AttemptEnd.POD_LOST, (AttemptEnd.COMPLETED, None, "")


def test_losses_that_let_the_run_get_further_may_go_on_for_ever() -> None:
    made, left = chain([(LOST, number, "gone") for number in range(1, 30)] + [DONE], max_attempts=2)
    assert made.stage("sft") == RESULT and left == []


def test_attempts_that_get_no_further_end_the_run() -> None:
    made, left = chain([(LOST, 5, "gone")] * 4 + [DONE], max_attempts=3)
    with pytest.raises(UserError, match="got no further in 3 attempts in a row"):
        made.stage("sft")
    assert len(left) == 1


def failed(iteration: int, cause: str) -> tuple[AttemptEnd, int | None, str]:
    said = f"TrainerFailed: Run r: the trainer ended FAILED (exit code 1), at iteration {iteration} [{cause}]. Its last"
    return AttemptEnd.TRAINER_FAILED, None, f"{said} lines:\npid 4711: boom"


def test_the_same_failure_at_the_same_iteration_twice_in_a_row_is_the_users() -> None:
    made, left = chain([failed(12, "ValueError: nan"), failed(12, "ValueError: nan"), DONE])
    with pytest.raises(UserError, match=r"failed 2 times in the same way(.|\n)*boom"):
        made.stage("sft")
    assert len(left) == 1


@pytest.mark.parametrize("second", [failed(13, "ValueError: nan"), failed(12, "OSError: disk")])
def test_another_failure_or_another_iteration_is_tried_again(second) -> None:
    made, left = chain([failed(12, "ValueError: nan"), second, DONE])
    assert made.stage("sft") == RESULT and left == []


def test_a_new_warning_of_the_stage_reaches_the_pipelines_log_once() -> None:
    here = scene(host(1))
    here.board.records = [record(RESULT.model_dump_json())]
    attempt = Attempt(here.run, Link(living()), here.board.records[0], "sft")
    for warning in ("damaged: iteration 71", "damaged: iteration 71", None, "milestone 3 was not pushed"):
        here.board.beats[UUID(int=1)] = Heartbeat(stage="sft", attempt=1, phase="train", warning=warning)
        attempt._read_beat()
    assert [line for line in here.said if "WARNING sft" in line] == [
        "WARNING sft: damaged: iteration 71",
        "WARNING sft: milestone 3 was not pushed",
    ]


def test_start_weights_that_are_not_there_are_said_before_anything_is_rented() -> None:
    here = scene(host(1))
    rl = {"data": "/d", "num_rollout": 1, "environment": {"task": "answer"}, "init": "run:other/sft"}
    here.run.recipe = Recipe.model_validate({"name": "small", "rl": rl})
    here.run.store = EmptyStore()  # type: ignore[assignment]
    with pytest.raises(UserError, match="folder:/x has no checkpoint of other/sft"):
        carry_stages(here.run, ["rl"], Checked(), Verbs(release=lambda run, pod: 0.0))
    assert here.market.orders == []


def test_a_trainer_that_fails_by_its_machine_costs_the_pod_and_is_not_counted_against_the_recipe() -> None:
    here = scene(host(1))
    here.board.records = [record("PodUnfit: Run r: the trainer ended FAILED [gpu-fault: x].\ngpu-fault: ...", "FAILED")]
    assert Attempt(here.run, Link(living()), here.board.records[0], "sft").wait() is AttemptEnd.POD_LOST
    fault = (
        AttemptEnd.POD_LOST,
        None,
        "Run r: the trainer ended FAILED, at iteration 3 [gpu-fault: x]. Its last lines:\n",
    )
    made, left = chain([fault, fault, DONE])
    assert made.stage("sft") == RESULT and left == []


@pytest.mark.parametrize(
    "message",
    [
        "PrefectHTTPStatusError: 413 Request Entity Too Large",
        "Flow run encountered an exception: ValueError: x",
        "TornCheckpoint: half a file",
        "",
    ],
)
def test_a_stage_that_ends_by_what_is_not_the_users_has_crashed(message: str) -> None:
    here = scene(host(1))
    here.board.records = [record(message, "FAILED")]
    assert Attempt(here.run, Link(living()), here.board.records[0], "sft").wait() is AttemptEnd.CRASHED


@pytest.mark.parametrize("kind", ["UserError", "Refused"])
def test_a_stage_that_ends_by_the_user_ends_the_run_without_control_characters(kind: str) -> None:
    here = scene(host(1))
    here.board.records = [record(f"{kind}: wrong\x00 \x1b]0;PWNED\x07flag", "FAILED")]
    with pytest.raises(UserError, match=r"^wrong \]0;PWNEDflag$"):
        Attempt(here.run, Link(living()), here.board.records[0], "sft").wait()


def test_the_same_fault_of_the_machine_on_two_hosts_is_the_users() -> None:
    said = "PodUnfit: Run r: the trainer ended FAILED, at iteration 3 [gpu-fault: x]. Its last lines:\n"
    made, left = chain([(LOST, None, said)] * 2 + [DONE])
    with pytest.raises(UserError, match="failed 2 times in the same way"):
        made.stage("sft")
    assert len(left) == 1
