"""A run's time line as a picture: a row for each attempt and for each pod that no attempt used, training in blue, what
it cost in other colours.
"""

import io
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from plugins.lium.offers import duration
from tasks.plain_text import plain
from tasks.stretches import Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tasks.accounting import Report

EDGE = "#444444"
LABEL = 30  # characters beside a row

# Okabe and Ito's colours, which people with any colour vision tell apart; what was lost or is not known is hatched too.
PAINT: dict[Kind, tuple[str, str]] = {
    Kind.TRAINING: ("#0072B2", ""),
    Kind.REDO: ("#56B4E9", ""),
    Kind.LOST: ("#D55E00", "////"),
    Kind.SAVE: ("#009E73", ""),
    Kind.DETECT: ("#000000", ""),
    Kind.RENT: ("#E3E3E3", ""),
    Kind.BOOT: ("#999999", ""),
    Kind.PREFLIGHT: ("#CC79A7", ""),
    Kind.RESTORE: ("#E69F00", ""),
    Kind.START: ("#F0E442", ""),
    Kind.UNKNOWN: ("#FFFFFF", "...."),
}


def timeline_png(report: "Report") -> bytes:
    """The report as a PNG, 1000 pixels wide and as high as its rows need, which get narrower where there are many.

    Imports matplotlib only here, because flow modules must stay light.
    """
    from matplotlib.figure import Figure

    unit, unit_s = _unit(report.wall_s)
    rows = {name: place for place, (name, _) in enumerate(report.rows)}
    height = min(0.36, max(0.1, 10 / max(1, len(rows))))  # inches of a row
    picture = Figure(figsize=(10, 1.75 + height * max(1, len(rows))), dpi=100, layout="constrained")
    axes = picture.add_subplot()

    def at(moment: float) -> float:
        return (moment - report.begin) / unit_s

    for stretch in report.stretches:
        if stretch.kind in PAINT and stretch.row in rows:
            colour, hatch = PAINT[stretch.kind]
            span, edge = (at(stretch.begin), stretch.seconds / unit_s), EDGE if hatch else colour
            where = (rows[stretch.row] - 0.32, 0.64)
            axes.broken_barh([span], where, facecolor=colour, hatch=hatch, edgecolor=edge, linewidth=0)
    _mark(axes, report, rows, at, min(8.0, 60 * height))
    began = datetime.fromtimestamp(report.begin, UTC)
    axes.set_yticks(range(len(rows)), [_label(name, beside) for name, beside in report.rows], parse_math=False)
    axes.tick_params(axis="y", labelsize=min(10.0, 60 * height))
    axes.set(ylim=(max(1, len(rows)) - 0.4, -0.6), xlim=(0, max(at(report.end), 1e-9) * 1.07))
    axes.set_xlabel(f"{unit} since {began:%Y-%m-%d %H:%M} UTC")
    axes.set_title(_title(report), loc="left", fontsize=11, parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(picture, report)
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png")
    return buffer.getvalue()


def _mark(axes: "Axes", report: "Report", rows: dict[str, int], at: Callable[[float], float], size: float) -> None:
    """Losses as crosses with what they lost, durable checkpoints as small triangles under the bar."""
    saves = [(at(moment), rows[row] + 0.4) for moment, row, _ in report.saves if row in rows]
    axes.plot([x for x, _ in saves], [y for _, y in saves], "^", color=EDGE, markersize=size / 2.3)
    for loss in report.losses:
        moment = loss.moment
        if moment is None or loss.row not in rows:
            continue
        axes.plot(at(moment), rows[loss.row], "X", color=PAINT[Kind.LOST][0], markeredgecolor="white", markersize=size)
        words = f"−{loss.iterations} iteration{'' if loss.iterations == 1 else 's'}" if loss.iterations else "none lost"
        place = (at(max([moment, *(s.end for s in report.stretches if s.row == loss.row)])), rows[loss.row])
        axes.annotate(words, place, (8, 0), textcoords="offset points", va="center", fontsize=size)


def _legend(picture: "Figure", report: "Report") -> None:
    """Every kind there is with its seconds, and the two marks."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Patch | Line2D] = []
    for kind, (colour, hatch) in PAINT.items():
        seconds = report.seconds[kind]
        if seconds > 0:
            edge = EDGE if hatch else colour
            label = f"{kind} {duration(seconds)}"
            entries.append(Patch(facecolor=colour, hatch=hatch, edgecolor=edge, linewidth=0.5, label=label))
    marks = [("X", "loss", PAINT[Kind.LOST][0], report.losses), ("^", "durable checkpoint", EDGE, report.saves)]
    entries += [
        Line2D([], [], linestyle="", marker=m, color=colour, label=words) for m, words, colour, of in marks if of
    ]
    picture.legend(handles=entries, loc="outside lower left", ncols=6, frameon=False, fontsize=8, columnspacing=1.2)


def _title(report: "Report") -> str:
    least = "at least " if report.seconds[Kind.UNKNOWN] else ""
    ratio = "not known" if report.ettr is None else f"{least}{100 * report.ettr:.0f} %"
    count = len(report.losses)
    losses = f"{count} {'loss' if count == 1 else 'losses'}"
    words = (report.run_id, f"ETTR {ratio}", losses, f"{report.iterations} iterations in {duration(report.wall_s)}")
    return plain(" · ".join((*words, f"${report.cost_usd:.2f}")))


def _label(name: str, beside: str) -> str:
    text = plain(f"{name} · {beside}" if beside else name).replace("\n", " ")
    return text if len(text) <= LABEL else text[: LABEL - 1] + "…"


def _unit(wall_s: float) -> tuple[str, float]:
    """Unit of the axis, and its seconds."""
    if wall_s < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if wall_s < 3 * 3600 else ("hours", 3600.0)
