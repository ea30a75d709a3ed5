"""The real service's limit on pod listings: so many a minute for a whole account (lium.md section 2).

A client that polls for each of its pods is found out here, and not on the first busy day of the real service.
"""

import math
from collections import deque
from collections.abc import Callable

WINDOW_S = 60.0


class TooMany(Exception):
    """The account has used its listings up (429); `retry_after_s` is in whole seconds."""

    def __init__(self, limit: int, retry_after_s: int) -> None:
        super().__init__(f"Rate limit exceeded: {limit} listings of pods a minute for an account")
        self.retry_after_s = retry_after_s


class SlidingMinute:
    """At most `limit` calls of an account in any 60 seconds; refused ones do not count. `now` gives seconds."""

    def __init__(self, limit: int, now: Callable[[], float]) -> None:
        self.limit = limit
        self.now = now
        self._at: dict[str, deque[float]] = {}

    def count(self, account: str) -> None:
        """Count one call. Raises TooMany."""
        now, calls = self.now(), self._at.setdefault(account, deque())
        while calls and calls[0] <= now - WINDOW_S:
            calls.popleft()
        if len(calls) >= self.limit:
            oldest = calls[0] if calls else now
            raise TooMany(self.limit, max(1, math.ceil(oldest + WINDOW_S - now)))
        calls.append(now)
