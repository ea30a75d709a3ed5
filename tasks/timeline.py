"""A run's time line: what each attempt did when, in stretches that never overlap and leave nothing out, and a picture.

`Course` and `lay_out` are the arithmetic under `accounting.py`; `timeline_png` draws its report: one row for each
attempt and for each pod that no attempt used, training in blue, what it cost in other colours.
"""

import heapq
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from plugins.lium.offers import duration
from tasks.plain_text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tasks.accounting import AttemptTimes, Report

EDGE = "#444444"
LABEL = 30  # characters beside a row
WAIT, GAP, POD, ATTEMPT = range(4)
"""Ranks of stretches: waiting for a pod, what is not told apart inside an attempt, a pod's start, an attempt's work."""


class Kind(StrEnum):
    """What a second went to. TRAINING and REDO are in the final state, LOST is training that is not."""

    TRAINING = "productive"
    REDO = "redo"
    LOST = "lost work"
    SAVE = "save"
    DETECT = "detect"
    RENT = "rent"
    BOOT = "boot"
    PREFLIGHT = "preflight"
    RESTORE = "restore"
    START = "trainer start"
    UNKNOWN = "not told apart"
    IDLE = "idle"


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


@dataclass(frozen=True)
class Stretch:
    """Epoch seconds from `begin` to `end` of one kind. row: attempt (`sft 1`) or pod it belongs to, '' for none.

    rank: where stretches overlap, the highest counts, and among equals the one that began last.
    """

    begin: float
    end: float
    kind: Kind
    row: str = ""
    rank: int = 0

    @property
    def seconds(self) -> float:
        """Length."""
        return self.end - self.begin

    def within(self, begin: float, end: float) -> float:
        """Seconds of it between two moments."""
        return max(0.0, min(self.end, end) - max(self.begin, begin))


def lay_out(stretches: Iterable[Stretch], begin: float, end: float) -> tuple[Stretch, ...]:
    """The stretches cut so that each moment of [begin, end] is in exactly one; gaps become IDLE. In order of time."""
    inside = [s for s in stretches if s.end > begin and s.begin < end and s.begin < s.end]
    inside.sort(key=lambda s: s.begin)
    edges = sorted({begin, end, *(e for s in inside for e in (s.begin, s.end) if begin < e < end)})
    open_now: list[tuple[int, float, int]] = []  # a heap: highest rank first, then the one that began last
    laid: list[Stretch] = []
    coming = 0
    for left, right in pairwise(edges):
        while coming < len(inside) and inside[coming].begin <= left:
            heapq.heappush(open_now, (-inside[coming].rank, -inside[coming].begin, -coming))
            coming += 1
        while open_now and inside[-open_now[0][2]].end <= left:
            heapq.heappop(open_now)
        top = inside[-open_now[0][2]] if open_now else Stretch(left, right, Kind.IDLE)
        if laid and (laid[-1].kind, laid[-1].row) == (top.kind, top.row):
            laid[-1] = Stretch(laid[-1].begin, right, top.kind, top.row)
        else:
            laid.append(Stretch(left, right, top.kind, top.row))
    return tuple(laid)


