"""Virtual time for the fault suite: hours of renting and training pass in milliseconds, the same way every time.

One thread, one heap of events. Whoever sleeps runs what falls due meanwhile: events of the world, duties of the
steering process, also nested when a duty itself sleeps. `Process` is the clock as one flow process sees it: it can be
killed like with `kill -9` (every later call raises `Killed`), interrupted with Ctrl-C, and put to sleep like a laptop.
"""

import signal
import threading
from collections.abc import Callable, Collection
from heapq import heappop, heappush

from plugins.lium.clock import Duty

START = 1_800_000_000.0
LEAST_PAUSE_S = 0.001  # whoever asks for no pause, or for less than a float can tell, must not stop time
MOST_CALLS = 400_000  # far more than the longest run needs: a loop that never sleeps would hang the suite


class Killed(BaseException):
    """The process is gone. No code of it has any effect after this, whatever it catches."""


class Runaway(AssertionError):
    """The process made so many calls that it must be turning in circles."""


class VirtualClock:
    """The world's time. Times are epoch seconds."""

    def __init__(self) -> None:
        self._now = START
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._pushed = 0

    def now(self) -> float:
        """Epoch seconds."""
        return self._now

    def monotonic(self) -> float:
        """Seconds since the world began."""
        return self._now - START

    def at(self, time: float, callback: Callable[[], None]) -> None:
        """Run `callback` at a time; one in the past runs at the next step."""
        self._pushed += 1
        heappush(self._heap, (time, self._pushed, callback))

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Run `callback` so many seconds from now."""
        self.at(self._now + seconds, callback)

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> None:
        """Let time pass, at most until `wake` is set."""
        self.advance(self._now + max(LEAST_PAUSE_S, seconds), wake.is_set if wake else None)

    def advance(self, end: float, stop: Callable[[], bool] | None = None) -> None:
        """Run all events until `end`, or until `stop()` is true after one of them (then time stands there)."""
        heap = self._heap
        if stop is not None and stop():
            return
        while heap and heap[0][0] <= end:
            due, _, callback = heappop(heap)
            self._now = max(self._now, due)  # a nested sleep may have passed it already
            callback()
            if stop is not None and stop():
                return
        self._now = max(self._now, end)

    def duty(self, name: str, turn: Duty) -> "VirtualDuty":
        """Begin a duty of no particular process."""
        return VirtualDuty(self, name, turn)


class VirtualDuty:
    """A duty whose turns are events. Its turns never overlap; one that raises ends the duty and is noted."""

    def __init__(self, clock: VirtualClock, name: str, turn: Duty, process: "Process | None" = None) -> None:
        self.name = name
        self._clock, self._turn, self._process = clock, turn, process
        self._stopped = self._running = self._woken = False
        self._ticket = 0
        self._schedule(clock.now())

    def wake(self) -> None:
        """Let the next turn begin now, or right after the one under way."""
        if self._running:
            self._woken = True
        elif not self._stopped:
            self._schedule(self._clock.now())

    def stop(self, patience_s: float = 2.0) -> None:
        """No turn begins after this."""
        self._stopped = True

    def _schedule(self, time: float) -> None:
        self._ticket = ticket = self._ticket + 1
        self._clock.at(time, lambda: self._due(ticket))

    def _due(self, ticket: int) -> None:
        process = self._process
        if self._stopped or ticket != self._ticket or (process is not None and not process.alive):
            return
        if process is not None and process.asleep_until > self._clock.now():
            self._schedule(process.asleep_until)
            return
        self._running, self._woken = True, False
        if process is not None:
            process.duties_running += 1
        try:
            pause_s = self._turn()
        except Killed:
            self._stopped = True
            return
        except Exception as error:
            self._stopped = True
            if process is None:
                raise
            process.dead_duties.append(f"{self.name}: {type(error).__name__}: {error}")
            return
        finally:
            self._running = False
            if process is not None:
                process.duties_running -= 1
        self._schedule(self._clock.now() + (0.0 if self._woken else max(pause_s, LEAST_PAUSE_S)))


class Process:
    """A clock and a life: one start of the flow. Every seam of the world asks it before and after each effect.

    die_at_call: number of the seam call to `target` (from 1) at which it is killed; 'all' counts every call.
    after_effect: only when the call was carried out, before its answer is known.
    """

    def __init__(
        self,
        clock: VirtualClock,
        die_at_call: int | None = None,
        *,
        target: str = "all",
        after_effect: bool = False,
    ) -> None:
        self._clock = clock
        self._die_at_call, self._target, self._after_effect = die_at_call, target, after_effect
        self._counted = 0
        self._last_call = 0
        self._interrupted = False
        self._slept_s = 0.0
        self.alive = True
        self.killed = False
        self.interrupted = False
        self.started_at = clock.now()
        self.ended_at: float | None = None
        self.asleep_until = 0.0
        self.calls = 0
        self.duties_running = 0
        self.dead_duties: list[str] = []
        self.naps: list[tuple[float, float]] = []

    # -- the clock that the product sees --------------------------------------------------------------------------

    def now(self) -> float:
        """Epoch seconds."""
        self.check()
        return self._clock._now

    def monotonic(self) -> float:
        """Seconds this process was awake in the world: like the machine's own, it stands while a laptop sleeps."""
        self.check()
        return self._clock._now - START - self._slept_s

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> None:
        """Let time pass, at most until `wake` is set. Raises Killed, and KeyboardInterrupt in the main line."""
        self.check()
        clock, heap = self._clock, self._clock._heap
        end = clock._now + max(LEAST_PAUSE_S, seconds)
        if not (heap and heap[0][0] <= end):
            if wake is None or not wake.is_set():
                clock._now = end
        else:
            clock.advance(end, lambda: self._disturbed(wake))
        while self.alive and self.asleep_until > clock._now:
            clock.advance(self.asleep_until, lambda: not self.alive)
        self.check()
        if self._interrupted and not self.duties_running:
            self._interrupted = False
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not held off while pods are given back
                raise KeyboardInterrupt

    def duty(self, name: str, turn: Duty) -> VirtualDuty:
        """Begin a duty that ends with this process."""
        self.check()
        return VirtualDuty(self._clock, name, turn, self)

    # -- what the world does to it --------------------------------------------------------------------------------

    def kill(self) -> None:
        """End it like `kill -9`. Nothing happens to one that has ended."""
        if self.alive:
            self.killed = True
            self.end()

    def end(self) -> None:
        """The process is over; its duties stop."""
        self.alive = False
        self.ended_at = self._clock._now

    def interrupt(self) -> None:
        """Press Ctrl-C: the main line's sleep raises KeyboardInterrupt."""
        if self.alive and not self.interrupted:
            self.interrupted = self._interrupted = True

    def suspend(self, seconds: float) -> None:
        """Close the laptop for so long: the world goes on, the process does nothing."""
        if self.alive and self.asleep_until <= self._clock._now:
            self.asleep_until = self._clock._now + seconds
            self._slept_s += seconds
            self.naps.append((self._clock._now, self.asleep_until))

    # -- what seams ask -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise Killed when the process is gone."""
        if not self.alive:
            raise Killed

    def enter(self, tags: Collection[str] = ()) -> int:
        """A seam call to `tags` begins; returns its number for `leave`. May kill the process."""
        self.check()
        self.calls += 1
        if self._target == "all" or self._target in tags:
            self._counted += 1
            if self._counted == self._die_at_call:
                self._last_call = self.calls
                if not self._after_effect:
                    self.kill()
                    raise Killed
        if self.calls > MOST_CALLS:
            raise Runaway(f"{self.calls} calls and no end")
        return self.calls

    def leave(self, call: int) -> None:
        """The effect of a seam call is done. May kill the process."""
        if call == self._last_call:
            self.kill()
        self.check()

    def _disturbed(self, wake: threading.Event | None) -> bool:
        if not self.alive or (self._interrupted and not self.duties_running):
            return True
        return wake is not None and wake.is_set()
