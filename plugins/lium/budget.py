"""What a run has spent and what its budget still buys. Pure: the caller brings the figures and the time.

Lium charges by the second from the first RUNNING to the removal; we count from the rent, so that what we believe is
never less than the bill. Two ends follow from it: the graceful one, early enough for a last sync, and the hard one on
the server, at which the money is gone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

WARN_AT = 0.8
LAST_SYNC_S = 300.0
LAST_SYNC_PART = 0.1  # of a small budget's whole time


class Money(StrEnum):
    """How much of the budget is left, for the decision what to do."""

    ENOUGH = "enough"
    LOW = "low"
    OUT = "out"


@dataclass(frozen=True)
class Charge:
    """One pod of the run. USD per hour, epoch seconds; `until` None: it still runs. `cost`: the bill, once known."""

    price_per_hour: float
    since: float
    until: float | None = None
    cost: float | None = None

    def seconds(self, now: float) -> float:
        """How long this pod has been paid for by `now`."""
        return max(0.0, (now if self.until is None else self.until) - self.since)

    def usd(self, now: float) -> float:
        """What this pod has cost by `now`."""
        if self.cost is not None:
            return self.cost
        return self.seconds(now) / 3600 * self.price_per_hour


@dataclass(frozen=True)
class Account:
    """Where a run stands. `rate`: USD per hour now; `left_s`: how long the rest of the money lasts, None: for ever."""

    spent: float
    budget: float | None
    rate: float
    left_s: float | None
    money: Money


def account(charges: Iterable[Charge], budget: float | None, now: float) -> Account:
    """Add up the pods and say how the budget stands."""
    rows = list(charges)
    spent = sum(charge.usd(now) for charge in rows)
    rate = sum(charge.price_per_hour for charge in rows if charge.until is None)
    if budget is None:
        return Account(spent, None, rate, None, Money.ENOUGH)
    left_s = max(0.0, budget - spent) / rate * 3600 if rate else None
    if spent >= budget or (left_s is not None and left_s <= last_sync_s(budget, rate)):
        money = Money.OUT
    else:
        money = Money.LOW if spent >= WARN_AT * budget else Money.ENOUGH
    return Account(spent, budget, rate, left_s, money)


def last_sync_s(budget: float, rate: float) -> float:
    """How long before the money is gone the run stops by itself, so that the last checkpoint gets out."""
    return min(LAST_SYNC_S, LAST_SYNC_PART * budget / rate * 3600)


def least_budget(price_per_hour: float, dead_man_s: float) -> float:
    """The smallest budget that makes sense: one dead-man period of one pod, in USD."""
    return price_per_hour * dead_man_s / 3600
