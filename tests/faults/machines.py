"""The simulated hosts and pods: what they are, what they cost, and whether they can be reached. See `market.py`."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.faults.plan import HostPlan

HOUR = 3600.0


def iso(time: float | None) -> str | None:
    """A time as the API writes it."""
    return (
        None if time is None else datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    )


@dataclass
class SimHost:
    """A machine on offer. price: USD per GPU-hour."""

    plan: HostPlan
    id: str
    price: float
    offered: bool = True
    taken: int = 0

    @property
    def free(self) -> int:
        """GPUs that can be rented now."""
        return self.plan.gpus - self.taken if self.offered else 0


@dataclass
class SimPod:
    """A rented container. Prices in USD per hour for the whole pod; times are epoch seconds.

    listed_from: when the listing first shows it; the look-up knows it at once. cut_at: since when its network is gone.
    pushed_at: when somebody first set its end after its boot.
    worker_at: from when its Prefect worker is online. charged_from, handed_on_at: the part of its life that the run
    pays, when it was taken over from an earlier run or left to the next.
    """

    id: str
    name: str
    host: SimHost
    gpus: int
    price: float
    rented_at: float
    listed_from: float
    termination_hours: float | None
    stranger: bool = False
    charged_from: float | None = None
    handed_on_at: float | None = None
    status: str = "PENDING"
    running_at: float | None = None
    ended_at: float | None = None
    removed_at: float | None = None
    removal_at: float | None = None
    pushed_at: float | None = None
    close_reason: str | None = None
    cut_at: float | None = None
    version: int = 0
    worker_at: float | None = None
    shown: tuple[int, Any] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def living(self) -> bool:
        """Whether it runs or will run, and costs money."""
        return self.ended_at is None

    @property
    def reachable(self) -> bool:
        """Whether SSH gets to it, and it to the API."""
        return self.status == "RUNNING" and self.ended_at is None and self.cut_at is None

    @property
    def ours(self) -> bool:
        """Whether the run answers for it now."""
        return self.living and not self.stranger and self.handed_on_at is None

    def cost_of_run(self, now: float) -> float:
        """What the run pays for it by `now`, in USD."""
        start, ends = self.running_at, (now, self.ended_at, self.handed_on_at)
        if start is None:
            return 0.0
        seconds = min(end for end in ends if end is not None) - max(start, self.charged_from or start)
        return max(0.0, seconds) / HOUR * self.price

    def spent_since_rent(self, now: float) -> float:
        """The same counted from the rent, as a careful run counts; never less than the bill."""
        ends = (now, self.ended_at, self.handed_on_at)
        start = self.rented_at if self.charged_from is None else self.charged_from
        return max(0.0, min(end for end in ends if end is not None) - start) / HOUR * self.price

    def cost(self, now: float) -> float:
        """What it has cost by `now`, in USD."""
        if self.running_at is None:
            return 0.0
        return ((now if self.ended_at is None else self.ended_at) - self.running_at) / HOUR * self.price
