"""Proof that a trainer went on from the checkpoint that was restored, from what the trainer itself says.

slime does not fail when it cannot resume: without a usable `--load` it starts from `--ref-load`, without a cursor the
data starts from row 0, tensors that a checkpoint lacks are skipped with a print (slime.md 2.4). Each of these trains
for hours and looks well. Here is the logic alone: lines and points go in, a verdict with its table comes out; reading
files, stopping the trainer and telling the user are left to the caller.

    pending -> proved     all that was expected was seen
            -> failed     something seen cannot be after this restore; or training began and the loading was never said
            -> unproved   a `command` trainer, which need not say anything: not failed either
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plugins.slime.cursor import START, Cursor
from plugins.slime.layout import TRACKER
from plugins.slime.progress import Point, parse_hook_line, parse_line

Outcome = Literal["pending", "proved", "unproved", "failed"]
TrainerKind = Literal["slime", "tinyslime", "command", "plain"]

GRACE_S = 15.0
"""Seconds from the first training line until a load line that is not there counts as never written: the hook's file and
a process's standard output and error reach us by different ways and may overtake each other."""


@dataclass(frozen=True)
class Row:
    """One line of the proof. ok: None when it was not said and could not be compared."""

    what: str
    expected: str
    seen: str
    source: str
    ok: bool | None


@dataclass(frozen=True)
class Verdict:
    """reason: one sentence for a person; rows: the whole table, also while pending."""

    outcome: Outcome
    reason: str
    rows: tuple[Row, ...] = ()

    @property
    def proved(self) -> bool:
        """Whether the start is shown to be the one that was asked for."""
        return self.outcome == "proved"

    @property
    def failed(self) -> bool:
        """Whether this training is not the one that was asked for: stop it."""
        return self.outcome == "failed"


