"""Get a pod that can take stages: go on with this run's pod, take a warm one over, or rent the best offer.

    adopt?  ledger rows and Lium's listing: a pod of this run that lives, an intent whose outcome nobody knows
    rent    rank the offers -> write the intent down -> rent -> wait until it boots -> preflight -> worker
    no      host fails, lies, has gone: give it back, let it rest, next offer; no offer left: wait for capacity

A crash at any point leaves either no pod, or one that the next start of the same run finds by its name or by the
intent in the ledger. At most one pod of a run is ever paid for: a new one is rented only when the old one is gone.
With `pod.nodes` more than 1 "the pod" is a cluster: rented, checked, given back and blamed as one thing.
"""

import re
from collections.abc import Sequence
from datetime import datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.recipe import StageName
from plugins.errors import CapacityError, PodLost, Refused, UserError
from plugins.lium import budget
from plugins.lium.budget import Charge, Money
from plugins.lium.client import LiumAccount
from plugins.lium.offers import Offer, Ranking, Rest
from plugins.lium.pods import PodRow, RentOrder
from plugins.lium.poller import wait_ready
from plugins.lium.preflight import failing
from tasks.plain_text import first_line
from tasks.plan import check_budget, check_wish, rank_market, wish_of, with_estimates
from tasks.pod_ledger import gpu_words, ids_of, pod_number
from tasks.retry import outside_failed
from tasks.run import PodLink, Run, RunEnded
from tasks.warm_pods import take_warm

TRIES = 12  # pods and refused rents in one call, so that a market of broken hosts ends in words
CAPACITY_LOOK_S, LONGEST_LOOK_S = 15.0, 60.0
REFUSED_RESTS_HOURS = 1 / 6  # who was rented by somebody else a moment ago is not a bad host
PRICE_TOLERANCE = 1e-6
HOUR_S = 3600.0


def pod_name(run_id: str, stages: Sequence[str], number: int) -> str:
    """Name of a run's pod: `ts-<run_id>-<stages>-a<number>`. The stages hold no '-', so no two runs share a name."""
    return f"ts-{run_id}-{''.join(stages)}-a{number}"


POD_NAME = re.compile(r"ts-(?P<run>[a-z0-9][a-z0-9-]*)-(?:sft|rl|sftrl)-a\d+")


def run_of(name: str) -> str | None:
    """The run whose pod has this name; None for a name that is not one of ours."""
    match = POD_NAME.fullmatch(name)
    return match["run"] if match else None


def pods_of(account: LiumAccount, run_id: str) -> list[PodRow]:
    """The pods in Lium's listing that are this run's, oldest first; never those of a run whose id only begins alike."""
    found = [pod for pod in account.pods(f"ts-{run_id}-") if run_of(pod.name) == run_id]
    return sorted(found, key=lambda pod: pod_number(pod.name))


class HostUnfit(PodLost):
    """The host does not hold what was paid for: refused, failed to boot, failed the preflight, asked more money."""


class TooSmall(HostUnfit):
    """Nothing is wrong with the host: the recipe's checkpoints do not fit on its disk. Other runs may have it."""


