"""What is known about a run, as data: the form of `trainstack status --json`, which stays stable.

    {"run_id", "state", "message", "flow_runs": {"pipeline": [ids], "stages": [ids]},
     "started_at", "ended_at", "cost_usd",
     "stages": [{"stage", "state", "message", "attempts", "flow_run_id", "first_iteration", "last_iteration", "of",
                 "loss", "reward", "checkpoint", "store_uri", "export_path", "started_at", "ended_at"}],
     "pods": [{"name", "id", "state", "gpu", "price_per_hour", "cost_usd", "rented_at", "ended_at"}]}

Times are ISO 8601 in UTC, money is USD, iterations are 0-based rollout ids as in slime; what is not known is null.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun

from plugins.errors import UserError
from tasks import artifacts
from tasks.control_plane import attempt_of, is_pipeline, recent_pipelines, runs_of, tag_value
from tasks.pod_ledger import charge_of, read_ledger
from tasks.stage_contract import HEARTBEAT_SUFFIX, Heartbeat, StageResult, artifact_key, parse_heartbeat
from tasks.steering import bury_dead_pipelines

Status = dict[str, Any]


def run_status(client: SyncPrefectClient, run_id: str) -> Status:
    """Everything about one run. Raises UserError when no flow run carries its tag."""
    bury_dead_pipelines(client, run_id)
    found = runs_of(client, run_id)
    if not found:
        raise UserError(f"No run '{run_id}' is known to the Prefect API at {client.api_url}. See `trainstack status`.")
    pipelines = sorted((r for r in found if is_pipeline(r)), key=_created, reverse=True)
    stage_runs = sorted((r for r in found if tag_value(r, "stage")), key=attempt_of)
    pods = [_pod(row) for row in read_ledger(client, run_id) if row["id"] is not None]
    head = pipelines[0] if pipelines else None
    first = pipelines[-1] if pipelines else None
    return {
        "run_id": run_id,
        "state": _state(head),
        "message": None if _state(head) == "Completed" else _message(head),
        "flow_runs": {"pipeline": [str(r.id) for r in pipelines], "stages": [str(r.id) for r in stage_runs]},
        "started_at": _iso(first.start_time if first else None),
        "ended_at": _iso(head.end_time if head else None),
        "cost_usd": round(sum(pod["cost_usd"] or 0.0 for pod in pods), 4),
        "stages": [_stage(client, run_id, name, stage_runs) for name in ("sft", "rl") if _has(stage_runs, name)],
        "pods": pods,
    }


def list_runs(client: SyncPrefectClient, limit: int = 20) -> list[Status]:
    """The newest runs, one row each: run_id, state, flow, started_at."""
    rows: dict[str, Status] = {}
    for flow_run in recent_pipelines(client, limit * 3):
        run_id = tag_value(flow_run, "run")
        if run_id and run_id not in rows:
            rows[run_id] = {"run_id": run_id, "state": _state(flow_run), "started_at": _iso(flow_run.start_time)}
    return list(rows.values())[:limit]


def _has(stage_runs: list[FlowRun], name: str) -> bool:
    return any(tag_value(run, "stage") == name for run in stage_runs)


def _stage(client: SyncPrefectClient, run_id: str, name: str, stage_runs: list[FlowRun]) -> Status:
    mine = [run for run in stage_runs if tag_value(run, "stage") == name]
    newest = mine[-1]
    result = _result(newest)
    row: Status = {
        "stage": name,
        "state": _state(newest),
        "message": None if result else _message(newest),
        "attempts": len(mine),
        "flow_run_id": str(newest.id),
        "started_at": _iso(mine[0].start_time),
        "ended_at": _iso(newest.end_time),
    }
    if result:
        return row | _from_result(result)
    artifact = artifacts.newest(client, artifact_key(run_id, name, HEARTBEAT_SUFFIX), newest.id)
    beat = parse_heartbeat(artifact.data) if artifact else None
    return row | _from_beat(beat)


def _from_result(result: StageResult) -> Status:
    return {
        "first_iteration": result.first_iteration,
        "last_iteration": result.last_iteration,
        "of": result.last_iteration + 1,
        "loss": {"first": result.first.get("loss"), "last": result.last.get("loss")},
        "reward": {"first": result.first.get("reward"), "last": result.last.get("reward")},
        "checkpoint": result.last_iteration,
        "store_uri": result.checkpoint_uri,
        "export_path": result.export_uri.removeprefix("folder:") if result.export_uri else None,
    }


def _from_beat(beat: Heartbeat | None) -> Status:
    return {
        "first_iteration": None,
        "last_iteration": beat.iteration if beat else None,
        "of": beat.of if beat else None,
        "loss": {"first": None, "last": beat.loss if beat else None},
        "reward": {"first": None, "last": beat.reward if beat else None},
        "checkpoint": beat.durable if beat else None,
        "store_uri": None,
        "export_path": None,
    }


def _result(flow_run: FlowRun) -> StageResult | None:
    if flow_run.state is None or not flow_run.state.is_completed():
        return None
    try:
        return StageResult.model_validate_json(flow_run.state.message or "")
    except ValueError:
        return None


def _pod(row: Status) -> Status:
    charge = charge_of(row)
    cost = None if charge is None else round(charge.usd(datetime.now(UTC).timestamp()), 4)
    keys = ("name", "id", "state", "gpu", "price_per_hour", "rented_at", "ended_at")
    return {**{key: row[key] for key in keys}, "cost_usd": cost}


_created: Callable[[FlowRun], datetime] = lambda run: run.created or datetime.min.replace(tzinfo=UTC)  # noqa: E731


def _state(flow_run: FlowRun | None) -> str | None:
    return flow_run.state.name if flow_run and flow_run.state else None


def _message(flow_run: FlowRun | None) -> str | None:
    return flow_run.state.message if flow_run and flow_run.state else None


def _iso(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat(timespec="seconds") if moment else None
