"""What a machine offers besides its size: it goes offline and comes back, others rent its GPUs, its price changes.

Orders come over `POST /_emulator/machines/{id}` or from the `changes` of an inventory, and hold until the emulator
ends. Pods that run already are not touched: an offline machine only leaves the listing, a rented pod keeps its price.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from plugins.errors import UserError
from plugins.lium.emulator.machine import Machine

ORDERS = ("free", "offline", "price_per_gpu")


@dataclass(frozen=True)
class Capacity:
    """`others` GPUs of the machine are rented by somebody else; an offline machine is not listed."""

    others: int = 0
    offline: bool = False


def ordered(machine: Machine, capacity: Capacity, ours: int, order: Mapping[str, Any]) -> tuple[Machine, Capacity]:
    """The machine and its capacity after an order; `ours` GPUs of it are rented here.

    Keys: `free` (GPUs left to rent now), `offline`, `price_per_gpu` (USD). Raises UserError for another order.
    """
    if unknown := set(order) - set(ORDERS):
        raise UserError(f"unknown order {sorted(unknown)[0]!r} for a machine; it is one of {', '.join(ORDERS)}")
    if "free" in order:
        most = machine.gpu_count - ours
        if type(order["free"]) is not int or not 0 <= order["free"] <= most:
            raise UserError(f"free is {order['free']!r}; machine {machine.id} has 0 to {most} GPUs that can be free")
        capacity = replace(capacity, others=most - order["free"])
    if "offline" in order:
        if not isinstance(order["offline"], bool):
            raise UserError(f"offline is {order['offline']!r}, not true or false")
        capacity = replace(capacity, offline=order["offline"])
    if "price_per_gpu" in order:
        price = order["price_per_gpu"]
        if type(price) not in (int, float) or not math.isfinite(price) or price < 0:
            raise UserError(f"price_per_gpu is {price!r}, not USD from 0")
        machine = replace(machine, price_per_gpu=float(price))
    return machine, capacity


def check_changes(machine: Machine) -> None:
    """Raises UserError when the `changes` of an inventory's machine could not be carried out."""
    for change in machine.changes:
        after_s = change.get("after_s") if isinstance(change, dict) else None
        if not (isinstance(after_s, int | float) and math.isfinite(after_s) and after_s >= 0):
            raise UserError(f"changes: {change!r} has no after_s, the seconds from the start of the emulator")
        ordered(machine, Capacity(), 0, {name: value for name, value in change.items() if name != "after_s"})