@task(
    name="provision-pod",
    retries=4,
    retry_delay_seconds=[2, 10, 30, 60],
    retry_jitter_factor=0.1,
    retry_condition_fn=outside_failed,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def provision_pod(run: Run, stages: list[StageName]) -> PodLink:
    """A pod of this run that is ready for stages. Raises CapacityError, PodLost, UserError, ControlPlaneError."""
    problems: list[str] = []
    for _ in range(TRIES):
        row = living_pod(run) or take_warm(run) or rent_best(run, stages, problems)
        if row is None:
            continue
        try:
            return make_ready(run, row)
        except PodLost as lost:
            problems.append(f"{row.name}: {lost}")
            run.check()  # a pod that a cancel took away says nothing about its host
            run.log(f"WARNING pod {row.name} will not do ({lost}); taking the next offer")
            give_back(run, row, str(lost), rest_hours=REFUSED_RESTS_HOURS if isinstance(lost, TooSmall) else None)
    raise PodLost(f"Run {run.run_id}: {TRIES} hosts in a row would not do. The last ones: {'; '.join(problems[-3:])}")


# -- what there is already ----------------------------------------------------------------------------------------


def living_pod(run: Run) -> PodRow | None:
    """The pod of this run that lives, if any: rented by an earlier process, or by a rent that nobody heard of.

    Of several (there should be none) the newest is kept and the others are given back. Raises ControlPlaneError.
    """
    run.ledger.refresh()
    for intent in run.ledger.unsettled():
        run.log(f"asking Lium what became of the rent of pod {intent.name}")
        found = run.account.settle(intent)
        if found is None:
            run.ledger.refused(intent.name, "the request never arrived, or was refused")
        else:
            run.ledger.rented(found)
    living = {pod.id: pod for pod in _listed(run) if not pod.terminal}
    for row in run.ledger.open():
        ids = ids_of(row)
        if row["id"] in living and set(ids) <= set(living[row["id"]].ids):
            continue
        for pod_id in ids:
            living.pop(pod_id, None)  # of a cluster that is not whole the listing may show any node first
        known = _look_up(run, ids)  # the listing is not the last word
        if known is None:
            run.let_go(*ids)
            run.ledger.ended([row["name"]], run.account, "gone")
        elif known.terminal:
            give_back(run, known, f"it was {known.status}")
        else:
            living[known.id] = known
    for pod in [pod for pod in living.values() if len(pod.ids) != run.recipe.pod.nodes]:
        wanted = f"{len(pod.ids)} nodes, and the recipe asks for {run.recipe.pod.nodes} (pod.nodes)"
        run.log(f"WARNING {pod.name} has {wanted}; it is given back")
        give_back(run, living.pop(pod.id), f"it had {wanted}", blame=False)
    ordered = sorted(living.values(), key=lambda pod: pod_number(pod.name))
    for extra in ordered[:-1]:
        run.log(f"WARNING {extra.name} is one pod too many; it is given back")
        give_back(run, extra, "one pod too many", blame=False)
    if not ordered:
        return None
    run.log(f"pod {ordered[-1].name}: adopted")
    run.ledger.rented(ordered[-1])
    return ordered[-1]


def _look_up(run: Run, ids: list[str]) -> PodRow | None:
    return run.account.look_up(ids[0]) if len(ids) == 1 else run.account.look_up_all(ids)


def _listed(run: Run) -> list[PodRow]:
    """The run's pods in Lium's listing. Raises Refused for one that the ledger does not know.

    Every rent is written down first, so such a pod is that of a run with the same id on another Prefect API.
    """
    mine, handed_on = run.ledger.names(), run.ledger.handed_on()
    listed = [pod for pod in pods_of(run.account, run.run_id) if pod.name not in handed_on]
    strange = [pod.name for pod in listed if pod.name not in mine and not pod.terminal]
    if strange:
        raise Refused(
            f"Lium lists {', '.join(strange)}, which this Prefect API did not rent for run {run.run_id}: another one "
            "steers a run of that id on the same account. Use another --run-id; or end the pod with `lium rm` if it "
            "is nobody's."
        )
    return [pod for pod in listed if pod.name in mine]


# -- a new one ----------------------------------------------------------------------------------------------------


def rent_best(run: Run, stages: Sequence[str], problems: list[str]) -> PodRow | None:
    """Rent the best offer; None when that host refused and the next is to be tried."""
    offer, template_id = best_offer(run)
    name = pod_name(run.run_id, stages, run.ledger.next_number(pods_of(run.account, run.run_id)))
    check_money_left(run, offer)
    order = RentOrder(
        name=name,
        executor_id=offer.host.executor_id,
        gpu_count=offer.gpu_count,
        template_id=template_id,
        volume_id=run.account.volume_for(run.recipe.pod.volume) if run.recipe.pod.volume else None,
        termination_hours=max(1, -(-run.recipe.pod.dead_man_minutes // 60)),
        ceiling=run.recipe.pod.max_price_per_gpu_hour,
        others=tuple(host.executor_id for host in offer.others),
    )
    run.check()
    huids = ", ".join(host.huid for host in offer.hosts)
    gpus = gpu_words(offer.gpu_count, offer.host.gpu, len(offer.hosts))
    run.log(f"renting {gpus} of {huids} at ${offer.price_per_hour:.2f}/h: {', '.join(offer.reasons)}")
    try:
        row = run.account.rent(order, lambda intent: run.ledger.intends(intent, offer))
    except CapacityError as error:
        problems.append(f"{huids}: {error}")
        run.log(f"WARNING {huids}: {error}")
        run.ledger.refused(name, str(error))
        for host in offer.hosts:
            rest(run, host.executor_id, f"refused a rent: {error}", hours=REFUSED_RESTS_HOURS)
        return None
    except UserError as error:
        run.ledger.refused(name, str(error))
        raise
    if row.members:
        run.hold(*row.ids)  # the rent of a cluster carries no end of its own, so nothing may come before this
    run.ledger.rented(row)
    run.log(f"pod {name}: rented")
    return row


def best_offer(run: Run) -> tuple[Offer, str | None]:
    """The best offer now and the template to rent it with, waiting for capacity as long as the recipe says."""
    pod, began, pause_s = run.recipe.pod, run.clock.monotonic(), CAPACITY_LOOK_S
    template_id = run.account.template_for(pod.image, run.log, run.nap) if pod.image else pod.template_id
    while True:
        ranking = rank_now(run, template_id)
        if ranking.offers:
            run.board.announce("", "")
            return ranking.offers[0], template_id
        left_s = pod.capacity_wait_minutes * 60 - (run.clock.monotonic() - began)
        if left_s <= 0:
            run.board.announce("", "")
            waited = f"after {pod.capacity_wait_minutes:g} minutes" if pod.capacity_wait_minutes else "at once"
            raise CapacityError(
                f"{ranking.explain()}. Given up {waited} (pod.capacity_wait_minutes): wait longer, or change pod.gpu, "
                "pod.gpu_count or pod.max_price_per_gpu_hour; `trainstack hosts --forget all` ends the rest of hosts."
            )
        until = datetime.fromtimestamp(run.clock.now() + left_s).astimezone()
        run.board.announce("Waiting for capacity", f"{ranking.explain()}. Waiting until {until:%H:%M:%S %Z}.")
        run.log(f"WARNING {ranking.explain()}; looking again for {left_s / 60:.1f} minutes")
        run.nap(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, LONGEST_LOOK_S)


def rank_now(run: Run, template_id: str | None) -> Ranking:
    """The offers of this moment, best first."""
    wish, hosts = wish_of(run.recipe), run.account.hosts()
    resting = run.board.resting() if run.recipe.pod.bad_host_hours else {}
    spot = spot_allowed(run)
    first = rank_market(run.account, hosts, wish, resting, run.clock.now(), spot_allowed=spot)
    if not run.ledger.known():  # before the first rent only: later a country may be sold out for an hour
        check_wish(run.account, wish, hosts)
        check_budget(run.recipe.pod, first)
    return with_estimates(run.account, first, hosts, template_id, resting, spot_allowed=spot)


def spot_allowed(run: Run) -> bool:
    """tier spot-first: whether spot stands first now, or lost too many pods of this run within the last hour."""
    lost = [
        row
        for row in run.ledger.rows()
        if row["tier"] == "spot" and row["ended_at"] and row["why"] and row["id"] is not None
        and run.clock.now() - datetime.fromisoformat(row["ended_at"]).timestamp() < HOUR_S
    ]  # fmt: skip
    return len(lost) < run.recipe.pod.spot_losses_per_hour


def check_money_left(run: Run, offer: Offer) -> None:
    """Raise RunEnded when the budget's rest would buy no more than the time of a last sync."""
    charges = [*run.ledger.charges(), Charge(offer.price_per_hour, run.clock.now())]
    stand = budget.account(charges, run.recipe.pod.budget_usd, run.clock.now())
    if stand.money is Money.OUT:
        raise RunEnded(
            f"Run {run.run_id} has spent ${stand.spent:.2f} of its budget of ${stand.budget or 0:.2f} "
            f"(pod.budget_usd); the rest is too little for another pod at ${offer.price_per_hour:.2f}/h.",
            "Budget reached",
        )


# -- until it can take stages -------------------------------------------------------------------------------------


def make_ready(run: Run, row: PodRow) -> PodLink:
    """Wait for the boot, check price and preflight, start the worker. Raises PodLost when the pod will not do."""
    run.hold(*row.ids)
    ready = wait_ready(run.account, row, run.recipe.pod.ready_timeout_minutes * 60, run.poller, run.check)
    run.extend(*ready.ids)  # at boot Lium sets the end that came with the rent; ours must be said again
    check_price(run, ready)
    run.ledger.rented(ready)
    link = run.open_link(run, ready)
    try:
        if not run.ledger.fit(ready.name):
            check_fit(run, link)
            run.ledger.passed_preflight(ready.name)
        link.ensure_worker()
        run.ledger.ready(ready.name)
    except BaseException:  # also Ctrl-C: the link's thread must not stay
        link.close()
        raise
    return link


def check_price(run: Run, row: PodRow) -> None:
    """A rent by host has no ceiling on Lium's side, so what the pod really costs is looked at before it is used."""
    ceiling = run.recipe.pod.max_price_per_gpu_hour
    count = (row.gpu_count or run.recipe.pod.gpu_count) * len(row.nodes)
    if ceiling is None or row.price_per_hour is None or row.price_per_hour <= ceiling * count + PRICE_TOLERANCE:
        return
    raise HostUnfit(
        f"it costs ${row.price_per_hour / count:.2f} per GPU-hour, over the ceiling of ${ceiling:.2f} "
        "(pod.max_price_per_gpu_hour): the host raised its price"
    )


def check_fit(run: Run, link: PodLink) -> None:
    """Preflight: every check a row of a table artifact. Raises HostUnfit naming the rows that failed."""
    checks = link.preflight()
    run.board.show_table(
        f"preflight-{pod_number(link.name)}", [check.row() for check in checks], f"Preflight of {link.name}"
    )
    if (problem := failing(checks)) is not None:
        failed = {check.name.rpartition(": ")[2] for check in checks if not check.ok}
        needs = failed == {"disk space"} and "checkpoints of" in problem
        raise (TooSmall if needs else HostUnfit)(f"preflight: {problem}")
    run.log(f"pod {link.name}: preflight passed ({len(checks)} checks)")


# -- giving it back -----------------------------------------------------------------------------------------------


def give_back(run: Run, row: PodRow, why: str, *, blame: bool = True, rest_hours: float | None = None) -> None:
    """End one pod for sure, note it, and let its host rest if it is to blame. Raises ControlPlaneError.

    rest_hours: None is the recipe's `bad_host_hours`.
    """
    why = first_line(why)
    run.let_go(*row.ids)
    run.poller.unwatch(row.name)
    release(run.account, row)
    run.board.drop_queue(row.name)
    run.board.forget_warm(row.name)
    run.ledger.ended([row.name], run.account, why)
    if not blame:
        return
    noted = next((r for r in run.ledger.rows() if r["name"] == row.name), None)
    executors = {node.executor_id for node in row.nodes} | set(noted["executors"] if noted else ())
    if not any(executors) and noted:
        executors = {noted["executor"]}
    for executor in sorted(one for one in executors if one):
        rest(run, executor, why, rest_hours)


def release(account: LiumAccount, row: PodRow) -> list[str]:
    """End a pod, or every node of a cluster, for sure; returns what was still there. Raises ControlPlaneError."""
    return account.release(row.name, row.ids, cluster_id=row.cluster_id)


def rest(run: Run, executor_id: str, why: str, hours: float | None = None) -> None:
    """Leave a host out for `bad_host_hours` (or less), in this run and the next."""
    longest = run.recipe.pod.bad_host_hours
    hours = longest if hours is None else min(hours, longest)
    if hours > 0:
        run.board.rest_host(executor_id, Rest(until=run.clock.now() + hours * HOUR_S, why=first_line(why)))


@task(
    name="drop-pod",
    retries=5,
    retry_delay_seconds=[1, 2, 5, 15, 30],
    retry_condition_fn=outside_failed,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def drop_pod(run: Run, row: PodRow, why: str) -> None:
    """A pod in use is lost or will not do: end what is left of it for sure, and let its host rest."""
    give_back(run, row, why)
