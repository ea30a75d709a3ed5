"""A curve becomes a PNG, however few points it has."""

import struct

import pytest

from tasks.pictures import curve_png


@pytest.mark.parametrize("count", [1, 2, 200])
def test_a_curve_is_drawn_as_a_png_small_enough_for_an_artifact(count: int) -> None:
    png = curve_png([(number, 1 / (1 + number)) for number in range(count)], title="loss", figure="loss")
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and png.endswith(b"IEND\xaeB`\x82")
    assert struct.unpack(">II", png[16:24]) == (700, 320)
    assert len(png) < 100_000
