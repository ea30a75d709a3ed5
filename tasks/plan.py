"""What a run would rent and what it could cost, found without renting: the checks before the money, and the plan.

`wish_of` turns the recipe's `pod:` section into what the ranking asks for; `check_wish` and `check_budget` refuse what
cannot work with the line to change. Showing a plan is `plan_view.py`'s, renting `provision_pod.py`'s.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from blocks.recipe import PodSection, Recipe
from plugins.errors import UserError
from plugins.lium.budget import least_budget
from plugins.lium.countries import CODES
from plugins.lium.gpu_names import same_gpu
from plugins.lium.hosts import Fabric, Host
from plugins.lium.limits import money
from plugins.lium.offers import Estimate, Offer, Ranking, Rest, Wish, rank, rank_clusters, shortlist
from tasks.checkpoint_size import room_of

CENT = 0.01
TOLERANCE = 1e-9  # a budget of exactly one period is enough


class Market(Protocol):
    """What a plan asks of an account (`plugins.lium.client.LiumAccount`). Each method may raise ControlPlaneError."""

    def hosts(self) -> list[Host]:
        """Every host that is listed now."""
        ...

    def fabrics(self) -> list[Fabric]:
        """Fast networks with hosts that can be rented together."""
        ...

    def estimate(self, executor_id: str, template_id: str | None) -> Estimate | None:
        """How long a boot would take there."""
        ...

    def check_volume(self, wanted: str) -> None:
        """UserError for a volume that a rent would refuse."""
        ...

    def known_template(self, image: str) -> str | None:
        """Id of the template that a rent of this image would use, if the account has it."""
        ...

    def unknown_gpu(self, name: str) -> list[str] | None:
        """The names that Lium knows when `name` is none of them."""
        ...

    def balance(self) -> float | None:
        """USD left on the account."""
        ...


@dataclass(frozen=True)
class Plan:
    """What the run would do now. Money in USD; `balance` None: not known."""

    name: str
    pod: PodSection
    ranking: Ranking
    balance: float | None

    @property
    def first(self) -> Offer | None:
        """What would be rented."""
        return self.ranking.offers[0] if self.ranking.offers else None

    @property
    def ceiling_per_hour(self) -> float | None:
        """Most that an hour of the pod may cost; None without a ceiling."""
        ceiling = self.pod.max_price_per_gpu_hour
        return None if ceiling is None else ceiling * self.pod.gpu_count * self.pod.nodes

    @property
    def worst_case(self) -> float | None:
        """Most that the run can cost: the budget and one dead-man period after it; None without a budget or a price."""
        dearest = self.ceiling_per_hour or max((offer.price_per_hour for offer in self.ranking.offers), default=None)
        if self.pod.budget_usd is None or dearest is None:
            return None
        return self.pod.budget_usd + least_budget(dearest, self.pod.dead_man_minutes * 60)

    def lasts_s(self, price_per_hour: float) -> float | None:
        """How many seconds the budget lasts at this price; None without a budget."""
        return None if self.pod.budget_usd is None else self.pod.budget_usd / price_per_hour * 3600


def wish_of(recipe: Recipe) -> Wish:
    """What the recipe asks of a host."""
    pod, (disk_gb, disk_for) = recipe.pod, _disk(recipe)
    return Wish(
        gpus=tuple(pod.gpus),
        gpu_count=pod.gpu_count,
        tier=pod.tier,
        max_price_per_gpu_hour=pod.max_price_per_gpu_hour,
        countries=tuple(dict.fromkeys(code.upper() for code in pod.countries)),
        min_download_mbps=pod.min_download_mbps,
        min_disk_gb=disk_gb,
        disk_for=disk_for,
        min_ram_gb=pod.min_ram_gb,
        min_cuda=pod.min_cuda,
        min_driver=pod.min_driver,
        min_ports=pod.min_ports,
        image=pod.image,
        nodes=pod.nodes,
    )


def _disk(recipe: Recipe) -> tuple[float | None, str | None]:
    """Free disk in GB that a host must list, and what for: what the recipe says (None), or more for the checkpoints."""
    said, room = recipe.pod.min_disk_gb, room_of(recipe)
    if room is None or (said is not None and said >= room.total_gb):
        return said, None
    return room.total_gb, str(room)


def check_wish(market: Market, wish: Wish, hosts: Sequence[Host] | None = None) -> None:
    """UserError for a GPU that Lium does not know and for countries where nothing is on offer, each with what is.

    hosts: a listing of all hosts, if there is one already. Ask before a run's first rent, not later: a country may
    sell out while the run lives.
    """
    listed = market.hosts() if hosts is None else hosts
    problems = [*_unknown_gpus(market, wish, listed), *_unknown_countries(wish, listed)]
    if problems:
        raise UserError("\n".join(problems))


def check_budget(pod: PodSection, ranking: Ranking) -> None:
    """UserError for a budget that does not last one dead-man period at the ceiling, or else at the cheapest offer."""
    ceiling, cheapest = pod.max_price_per_gpu_hour, min(_prices(ranking), default=None)
    price = cheapest if ceiling is None else ceiling
    if pod.budget_usd is None or price is None:
        return
    least = least_budget(price * pod.gpu_count * pod.nodes, pod.dead_man_minutes * 60)
    if pod.budget_usd + TOLERANCE >= least:
        return
    at = f"the {'cheapest offer' if ceiling is None else 'ceiling'} of {money(price)} USD per GPU-hour"
    raise UserError(
        f"pod.budget_usd: {money(pod.budget_usd)} USD does not last one dead-man period: {pod.dead_man_minutes} min "
        f"(pod.dead_man_minutes) of {pod.gpu_count} GPU{'s' if pod.gpu_count > 1 else ''}"
        f"{f' on each of {pod.nodes} nodes' if pod.nodes > 1 else ''} at {at} cost "
        f"{money(least)} USD. Set pod.budget_usd to {money(_cents_up(least))} at least, or lower pod.dead_man_minutes "
        "or the price"
    )


def make_plan(recipe: Recipe, account: Market, resting: Mapping[str, Rest], now: float) -> Plan:
    """Look at the market and decide as the run would, renting nothing. `resting` by executor id, `now` epoch seconds.

    Raises UserError for what `check_wish` and `check_budget` refuse, ControlPlaneError when Lium does not answer.
    """
    wish, hosts, pod = wish_of(recipe), account.hosts(), recipe.pod
    check_wish(account, wish, hosts)
    first = rank_market(account, hosts, wish, resting, now)
    check_budget(pod, first)
    if pod.volume:
        account.check_volume(pod.volume)
    template_id = account.known_template(pod.image) if pod.image else pod.template_id
    return Plan(recipe.name, pod, with_estimates(account, first, hosts, template_id, resting), account.balance())


def rank_market(
    market: Market,
    hosts: Sequence[Host],
    wish: Wish,
    resting: Mapping[str, Rest],
    now: float,
    *,
    spot_allowed: bool = True,
) -> Ranking:
    """The offers for a wish: single hosts of this listing, or fabrics when several nodes are wanted."""
    if wish.nodes > 1:
        return rank_clusters(market.fabrics(), wish, resting=resting, now=now, spot_allowed=spot_allowed)
    return rank(hosts, wish, resting=resting, now=now, spot_allowed=spot_allowed)


def with_estimates(
    market: Market,
    ranking: Ranking,
    hosts: Sequence[Host],
    template_id: str | None,
    resting: Mapping[str, Rest],
    *,
    spot_allowed: bool = True,
) -> Ranking:
    """The ranking once more, with what Lium says about boot times of the first few hosts: they decide near ties."""
    if ranking.wish.nodes > 1:
        return ranking  # of a cluster the slowest node counts, and Lium says nothing about its own template there
    asked = {host_id: market.estimate(host_id, template_id) for host_id in shortlist(ranking)}
    known = {host_id: estimate for host_id, estimate in asked.items() if estimate is not None}
    if not known:
        return ranking
    return rank(hosts, ranking.wish, resting=resting, now=ranking.now, spot_allowed=spot_allowed, estimates=known)


def _prices(ranking: Ranking) -> Iterator[float]:
    return (offer.price_per_gpu_hour for offer in ranking.offers)


def _cents_up(usd: float) -> float:
    return math.ceil(usd / CENT - TOLERANCE) * CENT


def _unknown_gpus(market: Market, wish: Wish, hosts: Sequence[Host]) -> Iterator[str]:
    for name in wish.gpus:
        if any(same_gpu(name, host.gpu) for host in hosts):
            continue
        known = market.unknown_gpu(name)
        if known is not None and not any(same_gpu(short, name) for short in known):
            yield f"pod.gpu: Lium knows no GPU called {name!r}: {_near(name, known)}It has {', '.join(known)}"


def _near(name: str, known: Sequence[str]) -> str:
    typed = "".join(name.split()).upper().removeprefix("NVIDIA").removeprefix("GEFORCE")
    near = difflib.get_close_matches(typed, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}? " if near else ""


def _unknown_countries(wish: Wish, hosts: Sequence[Host]) -> Iterator[str]:
    """Codes that are none, and a wish of which no country is on offer; a listing without countries judges nothing."""
    offered = sorted({host.country for host in hosts if host.country})
    on_offer = f"on offer are {', '.join(offered)}" if offered else "write it as ISO 3166 does, e.g. US, FI"
    invented = [code for code in wish.countries if code not in CODES]
    for code in invented:
        meant = "; the United Kingdom is GB" if code == "UK" else ""
        yield f"pod.countries: {code} is no country code{meant}; {on_offer}"
    if wish.countries and offered and not invented and not set(wish.countries) & set(offered):
        yield f"pod.countries: no host is in {', '.join(wish.countries)}; {on_offer}"
