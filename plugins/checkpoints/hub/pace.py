"""Fewer commits an hour than the Hub allows to one repository.

The Hub takes 128 commits an hour to a repository and then answers 429 for the rest of that hour, to every writer. We
stop earlier, so that a person, or a claim by a newer attempt, always gets through.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from plugins.errors import StoreError

HOUR_S = 3600.0
PER_HOUR = 96
"""Commits that we make in any hour at the most."""
FOR_CLAIMS = 6
"""Of these, kept for changes that carry no data: a new attempt must not wait because the one before saved too often."""


class Pace:
    """Counts the commits to one repository over a sliding hour. Safe to be used by several threads.

    now: seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float] = time.time, *, per_hour: int = PER_HOUR) -> None:
        self._now, self._per_hour = now, per_hour
        self._lock = threading.Lock()
        self._made: deque[float] = deque()
        self._closed_until = 0.0
        self.seeded = False

    def seed(self, made: Iterable[float]) -> None:
        """Count commits that others, or this run before it was restarted, made at these times of the Hub's clock.

        Only once: later ones are ours and were counted, or are few.
        """
        with self._lock:
            if self.seeded:
                return
            self.seeded = True
            now = self._now()
            recent = (min(at, now) for at in made if at > now - HOUR_S)
            self._made = deque(sorted([*self._made, *recent]))

    def record(self) -> None:
        """A commit was made, or may have been."""
        with self._lock:
            self._made.append(self._now())

    def close_for(self, seconds: float) -> None:
        """The Hub itself said that no commit is taken for so long."""
        with self._lock:
            self._closed_until = max(self._closed_until, self._now() + seconds)

    def wait_s(self, *, claim: bool = False) -> float:
        """Seconds until the next commit may be made; 0 when it may be made now."""
        allowed = self._per_hour - (0 if claim else FOR_CLAIMS)
        with self._lock:
            now = self._forget()
            full_s = self._made[-allowed] + HOUR_S - now if len(self._made) >= allowed else 0.0
            return max(0.0, full_s, self._closed_until - now)

    @property
    def is_busy(self) -> bool:
        """Whether so much of the hour is used that what can wait for the next commit should."""
        with self._lock:
            self._forget()
            return len(self._made) >= self._per_hour // 2

    def check(self, where: str, *, claim: bool = False) -> None:
        """Raise StoreError, with the time when it goes on, if no commit may be made now."""
        if wait_s := self.wait_s(claim=claim):
            at = time.strftime("%H:%M:%S", time.localtime(self._now() + wait_s))
            raise StoreError(
                f"{where}: {self._per_hour - FOR_CLAIMS} commits were made in the last hour and the Hub takes no more "
                f"than 128: the next one goes at {at} (in {wait_s:.0f} s). Save less often to have every checkpoint"
            )

    def _forget(self) -> float:
        now = self._now()
        while self._made and self._made[0] <= now - HOUR_S:
            self._made.popleft()
        return now


_known: dict[tuple[str, str], Pace] = {}
_known_lock = threading.Lock()


def pace_of(endpoint: str, repo: str) -> Pace:
    """The one count of this process for a repository: its stores and its pushes share the Hub's limit."""
    with _known_lock:
        return _known.setdefault((endpoint, repo), Pace())
