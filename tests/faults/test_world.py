"""The world of the fault suite is itself held to account: each guard that a pipeline leaves out must be caught."""

from dataclasses import replace

import pytest

from tests.faults.driver import Outcome, carry_out
from tests.faults.invariants import BUDGET, CEILING, DOUBLE, HEALTHY, ORPHAN, STATE, STRANGER
from tests.faults.naive import Guards, Naive
from tests.faults.plan import CallFault, Death, Schedule, StagePlan, Window, calm
from tests.faults.schedules import schedule

HOST, OTHER = calm().hosts
LONG = (StagePlan("sft", 120, 60.0, 10, ()),)
CASES = {
    "gives_back": (calm(), ORPHAN),
    "minds_the_ceiling": (replace(calm(), hosts=(replace(HOST, price=2.6),)), CEILING),
    "minds_the_price_paid": (replace(calm(), hosts=(replace(HOST, surcharge=1.4),)), CEILING),
    "extends": (replace(calm(), stages=LONG), HEALTHY),
    "minds_the_budget": (replace(calm(), stages=LONG, budget=2.0), BUDGET),
    "matches_whole_names": (replace(calm(), strangers=("ts-{run}-2-sft-a1",)), STRANGER),
    "looks_up_absent_pods": (replace(calm(), lium=(Window(300, 330, "empty", "list", 1.0),)), DOUBLE),
    "survives_api_errors": (replace(calm(), lium=(Window(300, 400, "5xx", "list", 1.0),)), HEALTHY),
    "settles_lost_rents": (replace(calm(), lium=(Window(0, 40, "lost", "rent", 1.0),)), DOUBLE),
    "adopts": (replace(calm(), deaths=(Death("all", None, 300.0, False, 60.0),)), DOUBLE),
    "says_why": (calm(), STATE),
}


def naive(plan: Schedule, guards: Guards) -> Outcome:
    return carry_out(plan, lambda world, process: Naive(world, process, guards).run())


@pytest.mark.parametrize("guard", CASES)
def test_a_pipeline_without_a_guard_is_caught_and_one_with_it_is_not(guard: str) -> None:
    plan, invariant = CASES[guard]
    with_it = naive(plan, Guards())
    without = naive(plan, replace(Guards(), **{guard: False}))
    assert with_it.violations == ()
    assert invariant in {violation.invariant for violation in without.violations}
    assert without.tail


def test_every_guard_has_a_case_that_needs_it() -> None:
    assert set(CASES) == set(vars(Guards()))


def test_schedules_are_data_and_differ_by_seed() -> None:
    plans = [schedule(seed) for seed in range(200)]
    assert plans == [schedule(seed) for seed in range(200)]
    assert len({plan.show() for plan in plans}) == 200
    assert {window.kind for plan in plans for window in plan.lium} >= {"5xx", "timeout", "lost", "empty", "missing"}
    assert any(plan.deaths for plan in plans)
    assert any(plan.cancel_at_s for plan in plans)


def test_a_process_killed_after_the_effect_of_a_call_leaves_the_effect() -> None:
    outcomes = [
        naive(replace(calm(), deaths=(Death("all", call, None, True, None),)), Guards()) for call in range(1, 60)
    ]
    assert {outcome.kills for outcome in outcomes} == {1}
    assert {outcome.rents for outcome in outcomes} == {0, 1}
    assert all(outcome.violations == () for outcome in outcomes)  # the dead-man switch ends what is left


def test_a_killed_process_has_no_effect_from_its_finally_blocks() -> None:
    outcome = naive(replace(calm(), deaths=(Death("all", None, 200.0, False, None),)), Guards())
    assert outcome.endings == ("KILLED",)
    assert outcome.virtual_s == pytest.approx(200.0, abs=1)


def test_a_cancel_and_ctrl_c_end_the_run_and_are_an_excuse() -> None:
    for plan in (replace(calm(), cancel_at_s=200.0), replace(calm(), ctrl_c_at_s=200.0)):
        outcome = naive(plan, Guards())
        assert outcome.endings == ("CANCELLED",)
        assert outcome.violations == ()


def test_a_laptop_that_sleeps_longer_than_the_dead_man_time_loses_its_pod_without_blame() -> None:
    plan = replace(calm(), stages=LONG, naps=((300.0, 7200.0),), max_attempts=3)
    outcome = naive(plan, Guards())
    assert outcome.rents == 2
    assert outcome.violations == ()


def test_single_calls_meet_their_trouble() -> None:
    plain = naive(calm(), Guards())
    slow = naive(
        replace(calm(), calls=(CallFault("all", 1, "timeout", False), CallFault("all", 2, "timeout", False))), Guards()
    )
    assert slow.endings == plain.endings == ("COMPLETED",)
    assert slow.virtual_s > plain.virtual_s + 55
