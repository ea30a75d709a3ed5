"""What a run has spent and what is left of its budget, as properties."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from plugins.lium.budget import (
    LAST_SYNC_PART,
    LAST_SYNC_S,
    WARN_AT,
    Account,
    Charge,
    Money,
    account,
    last_sync_s,
    least_budget,
)

NOW = 1_800_000_000.0
DAY_S = 86_400.0

prices = st.floats(0.01, 100.0)
budgets = st.floats(0.01, 10_000.0)
ages_s = st.floats(0.0, 30 * DAY_S)
ended = st.builds(
    lambda price, age, part, cost: Charge(price, NOW - age, NOW - age * part, cost),
    prices,
    ages_s,
    st.floats(0.0, 1.0),
    st.none() | st.floats(0.0, 1000.0),
)
running = st.builds(lambda price, age: Charge(price, NOW - age), prices, ages_s)
charges = st.lists(ended | running, max_size=6)


def a_pod(price: float, budget: float, spent: float) -> Account:
    """One running pod that has spent so much of the budget."""
    return account([Charge(price, NOW - spent / price * 3600)], budget, NOW)


@given(charges, budgets)
def test_out_means_no_money_or_no_more_than_the_last_sync_takes(rows: list[Charge], budget: float) -> None:
    stand = account(rows, budget, NOW)
    if stand.money is Money.OUT and stand.spent < budget:
        assert stand.left_s is not None and stand.left_s <= LAST_SYNC_S


@given(charges, budgets)
def test_a_run_that_may_go_on_has_time_for_the_last_sync_before_the_money_is_gone(
    rows: list[Charge], budget: float
) -> None:
    stand = account(rows, budget, NOW)
    if stand.money is not Money.OUT and stand.rate:
        assert stand.left_s is not None and stand.left_s > last_sync_s(budget, stand.rate)
        later = account(rows, budget, NOW + stand.left_s * 0.999)
        assert later.spent <= budget * (1 + 1e-9)


@given(charges, budgets)
def test_the_warning_stands_from_80_percent_on(rows: list[Charge], budget: float) -> None:
    stand = account(rows, budget, NOW)
    if stand.money is Money.ENOUGH:
        assert stand.spent < WARN_AT * budget
    if stand.money is Money.LOW:
        assert WARN_AT * budget <= stand.spent < budget


@given(prices, st.floats(0.0, 0.79) | st.floats(0.81, 0.99) | st.floats(0.993, 1.1))
def test_a_budget_of_hours_is_warned_about_at_80_percent_and_ended_for_the_last_sync(price: float, part: float) -> None:
    budget = price * 10
    money = a_pod(price, budget, part * budget).money
    assert money is (Money.ENOUGH if part < 0.8 else Money.LOW if part <= 0.99 else Money.OUT)


@given(prices, st.floats(1.0, 1500.0), st.floats(0.0, 0.79))
@example(2.0, 60.0, 0.79)
def test_a_budget_of_minutes_is_warned_about_and_keeps_nine_tenths_of_its_time_for_training(
    price: float, seconds: float, part: float
) -> None:
    budget = price * seconds / 3600
    assert a_pod(price, budget, part * budget).money is Money.ENOUGH
    assert a_pod(price, budget, 0.85 * budget).money is Money.LOW
    assert a_pod(price, budget, 0.91 * budget).money is Money.OUT


@given(budgets, prices)
def test_the_last_sync_is_part_of_the_budgets_time_at_most(budget: float, rate: float) -> None:
    seconds = last_sync_s(budget, rate)
    assert 0 < seconds <= LAST_SYNC_S
    assert seconds <= LAST_SYNC_PART * budget / rate * 3600 + 1e-9


@given(charges, budgets)
def test_without_a_running_pod_nothing_runs_out_by_time(rows: list[Charge], budget: float) -> None:
    assume(all(row.until is not None for row in rows))
    stand = account(rows, budget, NOW)
    assert (stand.rate, stand.left_s) == (0, None)
    assert (stand.money is Money.OUT) is (stand.spent >= budget)


@given(charges)
def test_without_a_budget_there_is_always_enough(rows: list[Charge]) -> None:
    stand = account(rows, None, NOW)
    assert (stand.money, stand.left_s, stand.budget) == (Money.ENOUGH, None, None)
    assert stand.spent == pytest.approx(sum(row.usd(NOW) for row in rows))


@given(prices, ages_s, st.floats(0.0, 1000.0))
def test_the_bill_wins_over_the_estimate(price: float, age: float, cost: float) -> None:
    billed = Charge(price, NOW - age, NOW, cost)
    assert billed.usd(NOW) == billed.usd(NOW + DAY_S) == cost
    assert account([billed, billed], cost + 1, NOW).spent == pytest.approx(2 * cost)


@given(prices, ages_s, st.floats(0.0, DAY_S))
def test_a_pod_costs_its_price_an_hour_until_its_end(price: float, age: float, more: float) -> None:
    row = Charge(price, NOW - age)
    assert row.usd(NOW) == pytest.approx(age / 3600 * price, abs=1e-6)  # epoch seconds are that coarse
    assert row.usd(NOW + more) >= row.usd(NOW)
    closed = Charge(price, NOW - age, NOW)
    assert closed.usd(NOW + more) == row.usd(NOW)


@given(prices, ages_s)
def test_a_clock_that_was_set_back_makes_no_money(price: float, ahead: float) -> None:
    assert Charge(price, NOW + ahead).usd(NOW) == 0.0


@given(st.lists(running, min_size=1, max_size=4), budgets)
def test_pods_at_the_same_time_share_the_rest(rows: list[Charge], budget: float) -> None:
    stand = account(rows, budget, NOW)
    assert stand.rate == pytest.approx(sum(row.price_per_hour for row in rows))
    assert stand.left_s == pytest.approx(max(0.0, budget - stand.spent) / stand.rate * 3600)


def test_no_budget_at_all_buys_nothing() -> None:
    assert account([], 0.0, NOW).money is Money.OUT


def test_the_least_budget_is_one_dead_man_period_of_one_pod() -> None:
    assert least_budget(2.0, 1800.0) == 1.0
