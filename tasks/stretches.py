"""What an attempt did when: stretches of time that never overlap and leave nothing out.

The arithmetic under `accounting.py` and `losses.py`: a `Course` turns one attempt's few recorded moments into
stretches, `lay_out` lays the stretches of all attempts and pods side by side.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.accounting import AttemptTimes

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
