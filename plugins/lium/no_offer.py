"""One message for the moment when no host can be rented: which limit leaves none, what came nearest, who rests.

Whoever reads it wants to change one line of the recipe or to know that waiting is enough. Whether to wait is the
caller's to decide.
"""

from collections.abc import Callable, Iterator, Sequence

from plugins.lium.limits import NO_ID, RESTS, Refusal, Wish, money, time_text

PRICE = "pod.max_price_per_gpu_hour"
DISK = "pod.min_disk_gb"
NODES = "pod.nodes"
MOST_NAMED = 3

HEADLINES: dict[str, Callable[[Wish], str]] = {
    NO_ID: lambda _: "every host is listed without an id",
    NODES: lambda wish: f"no fabric has {wish.nodes} such nodes wholly free now",
    "pod.gpu_count": lambda wish: f"no host has {wish.gpu_count} of these GPUs to rent now",
    PRICE: lambda wish: (
        "no host names its price"
        if wish.max_price_per_gpu_hour is None
        else f"price ceiling {money(wish.max_price_per_gpu_hour)} is under every offer"
    ),
    "pod.tier": lambda wish: f"no host is of tier {wish.tier}",
    "pod.countries": lambda wish: f"no host is in {', '.join(wish.countries)}",
    "pod.min_download_mbps": lambda wish: f"no host shows a download speed of {wish.min_download_mbps:g} Mbit/s",
    DISK: lambda wish: f"no host shows {wish.min_disk_gb:.4g} GB of free disk",
    "pod.min_ram_gb": lambda wish: f"no host shows {wish.min_ram_gb:g} GB of memory",
    "pod.min_cuda": lambda wish: f"no host serves CUDA {wish.min_cuda:g}",
    "pod.min_ports": lambda wish: f"no host has {wish.min_ports} ports",
    "pod.min_driver": lambda wish: f"no host has driver {wish.min_driver}",
}
REMEDIES = {
    NO_ID: "look again later",
    NODES: "lower pod.nodes, or let it wait with pod.capacity_wait_minutes",
    "pod.gpu_count": "lower pod.gpu_count, or let it wait with pod.capacity_wait_minutes",
    PRICE: "raise pod.max_price_per_gpu_hour",
    "pod.tier": "change pod.tier",
    "pod.countries": "add to pod.countries",
}


def explain_none(refused: Sequence[Refusal], wish: Wish, now: float) -> str:
    """Why no offer is left. `refused` has every listed host, nearest first; `now` is in epoch seconds."""
    names = " or ".join(wish.gpus)
    if not refused and wish.nodes > 1:
        return f"no {wish.nodes} nodes of {names} can be rented as one cluster: Lium lists no fabric at this moment"
    if not refused:
        return f"no host of {names} is listed now: Lium lists no host at all at this moment"
    candidates = [refusal for refusal in refused if not refusal.other_gpu]
    if not candidates:
        listed = ", ".join(sorted({refusal.host.gpu or refusal.host.gpu_type for refusal in refused}))
        return f"no host of {names} is listed now; listed are {listed} (pod.gpu)"
    awake = [refusal for refusal in candidates if refusal.rest is None]
    return ". ".join(part for part in (_limits(awake, wish), _resting(candidates, now)) if part)


def _limits(awake: Sequence[Refusal], wish: Wish) -> str:
    """What keeps the hosts that do not rest from being offers; `awake` has the nearest first."""
    if not awake:
        return ""
    nearest, keys = awake[0], [breach.key for breach in awake[0].breaches]
    everywhere = [key for key in keys if all(key in _keys(refusal) for refusal in awake)]
    headline = " and ".join(HEADLINES[key](wish) for key in everywhere) or "no host meets every limit at once"
    price, remedies = nearest.host.price_per_gpu_hour, ", ".join(_remedy(key, wish) for key in keys)
    if keys == [PRICE] and price is not None:
        return f"{headline}: the cheapest {nearest.host.gpu_type} is {money(price)} ({nearest.host.huid}); {remedies}"
    at = "" if price is None else f" at {money(price)}"
    return f"{headline}: the nearest is {nearest.host.huid} ({nearest.host.gpu_type}{at}): {nearest.why}; {remedies}"


def _keys(refusal: Refusal) -> set[str]:
    return {breach.key for breach in refusal.breaches}


def _remedy(key: str, wish: Wish) -> str:
    if key == PRICE and wish.max_price_per_gpu_hour is None:
        return REMEDIES[NO_ID]
    if key == DISK and wish.disk_for:
        return f"the disk is for {wish.disk_for}: lower checkpoint.keep or take a smaller model"
    return REMEDIES.get(key, f"lower {key}")


def _resting(candidates: Sequence[Refusal], now: float) -> str:
    """Who rests, those first that would fit otherwise (they have the fewest breaches)."""
    found = list(_rest_words(candidates, now))
    if not found:
        return ""
    rest = "host rests" if len(found) == 1 else "hosts rest"
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return f"{len(found)} {rest} after failures ({RESTS}): {', '.join(found[:MOST_NAMED])}{more}"


def _rest_words(candidates: Sequence[Refusal], now: float) -> Iterator[str]:
    for refusal in candidates:
        if refusal.rest is not None:
            yield f"{refusal.host.huid} until {time_text(refusal.rest.until, now)} ({refusal.rest.why})"
