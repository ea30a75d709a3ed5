"""Stretches are cut so that each moment is in exactly one, and the picture is drawn for any number of attempts."""

import struct
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.accounting import PodTimes, build_report
from tasks.stretches import Kind, Stretch, lay_out
from tasks.timeline import PAINT, timeline_png
from tests.tasks.test_accounting import T0, told

stretches = st.builds(
    Stretch, st.floats(-10, 110), st.floats(-10, 110), st.sampled_from(list(Kind)), st.sampled_from("ab"),
    st.integers(0, 3),
)  # fmt: skip


@given(st.lists(stretches, max_size=12), st.floats(0, 100))
def test_each_moment_is_in_the_stretch_of_highest_rank(found: list[Stretch], moment: float) -> None:
    laid = lay_out(found, 0.0, 100.0)
    assert laid[0].begin == 0.0 and laid[-1].end == 100.0
    assert all(left.end == right.begin for left, right in pairwise(laid))
    (here, *_) = [s for s in laid if s.begin <= moment <= s.end]
    over = [s for s in found if s.begin < moment < s.end]
    if all(moment not in (s.begin, s.end) for s in (*found, *laid)):
        best = max(((s.rank, s.begin) for s in over), default=None)
        kinds = {s.kind for s in over if (s.rank, s.begin) == best}
        assert here.kind in kinds if over else here.kind is Kind.IDLE


def test_neighbours_of_one_kind_become_one() -> None:
    parts = [Stretch(float(n), n + 1.0, Kind.TRAINING, "rl 1") for n in range(5)]
    assert lay_out(parts, 0.0, 5.0) == (Stretch(0.0, 5.0, Kind.TRAINING, "rl 1"),)
    assert lay_out([], 3.0, 3.0) == ()


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and png.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.parametrize("losses", [0, 2, 11])
def test_a_run_is_drawn_with_a_row_for_each_attempt_and_small_enough_for_an_artifact(losses: int) -> None:
    png = timeline_png(told([9] * losses, 150).report())
    assert size(png) == (1000, 175 + 36 * (losses + 1))
    assert len(png) < 100_000


def test_a_hundred_attempts_are_drawn_narrower() -> None:
    png = timeline_png(told([5] * 99, 150).report())
    assert size(png) == (1000, 1175) and len(png) < 400_000


def test_a_run_without_records_is_drawn_too() -> None:
    assert size(timeline_png(build_report("r", [], [], now=T0)))[0] == 1000


def test_foreign_text_is_drawn_as_it_is() -> None:
    story = told([6])
    story.pods = [replace(pod, host="$\\frac{[/red]\x1b]0;x\x07" * 9, tier="$_^{") for pod in story.pods]
    story.pods.append(PodTimes("$x", T0, None, None, T0 + 60, None, None, None, None))
    size(timeline_png(replace(story.report(), run_id="$\\bad")))


def test_a_loss_whose_moment_is_not_known_is_drawn_where_it_was_declared() -> None:
    story = told([6])
    story.attempts[0] = replace(story.attempts[0], lost_at=None)
    size(timeline_png(story.report()))


def test_every_kind_but_idle_has_a_colour_of_its_own() -> None:
    assert set(PAINT) == set(Kind) - {Kind.IDLE}
    assert len({colour for colour, _ in PAINT.values()}) == len(PAINT)
