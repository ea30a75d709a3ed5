"""`trainstack plan` for people: the offers in order, why the other hosts are out, what it costs, what happens next."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from plugins.lium.limits import Refusal, money
from plugins.lium.offers import Offer, duration
from tasks.plan import Plan

MOST_OFFERS = 20


def plan_view(plan: Plan) -> RenderableType:
    """The whole plan. Texts that hosts wrote are shown as they are, never read as markup."""
    parts: list[RenderableType] = [
        Text.assemble(("plan of ", "dim"), (plan.name, "bold"), ("; nothing is rented", "dim"))
    ]
    offers, refused = plan.ranking.offers, plan.ranking.refused
    if offers:
        parts.append(_offers_table(offers))
    if len(offers) > MOST_OFFERS:
        parts.append(Text(f"and {len(offers) - MOST_OFFERS} more offers"))
    if refused:
        parts.append(_refused_table(refused))
    parts += [Text(line) for line in (*_costs(plan), *_next(plan))]
    return Group(*parts)


def _offers_table(offers: tuple[Offer, ...]) -> Table:
    table = Table("", "host", "GPU", "tier", "country", "$/GPU-h", "$/h", "ready in", "why here")
    for place, offer in enumerate(offers[:MOST_OFFERS], 1):
        host, seconds = offer.host, offer.estimate.seconds if offer.estimate else None
        cells = (
            str(place),
            host.huid,
            f"{f'{len(offer.hosts)} nodes of ' if offer.others else ''}{host.gpu_type} x{offer.gpu_count}",
            host.tier or "?",
            host.country or "?",
            money(offer.price_per_gpu_hour),
            money(offer.price_per_hour),
            "?" if seconds is None else f"~{duration(seconds)}",
            ", ".join(offer.reasons),
        )
        table.add_row(*map(Text, cells))
    return table


def _refused_table(refused: tuple[Refusal, ...]) -> Table:
    """One row for each set of limits that keeps hosts out; the example is the one that came nearest."""
    groups: dict[tuple[str, ...], list[Refusal]] = {}
    for refusal in refused:
        groups.setdefault(tuple(dict.fromkeys(breach.key for breach in refusal.breaches)), []).append(refusal)
    table = Table("not taken because of", "hosts", "nearest")
    for keys, members in groups.items():
        nearest = members[0]
        table.add_row(*map(Text, (", ".join(keys), str(len(members)), f"{nearest.host.huid}: {nearest.why}")))
    return table


def _costs(plan: Plan) -> Iterator[str]:
    pod, first, ceiling = plan.pod, plan.first, plan.ceiling_per_hour
    if ceiling is None:
        yield "no price ceiling: set pod.max_price_per_gpu_hour (the real marketplace is refused without one)"
    else:
        per_gpu = money(pod.max_price_per_gpu_hour or 0.0)
        nodes = f"{pod.nodes} nodes x " if pod.nodes > 1 else ""
        yield f"at the price ceiling: ${money(ceiling)} per hour ({nodes}{pod.gpu_count} x ${per_gpu})"
    if pod.budget_usd is None:
        yield "no budget: set pod.budget_usd (the real marketplace is refused without one)"
    else:
        at = [("the ceiling", ceiling), ("the first offer", first.price_per_hour if first else None)]
        lasts = [f"{_lasts(plan, price)} at {name}" for name, price in at if price is not None]
        yield (
            f"the budget of ${money(pod.budget_usd)} lasts {', '.join(lasts)}"
            if lasts
            else (f"budget: ${money(pod.budget_usd)}")
        )
    if plan.worst_case is not None:
        after = f"the budget and one dead-man period of {pod.dead_man_minutes} min"
        yield f"worst case: ${money(round(plan.worst_case, 4))} ({after})"
    if plan.balance is not None:
        yield f"balance of the account: ${plan.balance:.2f}{_short(plan)}"


def _lasts(plan: Plan, price_per_hour: float) -> str:
    return duration(plan.lasts_s(price_per_hour) or 0.0)


def _short(plan: Plan) -> str:
    budget, balance = plan.pod.budget_usd, plan.balance
    return ", less than the budget" if budget is not None and balance is not None and balance < budget else ""


def _next(plan: Plan) -> Iterator[str]:
    first, wait = plan.first, plan.pod.capacity_wait_minutes
    if first is not None:
        others = len(plan.ranking.offers) - 1
        spare = f"if that fails, the next of {others} more in this order" if others else "there is no other offer now"
        huids = ", ".join(host.huid for host in first.hosts)
        yield f"the run would rent {huids} at ${money(first.price_per_hour)} per hour; {spare}"
        return
    yield f"no offer: {plan.ranking.explain()}"
    if wait:
        yield f"the run would wait up to {duration(wait * 60)} for a host (pod.capacity_wait_minutes)"
    else:
        yield "the run would end at once; pod.capacity_wait_minutes lets it wait for a host"
