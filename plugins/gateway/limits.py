"""How much one pod may ask of the gateway, so that a flood from one costs the others nothing.

Prefect's server manages some 30 state calls a second for everybody; a worker and a stage need about three. What is over
the limit gets 429 with Retry-After, which Prefect's client honours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

QUIET_S = 10.0
LOUD = 5  # lines of one pod in QUIET_S; the rest is counted


@dataclass(frozen=True)
class Limits:
    """Per pod. Sizes in bytes, times in seconds."""

    calls_per_s: float = 10.0
    burst: int = 60
    at_once: int = 8
    body_bytes: int = 6 * 2**20  # Prefect's log handler sends up to 4 MB in one call
    call_bytes: int = 2**18  # every so many bytes of a body count as one more call
    body_s: float = 30.0
    upstream_s: float = 30.0
    sockets: int = 12
    message_bytes: int = 2**20
    messages_per_s: float = 20.0
    messages_burst: int = 200
    handshakes: int = 64  # websockets that have not shown a token yet, of all pods together
    handshake_s: float = 10.0
    look_s: float = 3.0  # how long it may take to notice that a queue is gone


class Bucket:
    """A token bucket: so many a second, after a burst."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._level, self._at = float(burst), clock()

    def take(self) -> float:
        """Take one if it is there and return 0; else the seconds after which it will be."""
        self._fill()
        if self._level < 1:
            return (1 - self._level) / self._rate
        self._level -= 1
        return 0.0

    def reserve(self) -> float:
        """Take one in any case; the seconds to wait before it is used."""
        self._fill()
        self._level -= 1
        return max(0.0, -self._level / self._rate)

    def owe(self, cost: float) -> None:
        """Charge for what turned out larger than one call; those that follow pay."""
        self._level -= cost

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now


class Allowance:
    """What one pod has left: its rate, its calls under way, its sockets."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self.calls = Bucket(limits.calls_per_s, limits.burst, clock)
        self.messages = Bucket(limits.messages_per_s, limits.messages_burst, clock)
        self.under_way = 0
        self.sockets = 0

    def wait_s(self) -> int:
        """Whole seconds after which a call may be tried again; 0 when it may go on now."""
        if self.under_way >= self._limits.at_once:
            return 1
        return math.ceil(self.calls.take())


class Complaints:
    """Counts what was refused and says so, a few lines for each pod in any ten seconds."""

    def __init__(self, log: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._log, self._clock = log, clock
        self._said: dict[str, tuple[float, int]] = {}
        self.count = 0

    def note(self, pod: str, method: str, path: str, reason: str) -> None:
        """Count one refusal. A stranger wrote most of it: only what is printable and short is shown."""
        self.count += 1
        now = self._clock()
        since, said = self._said.get(pod, (now, 0))
        if now - since >= QUIET_S:
            if said > LOUD:
                self._log(f"WARNING gateway: {said - LOUD} more refusals of {pod} were not shown")
            since, said = now, 0
        self._said[pod] = (since, said + 1)
        if said < LOUD:
            self._log(f"WARNING gateway: refused {pod} {_shown(method)} {_shown(path)}: {_shown(reason)}")


def _shown(text: str) -> str:
    return "".join(char if char.isascii() and char.isprintable() else "?" for char in text[:120])
