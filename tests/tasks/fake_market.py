"""A small marketplace in memory, a link to its pods and a clock whose sleeps take no time: for tests of single steps.

The fault suite (`tests/faults`) is where these steps meet a market that fails; here each step is looked at by itself.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from blocks.recipe import Recipe
from plugins.errors import CapacityError, ControlPlaneError
from plugins.lium import clusters
from plugins.lium.clock import Duty
from plugins.lium.hosts import Fabric, Host
from plugins.lium.offers import Estimate
from plugins.lium.pods import Intent, PodRow, RentOrder
from plugins.lium.preflight import Check
from tasks.run import Run
from tests.tasks.memory_board import MemoryBoard


@dataclass
class StillClock:
    """Time that passes only in sleeps; duties never get a turn."""

    at: float = 1_900_000_000.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> None:
        self.slept.append(seconds)
        self.at += seconds

    def duty(self, name: str, turn: Duty) -> "StillClock":
        return self

    def wake(self) -> None: ...

    def stop(self, patience_s: float = 2.0) -> None: ...


def host(number: int, price: float = 2.0, **changes: Any) -> Host:
    """A host with eight free H200."""
    made = Host(f"ex-{number}", f"fox-{number}", "NVIDIA H200", "H200", 8, 8, False, price, tier="secure", country="US")
    return Host(**{**made.__dict__, **changes})


@dataclass
class Market:
    """What provisioning asks of `LiumAccount`. fails: what a rent on that executor raises."""

    clock: StillClock
    offered: list[Host]
    fails: dict[str, Exception] = field(default_factory=dict)
    broken_boots: set[str] = field(default_factory=set)
    real_price: dict[str, float] = field(default_factory=dict)
    listed: dict[str, PodRow] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    orders: list[RentOrder] = field(default_factory=list)
    settled: dict[str, PodRow | None] = field(default_factory=dict)
    networks: list[Fabric] = field(default_factory=list)
    ended_clusters: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    ends: dict[str, datetime] = field(default_factory=dict)

    def hosts(self) -> list[Host]:
        return list(self.offered)

    def fabrics(self) -> list[Fabric]:
        return list(self.networks)

    def unknown_gpu(self, name: str) -> list[str] | None:
        return None if name == "H200" else ["H200"]

    def estimate(self, executor_id: str, template_id: str | None) -> Estimate | None:
        return None

    def rent(self, order: RentOrder, journal: Callable[[Intent], None]) -> PodRow:
        self.orders.append(order)
        journal(Intent(order.name, order.executor_id, f"key-{order.name}", "/rent", {}, self.clock.now()))
        if order.executor_id in self.fails:
            raise self.fails[order.executor_id]
        hosts = (order.executor_id, *order.others)
        rented = [self._pod(order, number, executor) for number, executor in enumerate(hosts)]
        self.listed |= {pod.id: pod for pod in rented}
        (row,) = clusters.fold(rented)
        return row

    def _pod(self, order: RentOrder, number: int, executor: str) -> PodRow:
        pod = PodRow(
            f"id-{order.name}{f'-n{number}' if order.others else ''}", order.name,
            "CREATION_FAILED" if executor in self.broken_boots else "RUNNING", "127.0.0.1", executor_id=executor,
            price_per_hour=self.real_price.get(executor, 2.0) * order.gpu_count, gpu_name="NVIDIA H200",
            gpu_count=order.gpu_count,
        )  # fmt: skip
        return replace(pod, cluster_id=f"c-{order.name}", node=number) if order.others else pod

    def settle(self, intent: Intent) -> PodRow | None:
        found = self.settled.get(intent.name)
        if found is not None:
            self.listed[found.id] = found
        return found

    def pods(self, prefix: str = "", *, patient: bool = True) -> list[PodRow]:
        rows = [row for row in self.listed.values() if row.name.startswith(prefix) and row.id not in self.hidden]
        return clusters.fold(rows)

    def look_up(self, pod_id: str) -> PodRow | None:
        return self.listed.get(pod_id)

    def look_up_all(self, ids: Sequence[str]) -> PodRow | None:
        return clusters.of_ids(ids, {one: self.look_up(one) for one in ids})

    def cause(self, pod_id: str) -> str | None:
        return "it broke"

    def record(self, pod_id: str) -> None:
        return None

    def extend(self, pod_id: str, until: datetime) -> bool:
        self.ends[pod_id] = until
        return pod_id in self.listed

    def release(
        self, name: str, ids: Collection[str] = (), *, cluster_id: str | None = None, timeout_s: float = 120.0
    ) -> list[str]:
        gone = [pod_id for pod_id, row in self.listed.items() if row.name == name or pod_id in ids]
        for pod_id in gone:
            del self.listed[pod_id]
        self.released += [name] * bool(gone)
        self.ended_clusters += [cluster_id] if cluster_id else []
        return gone


@dataclass
class Link:
    """A pod in hand."""

    row: PodRow
    checks: list[Check] = field(default_factory=lambda: [Check("GPU type", "NVIDIA H200", "H200", ok=True)])
    worker_fails: Exception | None = None
    node_trouble: Exception | None = None
    said: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.row.name

    def preflight(self) -> list[Check]:
        self.said.append("preflight")
        return self.checks

    def ensure_worker(self) -> None:
        self.said.append("worker")
        if self.worker_fails is not None:
            raise self.worker_fails

    def check_nodes(self) -> None:
        if self.node_trouble is not None:
            raise self.node_trouble

    def shut_out(self) -> None:
        self.said.append("shut out")

    def stop_services(self) -> None:
        self.said.append("stop services")

    def close(self) -> None:
        self.said.append("close")


@dataclass
class Scene:
    """One run on a small market."""

    market: Market
    board: MemoryBoard
    run: Run
    links: list[Link]
    said: list[str]


class StillPoller:
    """Shows what the market lists now."""

    def __init__(self, market: Market, clock: StillClock) -> None:
        self._market, self.clock = market, clock

    def snapshot(self, name: str) -> Any:
        from plugins.lium.poller import Sighting

        row = next((row for row in self._market.pods() if row.name == name), None)
        return Sighting(row=row, last_row=row, good_listings_absent=0 if row else 2)

    def expect(self, pod: PodRow) -> None: ...

    def unwatch(self, name: str) -> None: ...

    def wait(self, timeout_s: float) -> None:
        self.clock.sleep(timeout_s)

    def close(self) -> None: ...


def scene(*hosts: Host, board: MemoryBoard | None = None, link: dict[str, Any] | None = None, **pod: Any) -> Scene:
    """A run on these hosts; `pod` is the recipe's section, `link` what each link is made with (by executor)."""
    clock = StillClock()
    market, records = Market(clock, list(hosts)), board or MemoryBoard()
    links: list[Link] = []
    said: list[str] = []

    def open_link(run: Run, row: PodRow) -> Link:
        made = (link or {}).get(row.executor_id, {})
        if isinstance(made, Exception):
            raise made
        links.append(Link(row, **made))
        return links[-1]

    section = {"gpu": "H200", "max_price_per_gpu_hour": 3.0, "budget_usd": 100.0, **pod}
    recipe = Recipe.model_validate({"name": "small", "pod": section, "sft": {"data": "/d", "num_rollout": 1}})
    run = Run(
        "r", recipe, board=records, account=market, store=None, log=said.append, open_link=open_link, clock=clock,  # type: ignore[arg-type]
    )  # fmt: skip
    run.poller = StillPoller(market, clock)  # type: ignore[assignment]
    return Scene(market, records, run, links, said)


NO_MACHINE = CapacityError("the host is rented or offline by now")
NO_ANSWER = ControlPlaneError("Lium does not answer")
