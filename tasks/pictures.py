"""Pictures of a stage: its figures drawn over iterations or steps, several on one sheet, as PNG bytes."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

Curve = Sequence[tuple[int, float]]
COLUMNS = 2
MOST_POINTS = 1000


def curves_png(curves: Mapping[str, Curve], *, title: str, over: Mapping[str, str] | None = None) -> bytes:
    """A sheet with a small drawing of each curve: figure (y) over iterations (x), with a running mean for many points.

    over: what x is for a figure, where it is not the iteration. Values that are not finite are left out; of long curves
    every so many points are drawn. Returns a PNG of some 10 kB for each drawing; imports matplotlib only here, because
    flow modules must stay light.
    """
    from matplotlib.figure import Figure

    rows = math.ceil(len(curves) / COLUMNS)
    columns = min(COLUMNS, len(curves))
    sheet = Figure(figsize=(4.5 * columns, 2.4 * rows), dpi=80, layout="tight")
    sheet.suptitle(title, fontsize="medium")
    for place, (figure, curve) in enumerate(curves.items(), start=1):
        axes = sheet.add_subplot(rows, columns, place)
        _draw(axes, thinned([point for point in curve if math.isfinite(point[1])]))
        axes.set_title(figure, fontsize="small")
        axes.set_xlabel((over or {}).get(figure, "iteration"), fontsize="x-small")
        axes.tick_params(labelsize="x-small")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    sheet.savefig(buffer, format="png")
    return buffer.getvalue()


def thinned(curve: Curve) -> Curve:
    """At most MOST_POINTS points, evenly taken, the last one among them."""
    step = math.ceil(len(curve) / MOST_POINTS)
    return curve if step <= 1 else [*curve[:-1:step], curve[-1]]


def _draw(axes: Any, curve: Curve) -> None:
    steps, values = [step for step, _ in curve], [value for _, value in curve]
    window = max(1, len(values) // 20)
    if window == 1:
        axes.plot(steps, values, color="#2563eb", linewidth=1, marker="." if len(values) < 3 else None)
        return
    axes.plot(steps, values, color="#94a3b8", linewidth=0.8)
    recent = [values[max(0, place + 1 - window) : place + 1] for place in range(len(values))]
    axes.plot(steps, [sum(part) / len(part) for part in recent], color="#2563eb", linewidth=1.5)
