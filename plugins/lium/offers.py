"""Which hosts a run can rent, best first, and why each other one cannot be: pure, the caller brings listing and time.

The order is total, so that two processes that look at the same listing take the same host: order of preference of the
GPUs, tier for spot-first, hosts whose rents often fail last, price. Prices within 2 % count as equal as long as the
image on the host or a shorter boot tells two apart. Then reliability, download speed, executor id. Of a fabric, whose
hosts are rented together as one cluster, the cheapest ones make one offer.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from types import MappingProxyType

from plugins.lium.hosts import Fabric, Host
from plugins.lium.limits import PRICE_TOLERANCE, Breach, Refusal, Rest, Tier, Wish, breaches, choice, money, rests
from plugins.lium.no_offer import explain_none

__all__ = ["Estimate", "Offer", "Ranking", "Refusal", "Rest", "Tier", "Wish", "rank", "rank_clusters", "shortlist"]

NEAR_TIE = 0.02
UNASKED: Mapping[str, "Estimate"] = MappingProxyType({})
NOBODY: Mapping[str, Rest] = MappingProxyType({})


@dataclass(frozen=True)
class Estimate:
    """Lium's guess of a boot: `seconds` to ready, `cached` when the image lies on the host; None: not said."""

    seconds: float | None
    cached: bool | None


@dataclass(frozen=True)
class Offer:
    """A host that meets every limit. Prices in USD; `reasons` say in words why it stands where it stands.

    `others`: further hosts of the same fabric, rented with it as one cluster; the prices are then those of all.
    """

    host: Host
    gpu_count: int
    price_per_gpu_hour: float
    price_per_hour: float
    estimate: Estimate | None
    reasons: tuple[str, ...] = ()
    others: tuple[Host, ...] = ()

    @property
    def hosts(self) -> tuple[Host, ...]:
        """All hosts of the offer."""
        return (self.host, *self.others)


@dataclass(frozen=True)
class Ranking:
    """Offers best first, and every other host with its reason, nearest first. `now`: epoch seconds of the ranking."""

    offers: tuple[Offer, ...]
    refused: tuple[Refusal, ...]
    wish: Wish
    now: float

    def explain(self) -> str:
        """Why there is no offer: the limit that leaves none, the nearest host, what rests. '' when there are offers."""
        return "" if self.offers else explain_none(self.refused, self.wish, self.now)


def rank(
    hosts: Iterable[Host],
    wish: Wish,
    *,
    resting: Mapping[str, Rest] = NOBODY,
    now: float,
    spot_allowed: bool = True,
    estimates: Mapping[str, Estimate] = UNASKED,
) -> Ranking:
    """Put the hosts in order; `resting` and `estimates` go by executor id, `now` is in epoch seconds.

    spot_allowed: for tier spot-first, whether spot comes before secure or after it.
    """
    fitting: list[Offer] = []
    refused: list[Refusal] = []
    for host in hosts:
        rest = resting.get(host.executor_id)
        found, price = breaches(host, wish, rest, now), host.price_per_gpu_hour
        if found or price is None:
            refused.append(Refusal(host, found, rest if rests(rest, now) else None))
        else:
            count, estimate = wish.gpu_count, estimates.get(host.executor_id)
            fitting.append(Offer(host, count, price, price * count, estimate))
    ordered = _ordered(fitting, wish, spot_allowed)
    return Ranking(tuple(_with_reasons(ordered, wish)), tuple(sorted(refused, key=_distance)), wish, now)


def rank_clusters(
    fabrics: Iterable[Fabric],
    wish: Wish,
    *,
    resting: Mapping[str, Rest] = NOBODY,
    now: float,
    spot_allowed: bool = True,
) -> Ranking:
    """Put the fabrics in order that have `wish.nodes` hosts for it; parameters as for `rank`."""
    offers: list[Offer] = []
    refused: list[Refusal] = []
    for fabric in fabrics:
        inside = rank(fabric.hosts, wish, resting=resting, now=now, spot_allowed=spot_allowed)
        whole = [offer for offer in inside.offers if offer.host.gpu_count == wish.gpu_count]
        refused += [*inside.refused, *(_part_of(offer) for offer in inside.offers if offer not in whole)]
        for model in dict.fromkeys(offer.host.gpu for offer in whole):
            alike = sorted(
                (offer for offer in whole if offer.host.gpu == model),
                key=lambda offer: (offer.price_per_gpu_hour, offer.host.executor_id),
            )
            if len(alike) >= wish.nodes:
                offers.append(_together(alike[: wish.nodes]))
            else:
                refused += [_too_few(offer, len(alike), wish.nodes, fabric) for offer in alike]
    ordered = _ordered(offers, wish, spot_allowed)
    return Ranking(tuple(_with_reasons(ordered, wish)), tuple(sorted(refused, key=_distance)), wish, now)


