"""The interval follows published formulas, keeps to its bounds, and says why in words a person understands."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.save_interval import (
    ASSUMED_MTBL_S,
    Bounds,
    choose_interval,
    daly_s,
    expected_ettr,
    mean_time_between_losses,
    young_s,
)

MINUTE, HOUR = 60.0, 3600.0


@pytest.mark.parametrize(("mtbl_h", "minutes"), [(24.0, 117.0), (6.0, 57.0), (0.25, 9.1)])
def test_dalys_formula_gives_the_optima_that_his_paper_prints(mtbl_h: float, minutes: float) -> None:
    """Captions of figures 3 to 5 of Daly 2006: a dump takes 5 minutes."""
    assert daly_s(5 * MINUTE, mtbl_h * HOUR) / MINUTE == pytest.approx(minutes, rel=0.006)


def test_youngs_formula_is_the_first_term() -> None:
    assert young_s(10.0, 6 * HOUR) == pytest.approx(math.sqrt(2 * 10 * 6 * HOUR))
    assert daly_s(1e-3, 1e6) == pytest.approx(young_s(1e-3, 1e6), rel=1e-3)
    assert daly_s(10.0, 4.0) == 4.0  # a save longer than twice M


@given(st.floats(1, 100), st.floats(500, 1e6), st.floats(0, 1000))
def test_no_other_interval_is_expected_to_do_better_than_dalys(cost: float, mtbl: float, recovery: float) -> None:
    best = expected_ettr(mtbl, daly_s(cost, mtbl), recovery, cost)
    for factor in (0.25, 0.5, 0.8, 1.25, 2.0, 4.0):
        assert expected_ettr(mtbl, factor * daly_s(cost, mtbl), recovery, cost) <= best + 1e-4


def simulated_ettr(mtbl: float, interval: float, recovery: float, cost: float, segments: int) -> float:
    """The process itself: segments of work and a save, started over by a loss after a whole recovery."""
    chance, wall = random.Random(7), 0.0
    for _ in range(segments):
        needed = interval + cost
        while (until := chance.expovariate(1 / mtbl)) < needed:
            wall += until
            needed = recovery + interval + cost
        wall += needed
    return segments * interval / wall


@pytest.mark.parametrize(
    ("mtbl", "interval", "recovery", "cost"), [(6 * HOUR, 1200.0, 900.0, 30.0), (HOUR, 1800.0, 600.0, 60.0)]
)
def test_the_expected_ratio_is_what_a_simulation_finds(
    mtbl: float, interval: float, recovery: float, cost: float
) -> None:
    found = simulated_ettr(mtbl, interval, recovery, cost, 40_000)
    assert expected_ettr(mtbl, interval, recovery, cost) == pytest.approx(found, rel=0.02)


def test_the_expected_ratio_agrees_with_its_first_order_when_losses_are_rare() -> None:
    mtbl, interval, recovery, cost = 72 * HOUR, 1200.0, 600.0, 10.0
    first_order = 1 - cost / interval - (interval / 2 + recovery) / mtbl
    assert expected_ettr(mtbl, interval, recovery, cost) == pytest.approx(first_order, abs=1e-3)


def test_the_expected_ratio_stays_between_none_and_all() -> None:
    assert expected_ettr(1.0, 1e6, 0.0, 0.0) == 0.0
    assert expected_ettr(1e12, 1.0, 0.0, 0.0) == pytest.approx(1.0)
    for mtbl, interval in ((0.0, 1.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="must be positive"):
            expected_ettr(mtbl, interval, 0.0, 0.0)


def test_what_was_seen_takes_over_from_what_was_assumed() -> None:
    assert mean_time_between_losses(0, 0.0, "secure") == ASSUMED_MTBL_S["secure"]
    assert mean_time_between_losses(0, 0.0, None) == mean_time_between_losses(0, 0.0, "new") == ASSUMED_MTBL_S["spot"]
    assert mean_time_between_losses(1, 2 * HOUR, "spot") == 4 * HOUR
    assert mean_time_between_losses(99, 100 * HOUR, "secure") == pytest.approx(1.72 * HOUR)
    assert mean_time_between_losses(0, 18 * HOUR, "spot") == 24 * HOUR  # no loss is news too


@given(
    cost=st.floats(0, 2000),
    iteration=st.floats(0.1, 5000),
    losses=st.integers(0, 50),
    observed=st.floats(0, 1e6),
    tier=st.sampled_from(["spot", "secure", None]),
    total=st.none() | st.integers(1, 500),
    upload=st.floats(0, 3000),
)
def test_the_interval_keeps_to_its_bounds(
    cost: float, iteration: float, losses: int, observed: float, tier: str | None, total: int | None, upload: float
) -> None:
    bounds = Bounds(total=total)
    found = choose_interval(cost, iteration, losses, observed, tier, bounds, upload_s=upload)
    assert found.seconds == found.rollouts * iteration
    assert 1 <= found.rollouts <= (total or math.inf)
    saving = cost / (found.seconds + cost)
    lost = found.seconds + upload
    slack = 1 + 1e-6
    if found.rollouts in (1, total) or "cannot all be kept" in found.reason:
        return
    assert (
        saving <= bounds.most_saving * slack and lost <= bounds.most_lost_s * slack and found.seconds >= upload / slack
    )


def test_more_losses_never_mean_fewer_saves() -> None:
    found = [choose_interval(10, 30, losses, 10 * HOUR, "spot").rollouts for losses in range(12)]
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


@pytest.mark.parametrize(("cost", "iteration"), [(None, 60.0), (10.0, None), (None, None), (10.0, 0.0)])
def test_before_anything_is_measured_the_default_stands(cost: float | None, iteration: float | None) -> None:
    found = choose_interval(cost, iteration, 0, 0.0, "spot")
    assert (found.rollouts, found.seconds) == (20, None)
    assert found.reason == "every 20 rollouts, the default, until the cost of a save and of a rollout are measured"
    assert choose_interval(cost, iteration, 0, 0.0, "spot", Bounds(total=5)).rollouts == 5


def test_the_reason_is_a_sentence_with_the_numbers() -> None:
    assert choose_interval(10, 60, 3, 2 * HOUR, "spot").reason == (
        "every 6 rollouts (6 min): a save takes 10 s, a rollout 60 s, a pod is lost every 2.0 h (assumed for a spot "
        "pod and corrected by 3 lost in 2.0 h), for which Young's formula gives 6 min; saving takes 2.7 % of the time"
    )
    assert "assumed for a secure pod)" in choose_interval(10, 60, 0, 0, "secure").reason
    assert "Daly's formula" in choose_interval(400, 30, 9, HOUR, "spot").reason


def test_the_reason_names_the_bound_that_decided() -> None:
    assert "at most 30 min of work" in choose_interval(30, 60, 0, 0, "secure").reason
    assert "at most 5 % of the time" in choose_interval(60, 30, 100, 40_000, "spot").reason
    assert "one rollout alone is more" in choose_interval(0.5, 4000, 0, 0, "spot").reason
    assert "cannot all be kept" in choose_interval(120, 30, 0, 0, "secure").reason
    assert "has 5 rollouts in all" in choose_interval(10, 60, 0, 0, "spot", Bounds(total=5)).reason
    assert "needs 15 min to take" in choose_interval(1, 60, 0, 0, "spot", upload_s=900).reason


def test_bounds_that_cost_much_say_so() -> None:
    assert "without the bounds 32 % more of the time would count" in choose_interval(60, 30, 100, 40_000, "spot").reason
