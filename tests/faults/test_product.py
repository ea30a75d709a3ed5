"""Trainstack's own steering code in random fault schedules, and the same code with a guard left out.

`python -m tests.faults` (`make faults`) runs any number of schedules; here are enough for every change.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from blocks.recipe import Recipe
from plugins.errors import ControlPlaneError
from plugins.lium.client import LiumAccount
from plugins.lium.hosts import Host
from plugins.lium.pods import Intent, PodRow
from tests.faults.driver import Outcome, carry_out
from tests.faults.invariants import BUDGET, CEILING, DOUBLE, HEALTHY, ORPHAN
from tests.faults.plan import Schedule, StagePlan, Window, calm
from tests.faults.product import Parts, flow, reap, recipe_of
from tests.faults.schedules import schedule

SEEDS, SHARE = 120, 20
MOST_TRIES = 40
LONG = (StagePlan("sft", 90, 60.0, 10, ()),)
WHOLE = Parts()


def run(plan: Schedule, parts: Parts = WHOLE) -> Outcome:
    return carry_out(plan, lambda world, process: flow(world, process, parts), reap)


@pytest.mark.parametrize("first", range(1, SEEDS, SHARE))
def test_no_invariant_is_breached_in_random_fault_schedules(first: int) -> None:
    for seed in range(first, first + SHARE):
        outcome = run(schedule(seed))
        assert outcome.violations == (), f"SCHEDULES=1 SEED={seed} python -m tests.faults"


FOUND = {
    21443: "an intent that could not be written down was asked about, and so rented",
    20929: "the same, and nobody was left to give it back",
    10681: "a pod that could not be held warm was left to its dead-man end",
    22037: "the same",
    22095: "an attempt was called unclaimed while SSH kept us from looking",
    21945: "a pod rented by a late replay was charged from its intent",
}


@pytest.mark.parametrize("seed", FOUND, ids=FOUND.get)
def test_what_a_schedule_once_found_is_not_there_any_more(seed: int) -> None:
    assert run(schedule(seed)).violations == ()


def test_a_calm_run_rents_one_pod_and_completes() -> None:
    outcome = run(calm())
    assert (outcome.endings, outcome.rents, outcome.violations) == (("COMPLETED",), 1, ())


def test_a_schedule_comes_out_the_same_every_time() -> None:
    for seed in range(5):
        assert run(schedule(seed)) == run(schedule(seed))


class NeverSettles(LiumAccount):
    """Takes a rent without an answer for one that made no pod."""

    def settle(self, intent: Intent) -> PodRow | None:
        return None


class BelievesSilence(LiumAccount):
    """Takes a listing that failed for an empty one, and a look-up that failed for a 404."""

    def pods(self, prefix: str = "", *, patient: bool = True) -> list[PodRow]:
        try:
            return super().pods(prefix, patient=patient)
        except ControlPlaneError:
            return []

    def look_up(self, pod_id: str) -> PodRow | None:
        try:
            return super().look_up(pod_id)
        except ControlPlaneError:
            return None


class BelievesListings(LiumAccount):
    """Never asks for a pod that the listing lacks."""

    def look_up(self, pod_id: str) -> PodRow | None:
        return next((row for row in self.pods() if row.id == pod_id), None)


class NeverExtends(LiumAccount):
    """Lets the dead-man time run out."""

    def extend(self, pod_id: str, until: datetime) -> bool:
        return True


class NeverGivesBack(LiumAccount):
    """Says that pods are given back."""

    def release(
        self, name: str, ids: Any = (), *, cluster_id: str | None = None, timeout_s: float = 120.0
    ) -> list[str]:
        return []


class ReadsNoPrice(LiumAccount):
    """Believes that a pod costs what the recipe allows."""

    def look_up(self, pod_id: str) -> PodRow | None:
        row = super().look_up(pod_id)
        return row and replace(row, price_per_hour=0.01)

    def pods(self, prefix: str = "", *, patient: bool = True) -> list[PodRow]:
        return [replace(row, price_per_hour=0.01) for row in super().pods(prefix, patient=patient)]


class ListsAllCheap(LiumAccount):
    """Believes that every host is within the ceiling."""

    def hosts(self) -> list[Host]:
        return [replace(host, price_per_gpu_hour=0.01) for host in super().hosts()]


def without_budget(plan: Schedule) -> Recipe:
    return recipe_of(replace(plan, budget=1e6))


def lost_rents(seed: int) -> Schedule:
    """No rent of the first minute gets its answer, and all are carried out."""
    return replace(schedule(seed), lium=(Window(0, 60, "lost", "rent", 1.0),), deaths=())


def silence(seed: int) -> Schedule:
    """Lium does not answer for some minutes while a stage trains."""
    return replace(calm(seed), lium=(Window(200 + seed, 400, "5xx", "all", 1.0),))


def dear(seed: int) -> Schedule:
    """Every host charges more than it lists."""
    plan = schedule(seed)
    return replace(plan, hosts=tuple(replace(host, surcharge=2.0) for host in plan.hosts))


def spend_all(seed: int) -> Schedule:
    """A stage that needs far more than the budget."""
    return replace(calm(seed), stages=LONG, budget=1.0, dead_man_minutes=10)


def long_stage(seed: int) -> Schedule:
    """A stage that outlives the end that comes with the rent."""
    return replace(calm(seed), stages=LONG)


def false_listings(seed: int) -> Schedule:
    """Listings lack pods for a minute while a stage trains."""
    return replace(calm(seed), lium=(Window(200 + seed, 260 + seed, "missing", "list", 1.0),))


GUARDS: dict[str, tuple[Parts, Callable[[int], Schedule], set[str]]] = {
    "a rent without an answer is settled": (Parts(account=NeverSettles), lost_rents, {DOUBLE, ORPHAN}),
    "no answer is no news": (Parts(account=BelievesSilence), silence, {DOUBLE, HEALTHY}),
    "an absent pod is looked up": (Parts(account=BelievesListings), false_listings, {DOUBLE, HEALTHY}),
    "the dead-man end is pushed forward": (Parts(account=NeverExtends), long_stage, {HEALTHY}),
    "pods are given back": (Parts(account=NeverGivesBack), schedule, {ORPHAN}),
    "release ends the run": (Parts(verbs=lambda verbs: replace(verbs, release=lambda *_: 0.0)), schedule, {ORPHAN}),
    "the price paid is looked at": (Parts(account=ReadsNoPrice), dear, {CEILING}),
    "the listed price is looked at": (Parts(account=ListsAllCheap), schedule, {CEILING}),
    "the budget ends the run": (Parts(recipe=without_budget), spend_all, {BUDGET}),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_without_a_guard_an_invariant_is_breached(guard: str) -> None:
    parts, plan_of, expected = GUARDS[guard]
    found: set[str] = set()
    for seed in range(1, MOST_TRIES + 1):
        found |= {violation.invariant for violation in run(plan_of(seed), parts).violations}
        if found & expected:
            break
        assert run(plan_of(seed)).violations == ()
    assert found & expected, f"{MOST_TRIES} schedules did not notice; they found {found or 'nothing'}"