@dataclass
class Course:
    """What one attempt trained: of its iterations those up to `seen` are repeats, and those after `kept` were lost.

    base: iteration it went on from. until: when it was over, or now. every, cost_s: rollouts between saves and seconds
    of each. pace_s: seconds of an iteration of this stage, filled in when all its attempts have been `measured`.
    """

    attempt: "AttemptTimes"
    base: int | None
    seen: int
    kept: int
    until: float
    every: int | None
    cost_s: float
    pace_s: float | None = None

    @property
    def last(self) -> int | None:
        """Newest iteration it trained; None when it trained none, or when it is not known from which on."""
        newest = self.attempt.last_iteration
        return None if newest is None or self.base is None or newest <= self.base else newest

    @property
    def count(self) -> int:
        """Iterations that it trained."""
        return 0 if self.last is None or self.base is None else self.last - self.base

    @property
    def kept_count(self) -> int:
        """Iterations of these that are in the final state."""
        return 0 if self.last is None or self.base is None else max(0, min(self.last, self.kept) - self.base)

    @property
    def begins_at(self) -> float | None:
        """When its first iteration began."""
        return self.iterations[0][1] if self.iterations else None

    @property
    def told(self) -> bool:
        """Whether all its iterations are told apart."""
        return len(self.iterations) == self.count

    @property
    def redo_s(self) -> float | None:
        """Seconds spent on iterations that an earlier attempt had trained."""
        if self.base is not None and self.base >= self.seen:
            return 0.0
        return sum(end - begin for n, begin, end in self.iterations if n <= self.seen) if self.iterations else None

    @cached_property
    def iterations(self) -> list[tuple[int, float, float]]:
        """(iteration, begin, end) in order, in epoch seconds; empty where the records do not tell them apart."""
        if self.last is None or self.base is None:
            return []
        first, new, new_at, trained_to = self.base + 1, self._new, self.attempt.first_new_at, self._trained_to
        head, head_to = (self.last, trained_to) if new_at is None or new > self.last else (new, new_at)
        own = self.measured()
        pace_s = own[0] / own[1] if own else self.pace_s
        if head_to is None or pace_s is None:
            return []
        known = (self.attempt.trainer_at, self.attempt.started_at, self.attempt.submitted_at)
        earliest = next(moment for moment in known if moment is not None)
        needed_s = (head - self.base) * pace_s + self._saves(first, head) * self.cost_s
        found = list(self._spread(first, head, max(earliest, head_to - needed_s), head_to))
        if head < self.last and trained_to is not None:
            found += self._spread(head + 1, self.last, head_to, trained_to)
        return found

    def measured(self) -> tuple[float, int] | None:
        """Seconds from the first new iteration's end to the last one's, without saves, and the iterations between."""
        new_at, trained_to = self.attempt.first_new_at, self._trained_to
        if self.last is None or self.last <= self._new or new_at is None or trained_to is None:
            return None
        seconds = trained_to - new_at - self._saves(self._new + 1, self.last) * self.cost_s
        return (seconds, self.last - self._new) if seconds > 0 else None

    def stretches(self) -> Iterator[Stretch]:
        """Everything from its submission to its end; what is not told apart shows through as UNKNOWN."""
        attempt, stop = self.attempt, self._stop
        yield self._stretch(attempt.submitted_at, self.until, Kind.UNKNOWN, GAP)
        if attempt.trainer_at is not None:
            yield self._stretch(attempt.submitted_at, attempt.trainer_at, Kind.RESTORE)
            none = attempt.last_iteration is None and attempt.first_new_at is None
            began = stop if none else self.begins_at
            yield self._stretch(attempt.trainer_at, attempt.trainer_at if began is None else began, Kind.START)
        for n, begin, end in self.iterations:
            yield self._stretch(begin, end, self._kind(n))
        for (_, _, end), (_, begin, _) in pairwise(self.iterations):
            yield self._stretch(end, begin, Kind.SAVE)
        yield from self._last_words()

    def durable_saves(self) -> list[tuple[float, str, int]]:
        """(moment, row, iteration) of its checkpoints that a store has, at the moment they were trained."""
        durable = self.attempt.durable if self.attempt.durable is not None else -1
        ends = [(end, self.attempt.row, n) for n, _, end in self.iterations if n <= durable]
        return [save for save in ends if self._due(save[2]) or save[2] == durable]

    def _last_words(self) -> Iterator[Stretch]:
        """After its last whole iteration: a save, the iteration that was being trained, the upload, the silence."""
        attempt, stop, trained_to = self.attempt, self._stop, self._trained_to
        if self.iterations and trained_to is not None and stop is not None:
            saved = trained_to + (self.cost_s if self.last is not None and self._due(self.last) else 0.0)
            rest = {"completed": Kind.SAVE, "running": Kind.TRAINING}.get(attempt.end, Kind.LOST)
            yield self._stretch(trained_to, min(saved, stop), Kind.SAVE)
            yield self._stretch(min(saved, stop), stop, rest)
        if attempt.end == "completed" and stop is not None:
            yield self._stretch(stop, self.until, Kind.SAVE)
        elif attempt.died_at is not None and attempt.over_at is not None:
            yield self._stretch(attempt.died_at, attempt.over_at, Kind.DETECT)

    @property
    def _new(self) -> int:
        return max(self.seen, self.base if self.base is not None else -1) + 1

    @property
    def _stop(self) -> float | None:
        """When the trainer ended; None when that is not known."""
        attempt = self.attempt
        if attempt.end == "running":
            return self.until
        if attempt.end != "completed" or attempt.ended_at is None:
            return attempt.died_at
        upload_s = attempt.phases.get("upload", 0.0)
        if attempt.trainer_at is None or "train" not in attempt.phases:
            return attempt.ended_at - upload_s
        return min(attempt.ended_at, attempt.trainer_at + attempt.phases["train"] - upload_s)

    @property
    def _trained_to(self) -> float | None:
        """When its last whole iteration was trained, as near as is known."""
        if self.attempt.last_iteration_at is not None or self._stop is None or self.last is None:
            return self.attempt.last_iteration_at
        return self._stop - (self.cost_s if self.attempt.end == "completed" and self._due(self.last) else 0.0)

    def _due(self, n: int) -> bool:
        """Whether it saved after iteration n."""
        return bool(self.every) and self.base is not None and n > self.base and (n + 1) % (self.every or 1) == 0

    def _saves(self, first: int, last: int) -> int:
        """Saves between iterations first-1 and last."""
        return sum(self._due(n - 1) for n in range(first, last + 1))

    def _spread(self, first: int, last: int, begin: float, end: float) -> Iterator[tuple[int, float, float]]:
        saves = self._saves(first, last)
        cost_s = self.cost_s if saves * self.cost_s < end - begin else 0.0
        each_s = (end - begin - saves * cost_s) / (last - first + 1)
        at = begin
        for n in range(first, last + 1):
            at += cost_s if self._due(n - 1) else 0.0
            yield n, at, end if n == last else at + each_s
            at += each_s

    def _kind(self, n: int) -> Kind:
        return Kind.LOST if n > self.kept else Kind.REDO if n <= self.seen else Kind.TRAINING

    def _stretch(self, begin: float, end: float, kind: Kind, rank: int = ATTEMPT) -> Stretch:
        return Stretch(begin, end, kind, self.attempt.row, rank)


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
        moment = loss.declared_at if loss.at is None else loss.at
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
