"""Which call meets which trouble: windows of time and single calls of a schedule, asked once for each call.

What a trouble does to a call is decided where the call is made (`sim_lium.py`, `sim_board.py`).
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from random import Random

from tests.faults.plan import CallFault, Window
from tests.faults.virtual_clock import START, VirtualClock


@dataclass(frozen=True)
class Trouble:
    """What happens to one call. done: a changing call is carried out all the same."""

    kind: str
    done: bool


class Weather:
    """The troubles of one service."""

    def __init__(
        self, clock: VirtualClock, rng: Random, windows: Collection[Window], calls: Collection[CallFault] = ()
    ) -> None:
        self._clock, self._rng = clock, rng
        self.windows = sorted(windows, key=lambda window: window.start_s)
        self._calls = {(fault.target, fault.call): Trouble(fault.kind, fault.done) for fault in calls}
        self._counts: Counter[str] = Counter()

    def meets(self, tags: Collection[str]) -> Trouble | None:
        """The trouble of a call that is one of `tags` ('all' is every call); None: nothing happens to it."""
        if self._calls:
            for target in ("all", *tags):
                self._counts[target] += 1
                if (target, self._counts[target]) in self._calls:
                    return self._calls[target, self._counts[target]]
        now_s = self._clock._now - START
        for window in self.windows:
            if window.start_s > now_s:
                return None
            if now_s >= window.end_s or (window.target != "all" and window.target not in tags):
                continue
            if window.chance >= 1.0 or self._rng.random() < window.chance:
                return Trouble(window.kind, self._rng.random() < 0.5)
        return None

    def spells(self, targets: Collection[str] = (), *, surely: bool = False) -> list[tuple[float, float]]:
        """The times (epoch seconds) in which calls to any of these targets may, or surely do, meet trouble."""
        return [
            (START + window.start_s, START + window.end_s)
            for window in self.windows
            if (window.target == "all" or window.target in targets) and (window.chance >= 1.0 or not surely)
        ]
