"""The simulated marketplace behind the API: hosts, pods, bills and scheduled ends, in virtual time.

Nobody calls this over a network; `sim_lium.py` is the API in front of it, with everything that can go wrong on the
way. A pod is billed by the second from its first RUNNING until it ends; one in a terminal status costs nothing more.

    PENDING -> RUNNING -> (removed) | BROKEN | STOPPED | gone without a word
    PENDING -> CREATION_FAILED, its row is deleted after 3 minutes
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import UUID

from tests.faults.machines import HOUR, SimHost, SimPod, iso
from tests.faults.plan import HostPlan
from tests.faults.virtual_clock import VirtualClock

FAILED_ROW_S = 180.0  # lium.md 3: a failed create stays listed for so long
BROKEN_ROW_S = 900.0
KEY_KEPT_S = 24 * HOUR
LATE_PODS = 0.25  # so many appear in the listing only after a while

Answer = tuple[int, dict[str, Any]]


@dataclass
class Stored:
    """The kept outcome of a rent under its key."""

    request: str
    at: float
    answer: Answer


class Market:
    """All hosts and pods of the world."""

    def __init__(self, clock: VirtualClock, rng: Random, plans: tuple[HostPlan, ...]) -> None:
        self.clock, self._rng = clock, rng
        self.hosts = {host.id: host for host in (SimHost(plan, self.new_id(), plan.price) for plan in plans)}
        self.pods: dict[str, SimPod] = {}
        self.keys: dict[str, Stored] = {}
        self.before_end: Callable[[SimPod, str], None] = lambda pod, how: None
        self.after_rent: Callable[[SimPod], None] = lambda pod: None
        self.balance = 1000.0
        for host in self.hosts.values():
            for after_s, price, offered in host.plan.changes:
                clock.after(after_s, lambda h=host, p=price, o=offered: self._change(h, p, o))  # type: ignore[misc]

    def new_id(self) -> str:
        """A random uuid of this world."""
        return str(UUID(int=self._rng.getrandbits(128), version=4))

    # -- renting --------------------------------------------------------------------------------------------------

    def rent(self, key: str, executor_id: str, payload: dict[str, Any]) -> tuple[int, dict[str, Any], bool]:
        """POST /executors/{id}/rent: status, body, and whether it is the kept answer to an earlier one."""
        now, request = self.clock.now(), f"{executor_id} {sorted(payload.items(), key=str)}"
        kept = self.keys.get(key)
        if kept is not None and kept.at + KEY_KEPT_S > now:
            if kept.request != request:
                return (
                    409,
                    {"code": "idempotency_key_reused", "message": "this key was used for another request"},
                    False,
                )
            return *kept.answer, True
        answer = self._rent(executor_id, payload)
        self.keys[key] = Stored(request, now, answer)
        return *answer, False

    def _rent(self, executor_id: str, payload: dict[str, Any]) -> Answer:
        host = self.hosts.get(executor_id)
        if host is None:
            return 404, {"message": f"Executor {executor_id} not found"}
        count = int(payload.get("gpu_count") or host.free)
        if not 0 < count <= host.free:
            return 409, {"message": f"gpu_count={count}: node {executor_id} cannot rent it; {host.free} free"}
        price = host.price * host.plan.surcharge * count
        if self.balance < price / 2:
            return 403, {"code": "insufficient_balance", "message": "insufficient balance"}
        pod = self.place(str(payload["pod_name"]), host, count, price, payload.get("termination_hours"))
        return 200, {"success": True, "pod_id": pod.id}

    def place(
        self, name: str, host: SimHost, count: int, price: float, hours: float | None, *, stranger: bool = False
    ) -> SimPod:
        """Make the pod and let its life begin."""
        now, plan = self.clock.now(), host.plan
        late_s = self._rng.uniform(5, 60) if not stranger and self._rng.random() < LATE_PODS else 0.0
        pod = SimPod(self.new_id(), name, host, count, price, now, now + late_s, hours, stranger)
        self.pods[pod.id] = pod
        host.taken += count
        if plan.boot == "ok" or stranger:
            self.clock.after(plan.boot_s, lambda: self._boot(pod))
        elif plan.boot == "fails":
            self.clock.after(plan.boot_s, lambda: self._close(pod, "CREATION_FAILED", "container creation failed"))
        self.after_rent(pod)
        return pod

    # -- reading --------------------------------------------------------------------------------------------------

    def knows(self, key: str) -> bool:
        """Whether a rent under this key was answered before."""
        kept = self.keys.get(key)
        return kept is not None and kept.at + KEY_KEPT_S > self.clock.now()

    def offered_hosts(self) -> list[SimHost]:
        """Hosts of which something can be rented."""
        return [host for host in self.hosts.values() if host.free]

    def listed_pods(self) -> list[SimPod]:
        """Pods that the listing shows."""
        now = self.clock.now()
        return [pod for pod in self.pods.values() if pod.removed_at is None and pod.listed_from <= now]

    def record(self, pod: SimPod) -> dict[str, Any]:
        """What a pod was and cost."""
        now = self.clock.now()
        return {
            "pod_id": pod.id,
            "pod_name": pod.name,
            "gpu_name": pod.host.plan.gpu,
            "gpu_count": pod.gpus,
            "executor_id": pod.host.id,
            "created_at": iso(pod.rented_at),
            "removed_at": iso(pod.ended_at),
            "close_reason": pod.close_reason,
            "billed_seconds": pod.cost(now) / pod.price * HOUR,
            "total": pod.cost(now),
        }

    # -- ends -----------------------------------------------------------------------------------------------------

    def delete(self, pod: SimPod) -> None:
        """DELETE /pods/{id}."""
        self._remove(pod, "removed by its owner")

    def schedule_end(self, pod: SimPod, time: float) -> None:
        """POST /pods/{id}/schedule-removal."""
        pod.removal_at, pod.version = time, pod.version + 1
        self.clock.at(time, lambda: self._scheduled_end(pod, time))

    def lose(self, pod: SimPod, loss: str) -> None:
        """The host fails: by the word of `HostPlan.loss`."""
        if not pod.living:
            return
        if loss == "network":
            pod.cut_at = self.clock.now()
        elif loss == "vanish":
            self._remove(pod, "host reclaimed by its provider")
        else:
            self._close(pod, loss.upper(), f"the host reports {loss}")

    def _boot(self, pod: SimPod) -> None:
        if not pod.living:
            return
        pod.status, pod.running_at = "RUNNING", self.clock.now()
        self._event(pod, "PENDING", "RUNNING", None)
        if pod.termination_hours:
            self.schedule_end(pod, pod.running_at + pod.termination_hours * HOUR)  # over what was set before
        if pod.host.plan.loss != "none" and not pod.stranger:
            self.clock.after(pod.host.plan.life_s, lambda: self.lose(pod, pod.host.plan.loss))
        pod.version += 1

    def _scheduled_end(self, pod: SimPod, time: float) -> None:
        if pod.removal_at == time and pod.removed_at is None:
            if pod.living:
                self.before_end(pod, "scheduled")
            self._remove(pod, "removed at its scheduled time")

    def _close(self, pod: SimPod, status: str, why: str) -> None:
        """A terminal status; the row goes after a while."""
        if pod.living:
            self._event(pod, pod.status, status, why)
            self._free(pod, why)
            pod.status = status
            rows_s = FAILED_ROW_S if status == "CREATION_FAILED" else BROKEN_ROW_S
            self.clock.after(rows_s, lambda: self._remove(pod, why))

    def _remove(self, pod: SimPod, why: str) -> None:
        if pod.removed_at is None:
            if pod.living:
                self._event(pod, pod.status, "DELETED", why)
                self._free(pod, why)
            pod.removed_at = self.clock.now()
            pod.version += 1

    def _free(self, pod: SimPod, why: str) -> None:
        pod.ended_at, pod.close_reason = self.clock.now(), why
        pod.host.taken -= pod.gpus
        pod.version += 1

    def _event(self, pod: SimPod, before: str, after: str, why: str | None) -> None:
        row = {"created_at": iso(self.clock.now()), "event_type": "pod-lifecycle", "from_status": before}
        pod.events.append({**row, "to_status": after, "reason": why, "pod_name": pod.name})

    def _change(self, host: SimHost, price: float | None, offered: bool | None) -> None:
        if price is not None:
            host.price = price
        if offered is not None:
            host.offered = offered
