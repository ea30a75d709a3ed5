"""Curves become one PNG, however many there are and however few points they have."""

import math
import struct

import pytest

from tasks.pictures import MOST_POINTS, curves_png, thinned


@pytest.mark.parametrize(("count", "figures"), [(1, 1), (2, 3), (200, 2), (20_000, 10)])
def test_curves_are_drawn_on_one_sheet_small_enough_for_an_artifact(count: int, figures: int) -> None:
    curve = [(number, 1 / (1 + number)) for number in range(count)]
    png = curves_png({f"figure {number}": curve for number in range(figures)}, title="run", over={"figure 0": "step"})
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and png.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) == (360 * min(2, figures), 192 * math.ceil(figures / 2))
    assert len(png) < 15_000 * figures + 10_000


def test_values_that_are_no_numbers_are_left_out() -> None:
    assert curves_png({"grad norm": [(0, math.inf), (1, math.nan), (2, 1.0)], "none": []}, title="run")


def test_a_long_curve_keeps_its_first_and_its_last_point() -> None:
    curve = [(number, float(number)) for number in range(MOST_POINTS * 3 + 1)]
    found = thinned(curve)
    assert len(found) <= MOST_POINTS + 1 and (found[0], found[-1]) == (curve[0], curve[-1])
    assert thinned(curve[:5]) == curve[:5]
