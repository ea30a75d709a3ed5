"""Figures that look like a run that is worth nothing although it goes on: said as warnings, never a reason to stop.

slime trains happily on a model whose weights were never loaded, or whose shape is not that of its checkpoint: the
engines then write nonsense until they are cut off (slime's docs/en/get_started/qa.md 1 and 9). One figure alone proves
nothing, a hard task also gives no reward and long answers; so several have to agree, in each of the first rollouts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from plugins.slime.progress import Point

JUDGED_ROLLOUTS = 2
"""Rollouts of an attempt that have to look the same before anything is said."""

# slime's own test asks for a difference of at most 0.1 (backends/megatron_utils/model.py:890); healthy runs are far
# below, and models that do not hold the same weights differ by whole nats.
LOGPROB_DIFF = 0.5
TRUNCATED, REPETITION, NO_REWARD = 0.95, 0.3, 0.01

_TRAINED, _RATIO = "trained", "rollout/truncated_ratio"
_SIGNS = {
    _RATIO: ("truncated answers", TRUNCATED),
    "rollout/repetition_frac": ("repeating answers", REPETITION),
    "train/train_rollout_logprob_abs_diff": ("log-prob difference", LOGPROB_DIFF),
}


@dataclass
class Symptoms:
    """Takes the points of one attempt; `warnings` says what they show, by name.

    steps_per_rollout: optimizer steps in an iteration.
    """

    steps_per_rollout: int = 1
    _rollouts: dict[int, dict[str, float]] = field(default_factory=dict)
    _not_finite: tuple[int, str] | None = None
    _finite_since: int = 0
    _said: dict[str, str] = field(default_factory=dict)

    def take(self, point: Point) -> None:
        """Take in what the log or the hook said."""
        if point.kind == "step":
            self._take_step(point)
        number = point.number // self.steps_per_rollout if point.kind == "step" else point.number
        if point.kind in ("step", "rollout", "perf"):
            seen = self._rollouts.setdefault(number, {})
            if point.kind == "step":
                seen[_TRAINED] = 1.0
            seen |= {key: value for key, value in point.values.items() if key in _SIGNS or key in _REWARDS}
            if len(self._rollouts) > 2 * JUDGED_ROLLOUTS + 2:
                del self._rollouts[sorted(self._rollouts)[JUDGED_ROLLOUTS]]  # only the first and the newest are judged

    def _take_step(self, point: Point) -> None:
        bad = next((key for key in ("train/grad_norm", "train/loss") if not _finite(point.values.get(key))), None)
        if bad is not None:
            self._not_finite, self._finite_since = (point.number, bad.removeprefix("train/")), 0
        else:
            self._finite_since += 1

    @property
    def warnings(self) -> dict[str, str]:
        """What the figures show now: a name and a sentence with the remedy; empty while all looks well."""
        found = {}
        if self._not_finite is not None and self._finite_since < 10 * self.steps_per_rollout:
            step, figure = self._not_finite
            found["gradient-not-finite"] = (
                f"{figure} was not finite at step {step}: lower optimisation.lr or set optimisation.clip_grad, look "
                "at the data"
            )
        whole = sorted(number for number, seen in self._rollouts.items() if {_TRAINED, _RATIO} <= seen.keys())
        first, newest = whole[:JUDGED_ROLLOUTS], whole[-JUDGED_ROLLOUTS:]
        if len(first) == JUDGED_ROLLOUTS and all(self._garbled(number) for number in newest):
            said = ", ".join(self._garbled(newest[-1]))
            if all(self._garbled(number) for number in first):
                found["garbled-output"] = (
                    f"the model writes nonsense since the first rollout ({said}): its weights were not loaded or "
                    "model.name and model.args are not those of model.hf_checkpoint"
                )
            else:
                found["collapsed-output"] = (
                    f"the model writes nonsense since about rollout {newest[0]} ({said}): go back to an earlier "
                    "checkpoint with a lower optimisation.lr"
                )
        self._said = {name: self._said.get(name, words) for name, words in found.items()}  # the same words again
        return dict(self._said)

    def _garbled(self, number: int) -> list[str]:
        """The signs that a rollout shows, in words, when they are enough: three of the four."""
        seen = self._rollouts[number]
        signs = [f"{words} {seen[key]:.2f}" for key, (words, limit) in _SIGNS.items() if _finite_at(seen, key) >= limit]
        rewards = [seen[key] for key in _REWARDS if key in seen]
        if rewards and max(rewards) <= NO_REWARD:
            signs.append(f"reward {max(rewards):.2f}")
        return signs if len(signs) >= 3 else []


_REWARDS = ("reward/mean", "rollout/raw_reward")


def _finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)


def _finite_at(seen: dict[str, float], key: str) -> float:
    value = seen.get(key, -math.inf)
    return value if not math.isnan(value) else -math.inf
