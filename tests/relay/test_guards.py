"""The relay suite with one guard left out each: it must count breaches, or it would prove nothing."""

import pytest

from tests.relay.figures import DOUBLE, STALE, TORN, Figures
from tests.relay.part import run_part

SEED = 1


@pytest.mark.parametrize(
    ("guard", "part", "figure"),
    [
        ("completeness", ("kill", "folder", SEED, 20), TORN),
        ("hashes", ("kill", "folder", SEED, 12), TORN),
        ("pointer last", ("kill", "folder", SEED, 15), TORN),
        ("claim", ("split", "folder", SEED, 5), DOUBLE),
        ("superseded", ("returning", "folder+folder", SEED, 12), STALE),
    ],
)
def test_without_this_guard_the_suite_finds_breaches(guard: str, part: tuple[object, ...], figure: str) -> None:
    figures = run_part(*map(str, part), guard)
    assert figures.counts[figure] > 0, figures


def test_a_part_that_cannot_be_carried_out_is_no_success() -> None:
    with pytest.raises(RuntimeError, match="ended with 1"):
        run_part("kill", "nowhere", SEED, 1)


@pytest.mark.parametrize(("part", "kind"), [("split", "folder"), ("returning", "folder+folder")])
def test_a_part_in_which_nothing_happened_is_no_success(part: str, kind: str) -> None:
    with pytest.raises(RuntimeError, match="nothing was carried out"):
        run_part(part, kind, SEED, 0)


def test_the_last_line_of_the_fault_suite_names_the_six_figures() -> None:
    figures = Figures()
    figures.breach(STALE, "it went on from an older one", 2)
    assert figures.line() == (
        "kill_points=0 torn_selected=0 stale_selected=2 lost_batches=0 repeated_batches=0 double_publish=0"
    )
    assert figures.bad == 2 and Figures.from_json(figures.to_json()) == figures
