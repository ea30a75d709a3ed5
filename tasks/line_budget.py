"""How much of what a trainer prints goes into the stage's log: all of it, until it floods.

Prefect takes some hundred lines a second from a pod; what a trainer prints beyond that would wait in memory and be lost
when the pod is given back. The whole log stays in the trainer's own file on the pod.
"""

import time
from collections.abc import Callable, Iterator

LINES_A_SECOND, BURST = 100.0, 3000.0


class LineBudget:
    """Lets lines pass at a rate, after a burst; says how many it kept back. clock: seconds, monotonic."""

    def __init__(
        self, rate: float = LINES_A_SECOND, burst: float = BURST, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._at = burst, clock()
        self._kept_back = 0

    def take(self, line: str) -> Iterator[str]:
        """The lines to log now for this one: none, or itself, with a word on those before it that were kept back."""
        now = self._clock()
        self._left, self._at = min(self._burst, self._left + (now - self._at) * self._rate), now
        if self._left < 1:
            self._kept_back += 1
            return
        self._left -= 1
        yield from self.rest()
        yield line

    def rest(self) -> Iterator[str]:
        """A word on what was kept back and not told yet."""
        if self._kept_back:
            yield f"({self._kept_back} lines are left out here: the trainer printed more than is sent)"
            self._kept_back = 0
