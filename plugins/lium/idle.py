"""When a pod sits idle: GPU use under a limit for a time, decided from the readings alone.

A pod that does nothing costs as much as one that trains, and nobody looks at it at night. But a reading that is
missing says nothing: a time without readings is never counted as idle. Taking the readings is `gpu_use.py`'s, what to
do about an idle pod is the caller's; this module reads no clock and no network.
"""

import math
from dataclasses import dataclass

LONGEST_GAP_S = 180.0


@dataclass(frozen=True)
class Idle:
    """A time of idleness: since when (the caller's clock), for how many seconds, and the mean use in percent."""

    since: float
    seconds: float
    mean: float


class IdleWatch:
    """Follows one pod's GPU use.

    `limit_percent`: use under it is idle (at it is busy, so 0 is never idle). `after_s`: for how long.
    `longest_gap_s`: the longest time between two readings that still counts.
    """

    def __init__(self, limit_percent: float, after_s: float, longest_gap_s: float = LONGEST_GAP_S) -> None:
        self._limit = limit_percent
        self._after_s = after_s
        self._longest_gap_s = longest_gap_s
        self._told = False
        self._readings: list[float] = []
        self._since = self._last = 0.0

    def saw(self, percent: float | None, at: float) -> Idle | None:
        """Take a reading (None or NaN: not known) made at `at`, seconds of a clock that does not jump.

        Returns the idleness once it has lasted for `after_s`, and again only after the pod was busy in between.
        """
        if percent is None or math.isnan(percent):
            return None
        if percent >= self._limit:
            self._told = False
            self._readings = []
            return None
        if not self._readings or not 0 <= at - self._last <= self._longest_gap_s:
            self._since, self._readings = at, []
        self._last = at
        self._readings.append(percent)
        seconds = at - self._since
        if self._told or seconds < self._after_s:
            return None
        self._told = True
        return Idle(self._since, seconds, sum(self._readings) / len(self._readings))
