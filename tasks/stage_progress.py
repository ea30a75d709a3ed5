"""What a trainer has said so far, turned into figures: loss, reward, and where the stage is."""

from dataclasses import dataclass, field

from plugins.slime.progress import Point

LOSS = "train/loss"
LOGGED_REWARD = "rollout/raw_reward"  # counts samples whose environment failed as 0
COUNTED_REWARD = "reward/mean"  # from our hook: samples that count


@dataclass
class StageProgress:
    """Curves of one attempt by figure ('loss' by step, 'reward' by rollout), and the newest iteration heard of.

    steps_per_rollout: optimizer steps in one iteration; slime numbers `step` lines by step and all others by rollout.
    rewarded: whether rewards mean something; slime prints zeros in SFT.
    """

    steps_per_rollout: int = 1
    rewarded: bool = True
    iteration: int | None = None
    first_iteration: int | None = None
    loaded: int | None = None
    _curves: dict[str, dict[int, float]] = field(default_factory=dict)

    def take(self, point: Point) -> None:
        """Fold one point of the trainer's log or of the hook's file in."""
        if point.kind == "loaded":
            self.loaded = point.number
        elif point.kind == "step":
            self._record("loss", point.number, point.values.get(LOSS))
            self._advance(point.number // self.steps_per_rollout)
        elif point.kind == "rollout" and self.rewarded:
            counted = point.values.get(COUNTED_REWARD)
            self._record("reward", point.number, point.values.get(LOGGED_REWARD), overwrite=False)
            self._record("reward", point.number, counted)

    def curve(self, figure: str) -> list[tuple[int, float]]:
        """Points of a figure in order; empty when there is none."""
        return sorted(self._curves.get(figure, {}).items())

    def figures(self) -> list[str]:
        """Names of the figures there are."""
        return sorted(self._curves)

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
        self.first_iteration = number if self.first_iteration is None else self.first_iteration
        self.iteration = number if self.iteration is None else max(self.iteration, number)
