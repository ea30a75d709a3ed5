"""What a trainer has said so far, turned into figures: loss, reward, throughput, and where the stage is."""

from dataclasses import dataclass, field

from plugins.slime.progress import Point

LOSS_KEYS = ("train/loss",)
REWARD_KEYS = ("rollout/raw_reward",)

Series = dict[str, list[tuple[int, float]]]


@dataclass
class StageProgress:
    """Curves of one attempt by figure name ('loss', 'reward'), and the newest iteration heard of.

    steps_per_rollout: optimizer steps in one iteration; slime numbers `step` lines by step and all others by rollout.
    rewarded: whether rewards mean something; slime prints zeros in SFT.
    """

    steps_per_rollout: int = 1
    rewarded: bool = True
    series: Series = field(default_factory=dict)
    iteration: int | None = None
    first_iteration: int | None = None
    loaded: int | None = None

    def take(self, point: Point) -> None:
        """Fold one point of the trainer's log in."""
        if point.kind == "loaded":
            self.loaded = point.number
        elif point.kind == "step":
            self._record("loss", point.number, point.values, LOSS_KEYS)
            self._advance(point.number // self.steps_per_rollout)
        elif point.kind == "rollout":
            if self.rewarded:
                self._record("reward", point.number, point.values, REWARD_KEYS)
            self._advance(point.number)

    def last(self, figure: str) -> float | None:
        """Newest value of a figure, None before the first."""
        points = self.series.get(figure)
        return points[-1][1] if points else None

    def ends(self) -> tuple[dict[str, float], dict[str, float]]:
        """First and last of each figure, each the mean over a twentieth of the curve (at least one point)."""
        first, last = {}, {}
        for figure, points in self.series.items():
            values = [value for _, value in points]
            window = max(1, len(values) // 20)
            first[figure] = round(sum(values[:window]) / window, 4)
            last[figure] = round(sum(values[-window:]) / window, 4)
        return first, last

    def _record(self, figure: str, number: int, values: dict[str, float], keys: tuple[str, ...]) -> None:
        for key in keys:
            if key in values and values[key] == values[key]:
                self.series.setdefault(figure, []).append((number, values[key]))

    def _advance(self, number: int) -> None:
        self.first_iteration = number if self.first_iteration is None else self.first_iteration
        self.iteration = number if self.iteration is None else max(self.iteration, number)
