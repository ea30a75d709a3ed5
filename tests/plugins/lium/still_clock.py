"""A clock whose sleep takes no time: minutes of pauses pass at once, and duties take their turns meanwhile.

Everything happens in the thread that sleeps, so the order is the same every time. What real servers do in real time
(a boot, say) needs the real clock.
"""

import threading
import time
from collections.abc import Callable

SHORTEST_PAUSE_S = 0.001  # a duty that asks for no pause must not stop time


class StillDuty:
    """A duty whose turns fall due while somebody sleeps."""

    def __init__(self, clock: "StillClock", turn: Callable[[], float]) -> None:
        self._clock, self._turn = clock, turn
        self.due = clock.now()
        self.stopped = self.under_way = False

    def wake(self) -> None:
        self.due = self._clock.now()

    def stop(self, patience_s: float = 2.0) -> None:
        self.stopped = True

    def take_turn(self) -> None:
        self.under_way = True
        self.due = float("inf")
        pause_s = self._turn()
        self.under_way = False
        self.due = min(self.due, self._clock.now() + max(pause_s, SHORTEST_PAUSE_S))


class StillClock:
    """`pauses` are the seconds that were asked for, in order."""

    def __init__(self) -> None:
        self._began = self._now = time.time()
        self._duties: list[StillDuty] = []
        self.pauses: list[float] = []

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now - self._began

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> None:
        self.pauses.append(seconds)
        end = self._now + max(0.0, seconds)
        while not (wake and wake.is_set()):
            due = [duty for duty in self._duties if not (duty.stopped or duty.under_way) and duty.due <= end]
            if not due:
                self._now = max(self._now, end)
                return
            first = min(due, key=lambda duty: duty.due)
            self._now = max(self._now, first.due)
            first.take_turn()

    def duty(self, name: str, turn: Callable[[], float]) -> StillDuty:
        self._duties.append(StillDuty(self, turn))
        return self._duties[-1]