def _together(offers: Sequence[Offer]) -> Offer:
    first, *others = offers
    price = sum(offer.price_per_hour for offer in offers)
    per_gpu = price / (len(offers) * first.gpu_count)
    return Offer(first.host, first.gpu_count, per_gpu, price, None, others=tuple(offer.host for offer in others))


def _part_of(offer: Offer) -> Refusal:
    found = f"a cluster takes whole nodes ({offer.host.gpu_count} GPUs)"
    return Refusal(offer.host, (Breach("pod.gpu_count", found),))


def _too_few(offer: Offer, found: int, wanted: int, fabric: Fabric) -> Refusal:
    words = f"{found} of {fabric.node_count} nodes of fabric {fabric.id} can be had, {wanted} wanted"
    return Refusal(offer.host, (Breach("pod.nodes", words),))


def shortlist(ranking: Ranking, most: int = 5) -> tuple[str, ...]:
    """Executor ids of the first offers: those that deserve the question how long they would take to boot."""
    return tuple(offer.host.executor_id for offer in ranking.offers[:most])


def _ordered(offers: Iterable[Offer], wish: Wish, spot_allowed: bool) -> Iterator[Offer]:
    def standing(offer: Offer) -> tuple[int, int, bool]:
        place = choice(offer.host, wish.gpus)
        assert place is not None
        tier = _tier_order(offer.host.tier, wish.tier, spot_allowed)
        return place, tier, offer.host.frequent_failures is True

    by_price = sorted(offers, key=lambda offer: (standing(offer), offer.price_per_gpu_hour))
    for _, equals in groupby(by_price, key=standing):
        for band in _bands(list(equals)):
            yield from sorted(band, key=_within_band)


def _tier_order(tier: str | None, wanted: Tier, spot_allowed: bool) -> int:
    if wanted != "spot-first":
        return 0
    order = ("spot", "secure", None) if spot_allowed else ("secure", None, "spot")
    return order.index(tier if tier in ("spot", "secure") else None)


def _bands(by_price: list[Offer]) -> Iterator[list[Offer]]:
    """Runs of prices within 2 % of the run's first: being near is not transitive, so each run starts at a price."""
    band: list[Offer] = []
    for offer in by_price:
        if band and offer.price_per_gpu_hour > band[0].price_per_gpu_hour * (1 + NEAR_TIE) + PRICE_TOLERANCE:
            yield band
            band = []
        band.append(offer)
    if band:
        yield band


def _within_band(offer: Offer) -> tuple[bool, float, float, float, float, str]:
    host, estimate = offer.host, offer.estimate or Estimate(None, None)
    seconds = math.inf if estimate.seconds is None or math.isnan(estimate.seconds) else estimate.seconds
    return (
        estimate.cached is not True,
        seconds,
        round(offer.price_per_gpu_hour, 9),
        -(host.reliability or 0.0),
        -(host.download_mbps or 0.0),
        host.executor_id,
    )


def _distance(refusal: Refusal) -> tuple[bool, int, float, str]:
    """How far a host is from an offer: another GPU is farthest, then the number of limits, then the price."""
    host = refusal.host
    price = math.inf if host.price_per_gpu_hour is None else host.price_per_gpu_hour
    return refusal.other_gpu, len(refusal.breaches), price, host.executor_id


def _with_reasons(ordered: Iterable[Offer], wish: Wish) -> Iterator[Offer]:
    placed = [(choice(offer.host, wish.gpus) or 0, offer) for offer in ordered]
    prices: dict[int, list[float]] = {}
    for place, offer in placed:
        prices.setdefault(place, []).append(offer.price_per_gpu_hour)
    for place, offer in placed:
        first = [f"{_ordinal(place + 1)} choice {wish.gpus[place]}"] if len(wish.gpus) > 1 else []
        price = _price_reason(offer.price_per_gpu_hour, prices[place])
        yield replace(offer, reasons=(*first, price, *_host_reasons(offer)))


def _price_reason(price: float, rivals: Sequence[float]) -> str:
    words, least = f"${money(price)} per GPU-hour", min(rivals)
    if len(rivals) == 1:
        return f"{words}, the only one"
    if price <= least + PRICE_TOLERANCE:
        return f"{words}, the cheapest of {len(rivals)}"
    return f"{words}, {money(price - least)} over the cheapest"


def _host_reasons(offer: Offer) -> Iterator[str]:
    host, estimate = offer.host, offer.estimate
    yield host.tier or "unknown tier"
    if offer.others:
        yield f"{len(offer.hosts)} nodes of one fabric"
    if estimate is not None and estimate.cached:
        yield "image on the host"
    if estimate is not None and estimate.seconds is not None:
        yield f"ready in ~{duration(estimate.seconds)}"
    if host.frequent_failures:
        yield "its rents often fail to start"
    if host.power_limited:
        yield "GPUs run under a lowered power limit"


def duration(seconds: float) -> str:
    """A length of time as people say it: 20 s, 3 min, 2.5 h, 4 days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 120 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
