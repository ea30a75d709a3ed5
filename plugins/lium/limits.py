"""What a run asks of a host, and which of it a host does not meet: figure found and limit, in words.

A figure that the marketplace does not give never passes for enough: a host of unknown speed does not meet a speed.
Putting the hosts that meet everything in order is `offers.py`'s.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Literal

from plugins.lium.gpu_names import same_gpu
from plugins.lium.hosts import Host

Tier = Literal["secure", "spot", "any", "spot-first"]
PRICE_TOLERANCE = 1e-9  # a ceiling copied from a listing must still admit the host it was copied from
NO_ID = "listing"  # the key of the one breach that no recipe can mend
RESTS = "pod.bad_host_hours"


@dataclass(frozen=True)
class Wish:
    """What the pod must be. `gpus` in order of preference; USD per GPU-hour; GB of 10^9 bytes; Mbit/s; None: any.

    `countries` are two-letter codes in capitals, empty: anywhere. `min_driver` is a version such as "570.86". `nodes`:
    how many hosts of one fabric are wanted together, each with `gpu_count` GPUs. `disk_for`: what `min_disk_gb` was
    worked out from, None where the recipe gave it.
    """

    gpus: tuple[str, ...]
    gpu_count: int = 1
    tier: Tier = "any"
    max_price_per_gpu_hour: float | None = None
    countries: tuple[str, ...] = ()
    min_download_mbps: float | None = None
    min_disk_gb: float | None = None
    disk_for: str | None = None
    min_ram_gb: float | None = None
    min_cuda: float | None = None
    min_driver: str | None = None
    min_ports: int | None = None
    image: str | None = None
    nodes: int = 1


@dataclass(frozen=True)
class Rest:
    """A host that is left out after a failure. `until`: epoch seconds."""

    until: float
    why: str


@dataclass(frozen=True)
class Breach:
    """One limit that a host does not meet. `key` is where the recipe sets it, `found` the figure and the limit."""

    key: str
    found: str


@dataclass(frozen=True)
class Refusal:
    """A host that cannot be rented for a wish. `rest` is set while it is left out after a failure."""

    host: Host
    breaches: tuple[Breach, ...]
    rest: Rest | None = None

    @property
    def why(self) -> str:
        """Each figure found with its limit."""
        return "; ".join(breach.found for breach in self.breaches)

    @property
    def other_gpu(self) -> bool:
        """Whether it has a GPU that nobody asked for."""
        return any(breach.key == "pod.gpu" for breach in self.breaches)


def choice(host: Host, gpus: tuple[str, ...]) -> int | None:
    """Place of the host's GPU in the order of preference, from 0; None when it is none of them."""
    return next((place for place, name in enumerate(gpus) if same_gpu(name, host.gpu)), None)


def breaches(host: Host, wish: Wish, rest: Rest | None, now: float) -> tuple[Breach, ...]:
    """Every limit that the host does not meet; for a GPU that nobody asked for only that. `now`: epoch seconds."""
    if choice(host, wish.gpus) is None:
        return (Breach("pod.gpu", f"{host.gpu or 'unknown GPU'} is not {' or '.join(wish.gpus)}"),)
    return tuple(_breaches(host, wish, rest, now))


def rests(rest: Rest | None, now: float) -> bool:
    """Whether the host is still left out."""
    return rest is not None and rest.until > now


def time_text(at: float, now: float) -> str:
    """An epoch time as people read it, with the day unless it is today's (UTC)."""
    try:
        when, today = datetime.fromtimestamp(at, UTC), datetime.fromtimestamp(now, UTC).date()
    except (ValueError, OverflowError, OSError):
        return "further notice"
    return f"{when:%H:%M} UTC" if when.date() == today else f"{when:%Y-%m-%d %H:%M} UTC"


def _breaches(host: Host, wish: Wish, rest: Rest | None, now: float) -> Iterator[Breach]:
    if not host.executor_id:
        yield Breach(NO_ID, "is listed without an id")
    if rest is not None and rests(rest, now):
        yield Breach(RESTS, f"rests until {time_text(rest.until, now)}: {rest.why}")
    yield from _count(host, wish.gpu_count)
    yield from _price(host, wish.max_price_per_gpu_hour)
    yield from _tier(host, wish.tier)
    if wish.countries and host.country not in wish.countries:
        found = f"country {host.country}" if host.country else "unknown country"
        yield Breach("pod.countries", f"{found} not in {', '.join(wish.countries)}")
    yield from _at_least(
        "pod.min_download_mbps", "download speed", host.download_mbps, wish.min_download_mbps, "Mbit/s"
    )
    yield from _at_least("pod.min_disk_gb", "free disk", host.disk_gb, wish.min_disk_gb, "GB")
    yield from _at_least("pod.min_ram_gb", "memory", host.ram_gb, wish.min_ram_gb, "GB")
    yield from _at_least("pod.min_cuda", "CUDA", host.cuda, wish.min_cuda, "")
    yield from _at_least("pod.min_ports", "ports", host.ports, wish.min_ports, "")
    yield from _driver(host.driver, wish.min_driver)


def _count(host: Host, wanted: int) -> Iterator[Breach]:
    if host.whole_host_only and wanted != host.gpu_count:
        yield Breach("pod.gpu_count", f"rents whole only ({host.gpu_count} GPUs)")
    elif host.free_gpus < wanted:
        yield Breach("pod.gpu_count", f"{host.free_gpus} GPUs free, {wanted} wanted")


def _price(host: Host, ceiling: float | None) -> Iterator[Breach]:
    price = host.price_per_gpu_hour
    if price is None:
        yield Breach("pod.max_price_per_gpu_hour", "unknown price")
    elif ceiling is not None and not price <= ceiling + PRICE_TOLERANCE:
        yield Breach("pod.max_price_per_gpu_hour", f"price {money(price)} > ceiling {money(ceiling)}")


def _tier(host: Host, wanted: Tier) -> Iterator[Breach]:
    if wanted in ("secure", "spot") and host.tier != wanted:
        yield Breach("pod.tier", f"{f'tier {host.tier}' if host.tier else 'unknown tier'}, {wanted} wanted")


def _at_least(key: str, what: str, found: float | None, limit: float | None, unit: str) -> Iterator[Breach]:
    if limit is None:
        return
    if found is None:
        yield Breach(key, f"unknown {what}")
    elif not found >= limit:
        yield Breach(key, f"{what} {found:g} < {limit:g} {unit}".rstrip())


def _driver(found: str | None, limit: str | None) -> Iterator[Breach]:
    if limit is None:
        return
    have, need = _version(found or ""), _version(limit)
    if not have:
        yield Breach("pod.min_driver", "unknown driver")
    elif _older(have, need):
        yield Breach("pod.min_driver", f"driver {found} < {limit}")


def _version(text: str) -> tuple[int, ...]:
    match = re.match(r"\d{1,9}(\.\d{1,9})*", text.strip())
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _older(have: tuple[int, ...], need: tuple[int, ...]) -> bool:
    pairs = list(zip_longest(have, need, fillvalue=0))  # "570" means 570.0
    return [one for one, _ in pairs] < [other for _, other in pairs]


def money(usd: float) -> str:
    """USD with as many digits as it takes: 1.89, 0.5 as 0.50, 0.125 as 0.125."""
    short = f"{usd:.2f}"
    return short if abs(float(short) - usd) < PRICE_TOLERANCE else f"{usd:.6f}".rstrip("0")
