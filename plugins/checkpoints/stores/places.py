"""What the threads of one process do with places at the moment, so that none removes what another one writes.

Between processes this needs no help: a place has one writer, and only those of superseded attempts are removed. Within
an attempt a checkpoint may be sent while another one is sealed, given up, or removed by retention.
"""

import threading
from collections.abc import Callable, Collection, Iterable


class Places:
    """Names here are keys in the backend: `run-1/sft/iter_0000019.a2`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._written: list[str] = []
        self._removed: list[str] = []
        self._given_up: set[str] = set()

    def take(self, candidates: Iterable[str]) -> str:
        """The first candidate that is not being removed. It is written until `leave` is called as often as this."""
        with self._lock:
            name = next(name for name in candidates if name not in self._removed)
            self._written.append(name)
            return name

    def leave(self, names: Iterable[str], *, given_up: Collection[str] = ()) -> None:
        """Writing has ended. What was given up may be removed, unless it is taken again."""
        with self._lock:
            for name in names:
                self._written.remove(name)
            self._given_up |= set(given_up)

    def begin_removing(self, names: Iterable[str], wanted: Callable[[str, bool], bool] = lambda *_: True) -> list[str]:
        """Those of `names` that nobody writes and that `wanted(name, given_up)`; nobody takes them before the end."""
        with self._lock:
            written = set(self._written)
            chosen = [name for name in names if name not in written and wanted(name, name in self._given_up)]
            self._removed += chosen
            return chosen

    def end_removing(self, names: Iterable[str]) -> None:
        """They are gone, or the removal failed."""
        with self._lock:
            for name in names:
                self._removed.remove(name)


class Work:
    """Places that one call writes and removes, until `end`."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.taken: list[str] = []
        self.removed: list[str] = []

    def take(self, candidates: Iterable[str]) -> str:
        """See `Places.take`."""
        self.taken.append(self._places.take(candidates))
        return self.taken[-1]

    def remove(self, names: list[str], wanted: Callable[[str, bool], bool] = lambda *_: True) -> list[str]:
        """See `Places.begin_removing`."""
        chosen = self._places.begin_removing(names, wanted)
        self.removed += chosen
        return chosen

    def end(self) -> None:
        """Leave all of them. What was written counts as given up: if the state names it, it is no leftover anyway."""
        self._places.end_removing(self.removed)
        self._places.leave(self.taken, given_up=self.taken)
