"""What a pod's worker may call: its pool, its one queue, its own heartbeat, the runs scheduled for it.

Also the few calls that every Prefect client makes first. Two of those are answered here: see their rules.
"""

from plugins.gateway.standing import Standing
from plugins.gateway.verdict import Answer, Call, Forward, Refusal, at

LONGEST_HEARTBEAT_S = 60  # a longer interval would keep a dead worker online
SCHEDULED_AT_ONCE = 10


async def health(call: Call, standing: Standing) -> Forward:
    """Whether the API lives."""
    return Forward("GET", "/health")


async def ready(call: Call, standing: Standing) -> Forward:
    """Whether the API has its database."""
    return Forward("GET", "/ready")


async def version(call: Call, standing: Standing) -> Forward:
    """The server's version."""
    return Forward("GET", "/admin/version")


async def no_storage(call: Call, standing: Standing) -> Answer:
    """A default result storage is a block, which a pod may not read."""
    return Answer({"default_result_storage_block_id": None})


async def no_csrf(call: Call, standing: Standing) -> Answer:
    """In Prefect's own words, so that its client goes on without; towards upstream the gateway sees to it."""
    return Answer({"detail": "CSRF protection is disabled."}, status=422)


async def pool(call: Call, standing: Standing) -> Forward:
    """The pool of pods, which the worker makes its jobs from."""
    return Forward("GET", _own_pool(call, standing))


async def own_queue(call: Call, standing: Standing) -> Forward:
    """The pod's queue by name."""
    if call.ids[1] != call.pod:
        raise Refusal(403, "not the queue of this pod")
    return Forward("GET", f"{_own_pool(call, standing)}/queues/{call.pod}")


async def own_queues(call: Call, standing: Standing) -> Forward:
    """The pod's queue, the way a worker asks for the queues it was named."""
    _only_names(at(call.body(), "work_queues", "name", "any_"), call.pod)
    body = {"work_queues": {"operator": "and_", "name": {"any_": [call.pod]}}}
    return Forward("POST", f"{_own_pool(call, standing)}/queues/filter", body)


async def heartbeat(call: Call, standing: Standing) -> Forward:
    """The worker lives; without a websocket it says so this way."""
    body = call.body()
    if body.get("name") != call.pod:
        raise Refusal(403, "not the worker of this pod")
    said = body.get("heartbeat_interval_seconds")
    every = max(1, min(LONGEST_HEARTBEAT_S, said)) if isinstance(said, int) else LONGEST_HEARTBEAT_S
    body = {"name": call.pod, "heartbeat_interval_seconds": every}
    return Forward("POST", f"{_own_pool(call, standing)}/workers/heartbeat", body)


async def scheduled(call: Call, standing: Standing) -> Forward:
    """What is scheduled on the pod's queue; without queue names Prefect would give out everybody's."""
    said = call.body()
    _only_names(said.get("work_queue_names"), call.pod)
    body = {"work_queue_names": [call.pod], "limit": SCHEDULED_AT_ONCE}
    if isinstance(said.get("scheduled_before"), str):
        body["scheduled_before"] = said["scheduled_before"]
    return Forward("POST", f"{_own_pool(call, standing)}/get_scheduled_flow_runs", body)


async def queue_by_id(call: Call, standing: Standing) -> Forward:
    """The pod's queue by id."""
    if call.ids[0] != (await standing.queue(call.pod)).id:
        raise Refusal(403, "not the queue of this pod")
    return Forward("GET", f"/work_queues/{call.ids[0]}")


def _own_pool(call: Call, standing: Standing) -> str:
    if call.ids[0] != standing.pool:
        raise Refusal(403, "not the work pool of pods")
    return f"/work_pools/{standing.pool}"


def _only_names(said: object, pod: str) -> None:
    if said != [pod]:
        raise Refusal(403, "a pod has one queue: its own")
