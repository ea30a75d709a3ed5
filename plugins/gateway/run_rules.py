"""What a stage and its engine may do to the flow runs of their pod's queue: read them, report, log, write artifacts."""

import re

from plugins.gateway.standing import Standing
from plugins.gateway.verdict import Answer, Call, Forward, Json, MayWrite, Refusal, at, id_of, only, parsed

RUNS_AT_ONCE = 10
NOTE_CHARS = 200
LABELS = re.compile(r"prefect\.(worker|work-pool)\.[a-z-]{1,20}")
LOG_LINE = ("name", "level", "message", "timestamp", "flow_run_id", "task_run_id")
ARTIFACT = ("data", "description", "metadata_")


async def deployment(call: Call, standing: Standing) -> Forward:
    """The deployment that a run of this pod was made from."""
    await standing.used(call.pod, "deployment", call.ids[0])
    return Forward("GET", f"/deployments/{call.ids[0]}")


async def flow(call: Call, standing: Standing) -> Forward:
    """The flow that a run of this pod runs."""
    await standing.used(call.pod, "flow", call.ids[0])
    return Forward("GET", f"/flows/{call.ids[0]}")


async def own_runs(call: Call, standing: Standing) -> Forward:
    """The runner's look for runs to cancel or suspend; with an empty list of ids Prefect would find everybody's."""
    said = call.body()
    only(said, "flow_runs", "limit", "offset", "sort")
    asked = said.get("flow_runs") or {}
    if not isinstance(asked, dict):
        raise Refusal(400, "flow_runs is not an object")
    only(asked, "operator", "id", "state")
    body = standing.own_runs(call.pod)
    body["flow_runs"].update({key: asked[key] for key in ("id", "state") if asked.get(key)})
    body.update({key: said[key] for key in ("limit", "offset", "sort") if said.get(key) is not None})
    return Forward("POST", "/flow_runs/filter", body)


async def run(call: Call, standing: Standing) -> Forward:
    """A run of this pod."""
    await standing.run(call.pod, call.ids[0])
    return Forward("GET", f"/flow_runs/{call.ids[0]}")


async def update(call: Call, standing: Standing) -> Forward | Answer:
    """What worker and engine note on a run. Tags and parameters are what the control plane ordered and finds it by.

    The engine also sends its retry policy; it is dropped, because by it Prefect would schedule the run again.
    """
    body = call.body()
    only(body, "infrastructure_pid", "flow_version", "empirical_policy")
    kept = {key: body[key] for key in ("infrastructure_pid", "flow_version") if body.get(key) is not None}
    if not all(isinstance(value, str) and len(value) <= NOTE_CHARS for value in kept.values()):
        raise Refusal(400, "infrastructure_pid or flow_version is not a short text")
    await standing.run(call.pod, call.ids[0])
    return Forward("PATCH", f"/flow_runs/{call.ids[0]}", kept) if kept else Answer(None)


async def labels(call: Call, standing: Standing) -> Forward:
    """The labels that say which worker took a run."""
    body = call.body()
    if not all(LABELS.fullmatch(key) and isinstance(value, str) for key, value in body.items()):
        raise Refusal(403, "a pod may only say which worker took the run")
    await standing.run(call.pod, call.ids[0])
    return Forward("PATCH", f"/flow_runs/{call.ids[0]}/labels", body)


async def logs(call: Call, standing: Standing) -> Forward:
    """Lines for the logs of own runs; one line of another run refuses them all."""
    lines = parsed(call.raw)
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise Refusal(400, "the body is not a list of log lines")
    for line in lines:
        await standing.run(call.pod, id_of(line.get("flow_run_id"), "flow_run_id"))
        if line.get("task_run_id") is not None:
            await standing.task_run(call.pod, id_of(line["task_run_id"], "task_run_id"))
    return Forward("POST", "/logs/", [{key: line[key] for key in LOG_LINE if key in line} for line in lines])


async def create_artifact(call: Call, standing: Standing, may_write: MayWrite) -> Forward:
    """An artifact of an own run, under a key that stages write."""
    body = call.body()
    only(body, "key", "type", "flow_run_id", "task_run_id", *ARTIFACT)
    key = body.get("key")
    own = await standing.run(call.pod, id_of(body.get("flow_run_id"), "flow_run_id"))
    if not isinstance(key, str | None) or (key is not None and not may_write(own.tags, key)):
        raise Refusal(403, f"not an artifact that this pod's stage writes: {str(key)[:80]}")
    if body.get("task_run_id") is not None:
        await standing.task_run(call.pod, id_of(body["task_run_id"], "task_run_id"))
    return Forward("POST", "/artifacts/", body)


async def own_artifacts(call: Call, standing: Standing) -> Forward:
    """Artifacts of own runs."""
    said = call.body()
    only(said, "artifacts", "limit", "offset", "sort")
    runs = at(said, "artifacts", "flow_run_id", "any_")
    if not isinstance(runs, list) or not runs:
        raise Refusal(403, "artifacts of which flow run? (artifacts.flow_run_id.any_)")
    own = [(await standing.run(call.pod, id_of(run, "flow_run_id"))).id for run in runs[:RUNS_AT_ONCE]]
    asked = said["artifacts"]
    only(asked, "operator", "flow_run_id", "key", "type", "id")
    wanted: Json = {"operator": "and_", "flow_run_id": {"any_": own}}
    wanted.update({key: asked[key] for key in ("key", "type", "id") if asked.get(key)})
    body = {key: said[key] for key in ("limit", "offset", "sort") if said.get(key) is not None}
    return Forward("POST", "/artifacts/filter", {"artifacts": wanted, **body})


async def artifact(call: Call, standing: Standing) -> Forward:
    """An artifact of an own run."""
    await standing.artifact(call.pod, call.ids[0])
    return Forward("GET", f"/artifacts/{call.ids[0]}")


async def update_artifact(call: Call, standing: Standing) -> Forward:
    """New data for an artifact of an own run."""
    body = call.body()
    only(body, *ARTIFACT)
    await standing.artifact(call.pod, call.ids[0])
    return Forward("PATCH", f"/artifacts/{call.ids[0]}", {key: body[key] for key in ARTIFACT if key in body})
