"""Time as a parameter: everything that waits for pods asks a clock, so that a test can let hours pass at once.

`SystemClock` is the real one: sleeping sleeps, a duty is a daemon thread. The fault suite has another, on which all
duties and the main line take turns in virtual time (`tests/faults`).
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

Duty = Callable[[], float]
"""Something done again and again beside the main line; returns the seconds until its next turn."""


class Background(Protocol):
    """A duty under way."""

    def wake(self) -> None:
        """Let the next turn begin now."""
        ...

    def stop(self, patience_s: float = 2.0) -> None:
        """No turn begins after this; waits up to `patience_s` for one that is under way. May be called again."""
        ...


class Clock(Protocol):
    """What the waiting code needs of time."""

    def now(self) -> float:
        """Epoch seconds: for what servers and people are told."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump: for measuring how long something takes."""
        ...

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> None:
        """Wait, at most until `wake` is set."""
        ...

    def duty(self, name: str, turn: Duty) -> Background:
        """Begin a duty; its first turn is at once."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Epoch seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> None:
        """Wait, at most until `wake` is set."""
        if wake is None:
            time.sleep(max(0.0, seconds))
        else:
            wake.wait(max(0.0, seconds))

    def duty(self, name: str, turn: Duty) -> "DutyThread":
        """Begin a duty in a daemon thread of its own."""
        return DutyThread(name, turn)


class DutyThread:
    """A duty of the real clock. A turn that raises ends it: duties answer for their own errors."""

    def __init__(self, name: str, turn: Duty) -> None:
        self._turn = turn
        self._wake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Let the next turn begin now."""
        self._wake.set()

    def stop(self, patience_s: float = 2.0) -> None:
        """No turn begins after this; waits up to `patience_s` for one that is under way."""
        self._stopped = True
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join(patience_s)

    def _run(self) -> None:
        while not self._stopped:
            pause_s = self._turn()
            self._wake.wait(max(0.0, pause_s))
            self._wake.clear()
