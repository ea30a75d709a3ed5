"""Which events a pod may emit and which it may see.

Events are more than telemetry in Prefect: `prefect.task-run.*` events write the task runs, and any event may set off an
automation. So a pod emits events about its own worker, flow runs, tasks and artifacts only, and what they say of
anything else is cut out. It sees when its own flow runs are cancelled or suspended.
"""

import re
from collections.abc import Mapping
from typing import Any

from plugins.gateway.names import worker_resource
from plugins.gateway.standing import OwnRun, Queue, Standing
from plugins.gateway.verdict import Json, Refusal, id_of

WATCHED = frozenset({"prefect.flow-run.Cancelling", "prefect.flow-run.Suspended"})
WORKER_NEWS = ("started", "stopped", "submitted-flow-run", "executed-flow-run")
FROM_WORKER = frozenset(f"prefect.worker.{what}" for what in WORKER_NEWS)
FROM_RUN = frozenset({"prefect.flow-run.heartbeat", "prefect.flow-run.pull-step.executed"})
FROM_RUNNER = "prefect.runner.cancelled-flow-run"  # its resource, a random name, says nothing; the run it names does
FROM_ARTIFACTS = frozenset({"prefect.artifact.created", "prefect.artifact.updated"})
RUN = "prefect.flow-run."
TASK = "prefect.task-run."
CUSTOM = re.compile(r"(?!prefect\.)[A-Za-z0-9._-]{1,100}")
RELATED = 50
KEPT = ("id", "occurred", "event", "payload", "follows")
TASK_IDENTITY = frozenset({"id", "flow_run_id", "state", "state_id", "created", "updated"})
"""In the payload of a task event these would win over the event's own resource (Prefect's task_run_recorder.py)."""


async def own_event(event: object, pod: str, standing: Standing) -> Json:
    """The event as it may go on. Raises Refusal for one that is not about the pod's own."""
    if not isinstance(event, dict) or not isinstance(event.get("resource"), dict):
        raise Refusal(400, "not an event")
    name, resource = event.get("event"), event["resource"]
    if not isinstance(name, str) or not _texts(resource):
        raise Refusal(400, "not an event")
    related = event.get("related") or []
    if not isinstance(related, list) or len(related) > RELATED or not all(_texts(entry) for entry in related):
        raise Refusal(400, "related is not a short list of resources")
    kept = await _own_related(related, pod, standing)
    await _check_resource(name, str(resource.get("prefect.resource.id")), pod, standing)
    fitted = {key: event[key] for key in KEPT if key in event} | {"resource": resource, "related": kept}
    of_a_run = any(entry["prefect.resource.role"] == "flow-run" for entry in kept)
    if not of_a_run and (name == FROM_RUNNER or name.startswith(TASK)):
        raise Refusal(403, f"{name[:60]} of no flow run")
    if name.startswith(TASK):
        fitted["payload"] = _task_payload(event.get("payload"))
    return fitted


def own_filter(message: object, queue: Queue) -> Json:
    """A subscription to what happens to runs of the pod's queue. Raises Refusal for one that asks for more."""
    asked = message.get("filter") if isinstance(message, dict) and message.get("type") == "filter" else None
    named = asked.get("event") if isinstance(asked, dict) else None
    names = named.get("name") if isinstance(named, dict) else None
    if not isinstance(asked, dict) or not isinstance(names, list) or not _watched(names):
        raise Refusal(403, f"a pod may watch {' and '.join(sorted(WATCHED))} only")
    wanted: Json = {"event": {"name": names}, "any_resource": {"id": [f"prefect.work-queue.{queue.id}"]}}
    if isinstance(asked.get("occurred"), dict):
        wanted["occurred"] = {key: asked["occurred"].get(key) for key in ("since", "until")}
    return {"type": "filter", "filter": wanted}


async def may_see(message: object, pod: str, standing: Standing) -> bool:
    """Whether what upstream sends on a subscription is about a flow run of this pod."""
    event = message.get("event") if isinstance(message, dict) and message.get("type") == "event" else None
    if not isinstance(event, dict) or event.get("event") not in WATCHED:
        return False
    try:
        await standing.run(pod, _object_id(str(event["resource"]["prefect.resource.id"]), RUN))
    except (Refusal, LookupError, TypeError):
        return False
    return True


