"""Logs of a run as Prefect keeps them, so that every attempt's log can be read after its pod is gone."""

import time
from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, Log
from prefect.client.schemas.sorting import LogSort

from plugins.errors import UserError
from tasks.control_plane import attempt_of, runs_of, tag_value
from tasks.plain_text import plain

PAGE = 200
LOOK_S = 1.0


def print_logs(run_id: str, stage: str | None, attempt: int | None, *, follow: bool) -> None:
    """Print one flow run's log, oldest line first; with `follow`, until it has ended."""
    with get_client(sync_client=True) as client:
        chosen = choose(runs_of(client, run_id), run_id, stage, attempt)
        offset = 0
        while True:
            ended = _ended(client, chosen.id)
            for log in read_logs(client, chosen.id, offset):
                print(f"{_clock(log.timestamp)} {plain(log.message)}", flush=True)
                offset += 1
            if ended or not follow:
                return
            time.sleep(LOOK_S)


def choose(found: list[FlowRun], run_id: str, stage: str | None, attempt: int | None) -> FlowRun:
    """The flow run whose log is meant. Raises UserError that says what there is."""
    if not found:
        raise UserError(f"No run '{run_id}' is known to this Prefect API.")
    mine = [run for run in found if tag_value(run, "stage") == stage and attempt in (None, attempt_of(run))]
    if not mine:
        there = sorted({f"{tag_value(run, 'stage')} attempt {attempt_of(run)}" for run in found if attempt_of(run)})
        asked = f"{stage or 'the pipeline'}{'' if attempt is None else f' attempt {attempt}'}"
        raise UserError(
            f"Run '{run_id}' has no log of {asked}; there is: {', '.join(there) or 'only the pipeline'}. "
            "Attempts need --stage."
        )
    return max(mine, key=lambda run: (attempt_of(run), run.created.timestamp() if run.created else 0.0))


def read_logs(client: SyncPrefectClient, flow_run_id: UUID, offset: int = 0) -> Iterator[Log]:
    """Log lines of a flow run from the `offset`-th on, in order."""
    while True:
        page = client.read_logs(
            log_filter=LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])),
            sort=LogSort.TIMESTAMP_ASC,
            offset=offset,
            limit=PAGE,
        )
        yield from page
        offset += len(page)
        if len(page) < PAGE:
            return


def _ended(client: SyncPrefectClient, flow_run_id: UUID) -> bool:
    state = client.read_flow_run(flow_run_id).state
    return state is not None and state.is_final()


def _clock(moment: datetime) -> str:
    return moment.astimezone().strftime("%H:%M:%S")
