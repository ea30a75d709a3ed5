"""A trainer that floods is thinned in the stage's log, and the log says so."""

from tasks.line_budget import LineBudget


def test_lines_pass_until_they_flood_and_what_is_left_out_is_counted() -> None:
    now = [0.0]
    budget = LineBudget(rate=1, burst=3, clock=lambda: now[0])
    assert [line for number in range(5) for line in budget.take(str(number))] == ["0", "1", "2"]
    now[0] = 1.0
    assert list(budget.take("5")) == ["(2 lines are left out here: the trainer printed more than is sent)", "5"]
    assert list(budget.take("6")) == []
    assert list(budget.rest()) == ["(1 lines are left out here: the trainer printed more than is sent)"]
    assert list(budget.rest()) == []


def test_a_pause_fills_the_budget_no_further_than_the_burst() -> None:
    now = [0.0]
    budget = LineBudget(rate=100, burst=2, clock=lambda: now[0])
    now[0] = 1000.0
    assert [line for number in range(4) for line in budget.take(str(number))] == ["0", "1"]
