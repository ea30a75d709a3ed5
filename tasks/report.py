"""From what a run left in Prefect to its account: the records that `accounting.py` works with.

Heartbeats of attempts, states of their flow runs and the pods' ledger are all there is, and all that survives a pod.
"""

from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun

from plugins.errors import UserError
from tasks import artifacts
from tasks.accounting import AttemptTimes, End, PodTimes, Report, build_report
from tasks.board import Row
from tasks.control_plane import attempt_of, is_pipeline, runs_of, tag_value
from tasks.pod_ledger import read_ledger, was_lost
from tasks.prefect_board import record_of
from tasks.report_view import loss_rows, report_rows
from tasks.save_interval import mean_time_between_losses
from tasks.stage_contract import HEARTBEAT_SUFFIX, Heartbeat, artifact_key, parse_heartbeat
from tasks.timeline import timeline_png

FROM_OUTSIDE = "ended from outside"
ENDS: dict[str, End] = {"COMPLETED": "completed", "CANCELLED": "cancelled", "FAILED": "trainer failed"}


def report_of(client: SyncPrefectClient, run_id: str) -> Report:
    """The account of a run so far. Raises UserError when Prefect knows no such run."""
    found = runs_of(client, run_id)
    if not found:
        raise UserError(f"No run '{run_id}' is known to the Prefect API at {client.api_url}. See `trainstack status`.")
    ledger = [row for row in read_ledger(client, run_id) if row["id"] is not None]
    heads = [run for run in found if is_pipeline(run)]
    stage_runs = sorted((run for run in found if tag_value(run, "stage")), key=attempt_of)
    beats = {run.id: _beat(client, run_id, run) for run in stage_runs}
    attempts = [_attempt(run, *beats[run.id]) for run in stage_runs]
    pods = [_pod(row) for row in ledger]
    now = datetime.now(UTC).timestamp()
    alive = any(run.state is None or not run.state.is_final() for run in heads)
    losses = sum(was_lost(row) for row in ledger)
    up_s = sum((pod.ended_at or now) - pod.rented_at for pod in pods)
    return build_report(
        run_id,
        pods,
        attempts,
        now=now,
        started_at=min((run.start_time.timestamp() for run in heads if run.start_time), default=None),
        ended_at=None if alive else max((run.end_time.timestamp() for run in heads if run.end_time), default=None),
        save_cost_s=next((one.save_cost_s for one in reversed(attempts) if one.save_cost_s is not None), None),
        mtbl_s=mean_time_between_losses(losses, up_s, next((row["tier"] for row in ledger if row["tier"]), None)),
    )


def publish(client: SyncPrefectClient, run_id: str, flow_run_id: UUID) -> None:
    """Show the account in the UI: two tables and the time line, as artifacts of the pipeline's flow run."""
    report = report_of(client, run_id)
    key = artifact_key(run_id, "report")
    artifacts.put_table(client, flow_run_id, key, report_rows(report), f"What {run_id} took and cost")
    if report.losses:
        artifacts.put_table(
            client, flow_run_id, artifact_key(run_id, "losses"), loss_rows(report), f"What each loss of {run_id} cost"
        )
    picture = artifacts.picture(timeline_png(report), "time line")
    artifacts.put_markdown(client, flow_run_id, artifact_key(run_id, "timeline"), f"# {run_id}\n\n{picture}")


def _beat(client: SyncPrefectClient, run_id: str, run: FlowRun) -> tuple[Heartbeat | None, float | None]:
    stage = str(tag_value(run, "stage"))
    found = artifacts.newest(client, artifact_key(run_id, stage, HEARTBEAT_SUFFIX), run.id)
    if found is None:
        return None, None
    return parse_heartbeat(found.data), found.updated.timestamp() if found.updated else None


def _attempt(run: FlowRun, beat: Heartbeat | None, beat_at: float | None) -> AttemptTimes:
    record = record_of(run)
    end: End = ENDS.get(record.state, "running")
    if record.state == "CRASHED":
        end = "lost" if FROM_OUTSIDE in record.message else "crashed"
    ended_at = run.end_time.timestamp() if run.end_time and record.ended else None
    return AttemptTimes(
        stage=str(tag_value(run, "stage")),
        number=attempt_of(run),
        pod=record.pod,
        submitted_at=(run.created or run.expected_start_time or datetime.now(UTC)).timestamp(),
        started_at=run.start_time.timestamp() if run.start_time else None,
        ended_at=ended_at,
        end=end,
        restored=beat.restored if beat else None,
        first_iteration=beat.first_iteration if beat else None,
        last_iteration=beat.iteration if beat else None,
        durable=beat.durable if beat else None,
        phases=beat.seconds if beat else {},
        first_new_at=beat.first_new_at if beat else None,
        last_iteration_at=beat.last_iteration_at if beat else None,
        save_interval=beat.save_interval if beat else None,
        save_cost_s=beat.save_s if beat else None,
        lost_at=beat_at if end == "lost" else None,
        detected_at=ended_at if end == "lost" else None,
    )


def _pod(row: Row) -> PodTimes:
    return PodTimes(
        name=row["name"],
        rented_at=_epoch(row["rented_at"]) or 0.0,
        running_at=_epoch(row["running_at"]),
        ready_at=_epoch(row["ready_at"]),
        ended_at=_epoch(row["ended_at"]),
        price_per_hour=row["price_per_hour"],
        cost_usd=row["cost_usd"],
        host=row["host"],
        tier=row["tier"],
    )


def _epoch(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None