class ResumeProof:
    """Collects what one attempt says and judges it. A verdict `proved` or `failed` is final.

    restored: the iteration that was restored, None on a cold start. cursor: the data cursor saved with it, None when
    there is none to compare with. kind: `plain` is a `command` trainer too. load_dir: what `--load` names, the save dir
    or a view of it; it tells loading the checkpoint from loading a reference model, whose Megatron folder gives the
    same line with iteration 0 (slime actor.py:659-691).
    steps_per_rollout: optimizer steps in an iteration; without it `step` lines only say that training goes on.
    grace_s, clock: seconds, see GRACE_S.
    """

    def __init__(
        self,
        restored: int | None,
        cursor: Cursor | None = None,
        *,
        kind: TrainerKind = "slime",
        load_dir: Path | None = None,
        steps_per_rollout: int | None = None,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._restored, self._speaks = restored, kind not in ("command", "plain")
        self._cursor = cursor if restored is not None else START
        self._load_dir = None if load_dir is None else os.path.normpath(load_dir)
        self._steps, self._grace_s, self._clock = steps_per_rollout, grace_s, clock
        self._loaded: int | None = None
        self._first: tuple[int, str] | None = None
        self._data: dict[str, float] | None = None
        self._state_read = False
        self._tracker: int | None = None
        self._training_since: float | None = None
        self._wrong = ""
        self._settled: Verdict | None = None

    @property
    def expected_first(self) -> int:
        """The iteration that a right start trains first."""
        return 0 if self._restored is None else self._restored + 1

    def hear_line(self, line: str) -> None:
        """Take a whole line of the trainer's log; lines of no meaning here are passed over."""
        if point := parse_line(line):
            self.take(point)

    def hear_hook_line(self, line: str) -> None:
        """Take a whole line of the hook's file."""
        if point := parse_hook_line(line):
            self.take(point)

    def take(self, point: Point) -> None:
        """Take a point that `ProgressParser` gave; hearing the same thing twice changes nothing."""
        if self._settled:
            return
        if point.kind == "loaded":
            self._take_loaded(point)
        elif point.kind in ("skipped", "no_tracker", "no_dataset_state"):
            self._take_loss(point)
        elif point.kind == "dataset_state" and self._restored is not None:
            self._take_state(point)
        elif point.kind in ("step", "rollout", "perf"):
            self._take_training(point)

    def see_tracker(self, iteration: int | None) -> None:
        """Take what the tracker names now; a trainer that went on from N never names less than N."""
        if iteration is None or self._settled:
            return
        self._tracker = iteration
        if self._restored is not None and iteration < self._restored:
            self._contradict(f"the tracker went back from {self._restored} to {iteration}")

    def verdict(self, *, final: bool = False) -> Verdict:
        """The judgement on what was taken so far; final: the trainer has ended and all of its log was taken."""
        if self._settled:
            return self._settled
        outcome, reason = self._judge(final)
        verdict = Verdict(outcome, reason, tuple(self._rows()))
        if outcome in ("proved", "failed"):
            self._settled = verdict
        return verdict

    def _judge(self, final: bool) -> tuple[Outcome, str]:
        late = self._training_since is not None and self._clock() - self._training_since >= self._grace_s
        begun, unsaid = self._training_since is not None, self._restored is not None and self._loaded is None
        if self._wrong:
            more = f"; nothing says that {self._restored} was loaded: slime started from --ref-load"
            return "failed", self._wrong + (more if unsaid and begun and self._speaks else "")
        if unsaid and self._speaks and begun and (late or final):
            return "failed", (
                f"slime started from --ref-load: iteration {self._restored} was restored, but training began and no "
                "line says that it was loaded"
            )
        waits_for_data = self._data is None and self._cursor is not None and self._speaks and not (late or final)
        if self._first is None or unsaid or waits_for_data:
            if self._speaks and not final:
                return "pending", "the trainer has not said yet where it starts"
            return "unproved", self._unproved()
        start = "a cold start" if self._restored is None else f"iteration {self._restored} loaded"
        data = "" if self._data is None or self._cursor is None else f", data at {self._cursor}"
        return "proved", f"{start}, {self._first[0]} is trained first{data}"

    def _unproved(self) -> str:
        if self._restored is None or self._tracker is None or self._tracker == self._restored:
            return "not provable: the trainer did not say where it starts"
        return f"not provable: the trainer does not say what it loads; the tracker moved to {self._tracker}"

    def _contradict(self, reason: str) -> None:
        self._wrong = self._wrong or reason

    def _take_loaded(self, point: Point) -> None:
        ours = not point.text or self._load_dir in (None, os.path.normpath(point.text))
        if not ours or (point.number == 0 != self._restored and self._load_dir is None):
            return  # a reference model or start weights: Megatron calls those iteration 0
        self._loaded = point.number
        if self._restored is None:
            self._contradict(f"a cold start was asked for, but the trainer loaded iteration {point.number}")
        elif point.number != self._restored:
            self._contradict(f"the trainer loaded iteration {point.number}, but {self._restored} was restored")

    def _take_state(self, point: Point) -> None:
        self._state_read = True
        folder = os.path.normpath(Path(point.text).parent.parent)
        if point.number != self._restored:
            self._contradict(f"slime reads the data cursor of iteration {point.number}, not {self._restored}")
        elif point.text and self._load_dir not in (None, folder):
            self._contradict(f"slime reads the data cursor in {folder}, but the right one is in {self._load_dir}")

    def _take_loss(self, point: Point) -> None:
        """What a resume cannot survive. A cold start can: start weights may lack a tensor, and have no cursor."""
        if self._restored is None:
            return
        if point.kind == "skipped":
            self._contradict(f"{point.text} is not in the checkpoint and keeps its start value (partial load)")
        elif point.kind == "no_dataset_state":
            self._contradict(f"the data cursor {point.text} does not exist: the data would start again from row 0")
        elif not self._elsewhere(point.text):
            self._contradict(f"Megatron found no tracker ({point.text}) and loads nothing")

    def _elsewhere(self, tracker: str) -> bool:
        if self._load_dir is None or not tracker.endswith(TRACKER):
            return False
        return os.path.normpath(os.path.dirname(tracker)) != self._load_dir  # noqa: PTH120 - a text of the log

    def _take_training(self, point: Point) -> None:
        if self._training_since is None:
            self._training_since = self._clock()
        iteration, source = point.number, "hook" if point.hook else f"{point.kind} line"
        if point.kind == "step":
            if self._steps is None:
                return
            iteration //= self._steps
        if self._first is None:
            self._first = (iteration, source)
            if iteration != self.expected_first:
                after = "on a cold start" if self._restored is None else f"after the restore of {self._restored}"
                self._contradict(
                    f"{iteration} is the first iteration trained, but {self.expected_first} comes first {after}"
                )
        if iteration < self.expected_first:
            self._contradict(f"iteration {iteration} is trained again, although {self._restored} was restored")
        if point.hook and iteration == self.expected_first and self._data is None:
            self._take_data(point.values)

    def _take_data(self, values: dict[str, float]) -> None:
        """The first rollout's samples. `data/exact` 0: some that were drawn may be missing, so later ones are right."""
        if self._cursor is None or not {"data/first_index", "data/first_group"} & values.keys():
            return
        self._data = values
        for row in self._data_rows():
            if row.ok is False:
                self._contradict(f"the data goes on from {row.seen}, but {row.expected} was saved as the {row.what}")

    def _data_rows(self) -> list[Row]:
        rows = []
        for what, key in (("prompt", "data/first_group"), ("sample", "data/first_index")):
            seen = (self._data or {}).get(key)
            if self._cursor is None:
                rows.append(Row(f"next {what}", "not known", _shown(seen), "hook", None))
                continue
            saved = self._cursor.sample_group_index if what == "prompt" else self._cursor.sample_index
            exact = (self._data or {}).get("data/exact", 1.0) != 0.0
            ok = None if seen is None else seen == saved if exact else seen >= saved
            rows.append(Row(f"next {what}", f"{saved}" if exact else f"{saved} or later", _shown(seen), "hook", ok))
        return rows

    def _rows(self) -> list[Row]:
        loaded = Row(
            "loaded iteration",
            _shown(self._restored, "nothing"),
            _shown(self._loaded, "nothing"),
            "Megatron's load line",
            None if self._loaded is None and self._restored is not None else self._loaded == self._restored,
        )
        first, source = self._first or (None, "step, rollout or perf line, or hook")
        trained = Row(
            "first iteration",
            f"{self.expected_first}",
            _shown(first),
            source,
            None if first is None else first == self.expected_first,
        )
        rows = [loaded, trained, *self._data_rows()]
        if self._restored is not None and self._state_read:
            rows.append(Row("data cursor's file", "read", "read", "data source's line", True))
        if self._tracker is not None:
            moved = self._restored is None or self._tracker >= self._restored
            least = self.expected_first if self._restored is None else self._restored
            rows.append(Row("tracker", f"{least} or later", f"{self._tracker}", TRACKER, moved))
        return rows


def _shown(number: float | None, nothing: str = "not said") -> str:
    return nothing if number is None else f"{number:.0f}"
