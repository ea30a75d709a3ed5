"""What a trainer has said so far, turned into figures: loss, reward, and where the stage is."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from plugins.slime.progress import Point

LOSS = "train/loss"
SAVE_TIME = "perf/save_model_time"
LOGGED_REWARD = "rollout/raw_reward"  # counts samples whose environment failed as 0
COUNTED_REWARD = "reward/mean"  # from our hook: samples that count


@dataclass
class StageProgress:
    """Curves of one attempt by figure ('loss' by step, 'reward' by rollout), and the newest iteration heard of.

    trained_before: newest iteration that an earlier attempt of the stage trained, so what comes after it is new.
    first_new_at, last_iteration_at: epoch seconds. save_s: seconds that one save held up the training.

    steps_per_rollout: optimizer steps in one iteration; slime numbers `step` lines by step and all others by rollout.
    rewarded: whether rewards mean something; slime prints zeros in SFT.
    """

    steps_per_rollout: int = 1
    rewarded: bool = True
    iteration: int | None = None
    first_iteration: int | None = None
    trained_before: int | None = None
    first_new_at: float | None = None
    last_iteration_at: float | None = None
    save_s: float | None = None
    now: Callable[[], float] = time.time
    _first_at: float = 0.0
    _curves: dict[str, dict[int, float]] = field(default_factory=dict)

    def take(self, point: Point) -> None:
        """Fold one point of the trainer's log or of the hook's file in."""
        if point.kind == "step":
            self._record("loss", point.number, point.values.get(LOSS))
            self._advance(point.number // self.steps_per_rollout)
        elif point.kind == "rollout" and self.rewarded:
            counted = point.values.get(COUNTED_REWARD)
            self._record("reward", point.number, point.values.get(LOGGED_REWARD), overwrite=False)
            self._record("reward", point.number, counted)
        elif point.kind == "eval":
            for name, value in point.values.items():
                self._record(name, point.number, value)
        if (save_s := point.values.get(SAVE_TIME)) is not None and math.isfinite(save_s):
            self.save_s = save_s

    def curve(self, figure: str) -> list[tuple[int, float]]:
        """Points of a figure in order; empty when there is none."""
        return sorted(self._curves.get(figure, {}).items())

    def figures(self) -> list[str]:
        """Names of the figures there are."""
        return sorted(self._curves)

    def at(self, iteration: int, window: int) -> dict[str, float]:
        """Each figure's mean over the last `window` iterations up to this one, for its checkpoint's manifest."""
        found = {}
        for figure in self.figures():
            per = self.steps_per_rollout if figure == "loss" else 1
            numbers = range((iteration - window + 1) * per, (iteration + 1) * per)
            values = [value for number, value in self.curve(figure) if number in numbers and math.isfinite(value)]
            if values:
                found[figure] = round(sum(values) / len(values), 6)
        return found

    @property
    def iteration_s(self) -> float | None:
        """Mean seconds of an iteration since the first one was heard of; None before the second."""
        if self.last_iteration_at is None or self.iteration is None or self.first_iteration is None:
            return None
        done = self.iteration - self.first_iteration
        return (self.last_iteration_at - self._first_at) / done if done > 0 else None

    def last(self, figure: str) -> float | None:
        """Newest value of a figure, None before the first."""
        curve = self.curve(figure)
        return curve[-1][1] if curve else None

    def ends(self) -> tuple[dict[str, float], dict[str, float]]:
        """First and last of each figure, each the mean over a tenth of the curve (at least one point)."""
        first, last = {}, {}
        for figure in self.figures():
            values = [value for _, value in self.curve(figure)]
            window = max(1, len(values) // 10)
            first[figure] = round(sum(values[:window]) / window, 4)
            last[figure] = round(sum(values[-window:]) / window, 4)
        return first, last

    def _record(self, figure: str, number: int, value: float | None, *, overwrite: bool = True) -> None:
        if value is not None and value == value:
            curve = self._curves.setdefault(figure, {})
            curve[number] = value if overwrite else curve.get(number, value)

    def _advance(self, number: int) -> None:
        now = self.now()
        if self.first_iteration is None:
            self.first_iteration, self._first_at = number, now
        if self.iteration is None or number > self.iteration:
            self.last_iteration_at = now
        if self.first_new_at is None and (self.trained_before is None or number > self.trained_before):
            self.first_new_at = self.last_iteration_at
        self.iteration = number if self.iteration is None else max(self.iteration, number)
