"""What a trainer has said so far, turned into figures: loss, reward, where the stage is, and where its time goes."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from plugins.slime.progress import Point
from plugins.slime.symptoms import Symptoms

LOSS = "train/loss"
SAVE_TIME = "perf/save_model_time"
LOGGED_REWARD = "rollout/raw_reward"  # counts samples whose environment failed as 0
COUNTED_REWARD = "reward/mean"  # from our hook: samples that count

# slime's keys and the names of their figures. Those of a `step` and those of a rollout; of two keys
# that give one figure the first that is said counts (slime v0.3.1: backends/megatron_utils/model.py, data.py,
# ray/rollout.py, utils/train_metric_utils.py).
OF_STEPS = {
    LOSS: "loss",
    "train/grad_norm": "grad norm",
    "train/kl_loss": "KL",
    "train/ppo_kl": "policy KL",
    "train/entropy_loss": "entropy",
    "train/train_rollout_logprob_abs_diff": "log-prob difference",
}
OF_ROLLOUTS = {
    "rollout/response_len/mean": "response length",
    "rollout/response_lengths": "response length",
    "rollout/truncated_ratio": "truncated",
    "rollout/truncated": "truncated",
    "rollout/repetition_frac": "repeating",
    "perf/tokens_per_gpu_per_sec": "tokens per GPU-second",
    "perf/actor_train_tok_per_s": "trained tokens per second",
}
# Seconds of an iteration; the save's are said one iteration late.
OF_TIME = {
    "perf/rollout_time": "generate",
    "perf/actor_train_time": "train",
    "perf/log_probs_time": "log-probs",
    "perf/ref_log_probs_time": "reference",
    "perf/update_weights_time": "update weights",
    SAVE_TIME: "save",
    "perf/step_time": "whole",
}
TABLE_ROWS = 20
_MEANINGLESS_IN_SFT = ("response length", "truncated", "repeating", "generate")


@dataclass
class StageProgress:
    """Curves of one attempt by figure ('loss' by step, 'reward' by rollout), and the newest iteration heard of.

    trained_before: newest iteration that an earlier attempt of the stage trained, so what comes after it is new.
    first_new_at, last_iteration_at: epoch seconds. save_s: seconds that one save held up the training.

    steps_per_rollout: optimizer steps in one iteration; slime numbers `step` lines by step and all others by rollout.
    rewarded: whether rewards mean something; slime prints zeros in SFT.
    stalled: what the watchdog has to say.
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
    stalled: str | None = None
    _first_at: float = 0.0
    _curves: dict[str, dict[int, float]] = field(default_factory=dict)
    _times: dict[int, dict[str, float]] = field(default_factory=dict)
    _symptoms: Symptoms = field(default_factory=Symptoms)

    def take(self, point: Point) -> None:
        """Fold one point of the trainer's log or of the hook's file in."""
        self._symptoms.steps_per_rollout = self.steps_per_rollout
        if self.rewarded or point.kind == "step":
            self._symptoms.take(point)
        if point.kind == "step":
            self._record_all(OF_STEPS, point)
            self._advance(point.number // self.steps_per_rollout)
        elif point.kind == "rollout" and self.rewarded:
            counted = point.values.get(COUNTED_REWARD)
            self._record("reward", point.number, point.values.get(LOGGED_REWARD), overwrite=False)
            self._record("reward", point.number, counted)
        elif point.kind == "eval":
            for name, value in point.values.items():
                if name.count("/") == 1 and not name.endswith("-removed"):  # slime adds lengths under `eval/<name>/`
                    self._record(name, point.number, value, overwrite=point.hook)
        if point.kind in ("rollout", "perf"):
            self._record_all(OF_ROLLOUTS, point)
            self._record_times(point)
        if (save_s := point.values.get(SAVE_TIME)) is not None and math.isfinite(save_s):
            self.save_s = save_s

    @property
    def warning(self) -> str | None:
        """What should worry whoever trains: a stall that is near, output that is worth nothing."""
        said = [f"{name}: {words}" for name, words in self._symptoms.warnings.items()]
        return "; ".join([*([self.stalled] if self.stalled else []), *said]) or None

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
            per = self._per_iteration(figure)
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
        curve = self._curves.get(figure)
        return curve[max(curve)] if curve else None

    def ends(self) -> tuple[dict[str, float], dict[str, float]]:
        """First and last of loss, reward and evaluations, each the mean over a tenth of its curve (one point at
        least)."""
        first, last = {}, {}
        for figure in (name for name in self.figures() if name in ("loss", "reward") or name.startswith("eval/")):
            values = [value for _, value in self.curve(figure)]
            window = max(1, len(values) // 10)
            first[figure] = round(sum(values[:window]) / window, 4)
            last[figure] = round(sum(values[-window:]) / window, 4)
        return first, last

    def newest(self) -> dict[str, float]:
        """The last value of each figure, rounded: what a heartbeat carries."""
        said = {figure: curve[max(curve)] for figure, curve in sorted(self._curves.items())}
        return {figure: float(f"{value:.4g}") for figure, value in said.items() if math.isfinite(value)}

    def split(self) -> dict[str, float]:
        """Mean seconds of the newest iterations by what they were spent on; empty when the trainer does not say."""
        rows = [self._times[number] for number in sorted(self._times)[-TABLE_ROWS:]]
        parts = [part for part in OF_TIME.values() if any(part in row for row in rows)]
        return {part: round(sum(row.get(part, 0.0) for row in rows) / len(rows), 2) for part in parts}

    def table(self) -> list[dict[str, float | int | None]]:
        """The newest iterations, one row each: the figures, and seconds by what they were spent on."""
        figures = [figure for figure in self.figures() if not figure.startswith("eval/")]
        last = -1 if self.iteration is None else self.iteration
        rows: list[dict[str, float | int | None]] = []
        for number in range(max(self.first_iteration or 0, last - TABLE_ROWS + 1), last + 1):
            means, times = self.at(number, 1), self._times.get(number, {})
            times = {part: round(times[part], 2) for part in OF_TIME.values() if part in times}
            rows.append({"iteration": number, **{figure: means.get(figure) for figure in figures}, **_seconds(times)})
        return rows

    def _per_iteration(self, figure: str) -> int:
        return self.steps_per_rollout if figure in OF_STEPS.values() else 1

    def _record_all(self, names: Mapping[str, str], point: Point) -> None:
        for key, figure in names.items():
            if key in point.values and (self.rewarded or figure not in _MEANINGLESS_IN_SFT):
                first = next(other for other, name in names.items() if name == figure)
                self._record(figure, point.number, point.values[key], overwrite=key == first)

    def _record_times(self, point: Point) -> None:
        for key, part in OF_TIME.items():
            seconds = point.values.get(key)
            if seconds is None or not math.isfinite(seconds) or (not self.rewarded and part in _MEANINGLESS_IN_SFT):
                continue
            number = point.number - (key == SAVE_TIME)
            self._times.setdefault(number, {})[part] = seconds
        while len(self._times) > 4 * TABLE_ROWS:
            del self._times[min(self._times)]

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


def _seconds(times: Mapping[str, float]) -> dict[str, float]:
    return {f"{part} (s)": seconds for part, seconds in times.items()}