def _watched(names: list[Any]) -> bool:
    return bool(names) and WATCHED.issuperset(map(str, names))


def missed_runs(pod: str, standing: Standing) -> Json:
    """The filter that finds the pod's runs that are being cancelled or suspended now."""
    body = standing.own_runs(pod)
    body["flow_runs"]["state"] = {"name": {"any_": [name.rpartition(".")[2] for name in sorted(WATCHED)]}}
    return body


def as_event(run: Json) -> Json:
    """A run's state as the event that told of it; the id is the same, by which Prefect's client drops a repetition."""
    state, resource = run["state"], {"prefect.resource.id": f"{RUN}{run['id']}", "prefect.resource.name": run["name"]}
    told = {"id": state["id"], "occurred": state["timestamp"], "received": state["timestamp"]}
    event = {**told, "event": RUN + str(state["name"]), "resource": resource, "related": [], "payload": {}}
    return {"type": "event", "event": event}


async def _check_resource(name: str, resource: str, pod: str, standing: Standing) -> None:
    if name in FROM_WORKER:
        if resource != worker_resource(pod):
            raise Refusal(403, "not the worker of this pod")
    elif name == FROM_RUNNER:
        if not resource.startswith("prefect.runner."):
            raise Refusal(403, "not a runner")
    elif name in FROM_ARTIFACTS:
        await standing.artifact(pod, _object_id(resource, "prefect.artifact."))
    elif name.startswith(TASK):
        await standing.task_run(pod, _object_id(resource, TASK))
    elif name in FROM_RUN or CUSTOM.fullmatch(name):
        await standing.run(pod, _object_id(resource, RUN))
    else:
        raise Refusal(403, f"a pod does not emit {name[:60]}")


async def _own_related(related: list[Json], pod: str, standing: Standing) -> list[Json]:
    """What an event names besides its resource, without what is not the pod's. Raises Refusal for another's run."""
    ids = [str(entry.get("prefect.resource.id")) for entry in related]
    runs = [await standing.run(pod, _object_id(found, RUN)) for found in ids if found.startswith(RUN)]
    roles = _roles(runs, await standing.queue(pod), pod)
    for found in ids:
        if found.startswith(TASK):
            await standing.task_run(pod, _object_id(found, TASK))
            roles[found] = "task-run"
    return [entry for entry in related if _in_role(entry, roles)]


def _in_role(entry: Json, roles: dict[str, str]) -> bool:
    role = roles.get(str(entry.get("prefect.resource.id")))
    return role is not None and entry.get("prefect.resource.role") == role


def _roles(runs: list[OwnRun], queue: Queue, pod: str) -> dict[str, str]:
    roles = {
        f"prefect.work-queue.{queue.id}": "work-queue",
        f"prefect.work-pool.{queue.pool_id}": "work-pool",
        worker_resource(pod): "worker",
    }
    for run in runs:
        roles[f"prefect.flow-run.{run.id}"] = "flow-run"
        roles[f"prefect.flow.{run.flow_id}"] = "flow"
        roles[f"prefect.deployment.{run.deployment_id}"] = "deployment"
    return roles


def _task_payload(payload: object) -> Json:
    if not isinstance(payload, dict):
        raise Refusal(400, "a task event without a payload")
    task, state = payload.get("task_run"), payload.get("validated_state")
    if not isinstance(task, dict) or not isinstance(state, dict):
        raise Refusal(400, "a task event without task_run and validated_state")
    return {
        **payload,
        "task_run": {key: value for key, value in task.items() if key not in TASK_IDENTITY},
        "validated_state": {key: value for key, value in state.items() if key not in TASK_IDENTITY},
    }


def _object_id(resource: str, prefix: str) -> str:
    if not resource.startswith(prefix):
        raise Refusal(403, f"not a {prefix.removesuffix('.')}")
    return id_of(resource.removeprefix(prefix), prefix)


def _texts(found: Any) -> bool:
    if not isinstance(found, Mapping):
        return False
    return all(isinstance(key, str) and isinstance(value, str) for key, value in found.items())
