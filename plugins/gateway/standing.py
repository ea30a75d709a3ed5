"""What is a pod's own: whether it is still served, and which runs, artifacts, tasks, flows and deployments are its.

The Prefect API is asked, with the control plane's credentials; nothing a pod says about ownership is believed.

    pod --name--> work queue (gone = the pod was released) <--queue-- flow run <-- artifact, task run, log, event
                                                                      flow run --> flow, deployment
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from plugins.gateway.upstream import Upstream
from plugins.gateway.verdict import Json, Refusal

OWN_FOR_S = 60.0  # ownership never changes; this and KEPT only bound memory
KEPT = 4096


@dataclass(frozen=True)
class Queue:
    """The work queue of a pod that is served."""

    id: str
    pool_id: str


@dataclass(frozen=True)
class OwnRun:
    """A flow run of the pod's own queue."""

    id: str
    flow_id: str
    deployment_id: str | None
    tags: tuple[str, ...] = ()


class Standing:
    """Answers for one Prefect API and one work pool. Every method may raise UpstreamTrouble."""

    def __init__(self, upstream: Upstream, pool: str, look_s: float, clock: Callable[[], float]) -> None:
        self.upstream, self.pool = upstream, pool
        self._look_s, self._clock = look_s, clock
        self._revoked: set[str] = set()
        self._queues: dict[str, tuple[float, Queue | None]] = {}
        self._asking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._known: OrderedDict[tuple[str, ...], tuple[float, Any]] = OrderedDict()

    def revoke(self, pod: str) -> None:
        """Serve this pod no more, whatever the API says of its queue. May be called from any thread."""
        self._revoked.add(pod)

    async def queue(self, pod: str) -> Queue:
        """The pod's own queue. Raises Refusal (401) when the pod is served no more; noticed within `look_s` seconds."""
        async with self._asking[pod]:
            at, queue = self._queues.get(pod, (float("-inf"), None))
            if pod not in self._revoked and self._clock() - at >= self._look_s:
                queue = await self._look_for_queue(pod)
                self._queues[pod] = (self._clock(), queue)
        if pod in self._revoked:
            raise Refusal(401, "the token was revoked")
        if queue is None:
            raise Refusal(401, "the pod has no work queue (any more)")
        return queue

    async def run_now(self, pod: str, run_id: str) -> Json:
        """A flow run of the pod's queue, as it is at this moment. Raises Refusal (403) for any other."""
        found = await self.upstream.look(f"/flow_runs/{run_id}")
        if found is None or found.get("work_queue_name") != pod or found.get("work_pool_name") != self.pool:
            raise Refusal(403, "not a flow run of this pod")
        self._keep(
            (pod, "run", run_id),
            OwnRun(run_id, str(found["flow_id"]), found.get("deployment_id"), _texts(found.get("tags"))),
        )
        return found

    async def run(self, pod: str, run_id: str) -> OwnRun:
        """A flow run of the pod's queue. Raises Refusal (403) for any other."""
        own = self._kept((pod, "run", run_id))
        if own is None:
            await self.run_now(pod, run_id)
            own = self._kept((pod, "run", run_id))
        assert isinstance(own, OwnRun)
        return own

    async def artifact(self, pod: str, artifact_id: str) -> None:
        """Raises Refusal (403) unless the artifact belongs to a flow run of the pod."""
        if self._kept((pod, "artifact", artifact_id)) is None:
            found = await self.upstream.look(f"/artifacts/{artifact_id}")
            if found is None or not found.get("flow_run_id"):
                raise Refusal(403, "not an artifact of this pod")
            await self.run(pod, found["flow_run_id"])
            self._keep((pod, "artifact", artifact_id), True)

    async def task_run(self, pod: str, task_run_id: str) -> None:
        """Raises Refusal (403) for a task run of somebody else. One that nobody knows yet is fine: tasks begin here."""
        if self._kept((pod, "task", task_run_id)) is None:
            found = await self.upstream.look(f"/task_runs/{task_run_id}")
            if found is None:
                return
            if not found.get("flow_run_id"):
                raise Refusal(403, "not a task run of this pod")
            await self.run(pod, found["flow_run_id"])
            self._keep((pod, "task", task_run_id), True)

    async def used(self, pod: str, what: str, its_id: str) -> None:
        """Raises Refusal (403) unless a flow run of the pod is of this `deployment` or `flow`."""
        if self._kept((pod, what, its_id)) is not None:
            return
        body: Json = {**self.own_runs(pod), "limit": 1}
        if what == "deployment":
            body["flow_runs"] = {**body["flow_runs"], "deployment_id": {"any_": [its_id]}}
        else:
            body["flows"] = {"id": {"any_": [its_id]}}
        if not await self.upstream.rows("/flow_runs/filter", body):
            raise Refusal(403, f"no flow run of this pod is of that {what}")
        self._keep((pod, what, its_id), True)

    def own_runs(self, pod: str) -> Json:
        """The filter that finds the flow runs of a pod's queue and no others."""
        return {
            "flow_runs": {"operator": "and_", "work_queue_name": {"any_": [pod]}},
            "work_pools": {"operator": "and_", "name": {"any_": [self.pool]}},
        }

    async def _look_for_queue(self, pod: str) -> Queue | None:
        found = await self.upstream.look(f"/work_pools/{quote(self.pool, safe='')}/queues/{quote(pod, safe='')}")
        return None if found is None else Queue(str(found["id"]), str(found["work_pool_id"]))

    def _kept(self, key: tuple[str, ...]) -> Any:
        at, value = self._known.get(key, (float("-inf"), None))
        return value if self._clock() - at < OWN_FOR_S else None

    def _keep(self, key: tuple[str, ...], value: Any) -> None:
        self._known[key] = (self._clock(), value)
        self._known.move_to_end(key)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)


def _texts(tags: object) -> tuple[str, ...]:
    return tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ()
