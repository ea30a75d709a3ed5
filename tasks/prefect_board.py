"""The board of a run in Prefect: flow runs, artifacts, work queues and variables (see `board.py` for the contract).

What belongs to no single run (hosts that rest, warm pods) is `common_knowledge.py`'s.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling, Crashed, Running

from plugins.errors import ControlPlaneError
from plugins.lium.offers import Rest
from tasks import artifacts, common_knowledge
from tasks.board import AttemptRecord, Row, WarmPod
from tasks.control_plane import api_answers, attempt_of, set_state, stage_runs, worker_online
from tasks.stage_contract import (
    HEARTBEAT_SUFFIX,
    STAGE_DEPLOYMENT,
    WORK_POOL,
    Heartbeat,
    StageOrder,
    artifact_key,
    parse_heartbeat,
    stage_tags,
)

CANCEL_TYPES = (StateType.CANCELLING, StateType.CANCELLED)


@contextmanager
def prefect_answers(what: str) -> Iterator[None]:
    """Turn what Prefect's client raises when its server is down or busy into ControlPlaneError."""
    try:
        yield
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        raise ControlPlaneError(f"Prefect does not answer ({what}: {type(error).__name__})") from error


class PrefectBoard:
    """The board of one run; `flow_run_id` is the pipeline's own flow run, to which artifacts belong."""

    def __init__(self, client: SyncPrefectClient, run_id: str, flow_run_id: UUID) -> None:
        self.client, self.run_id, self.flow_run_id = client, run_id, flow_run_id
        self._live: dict[str, UUID] = {}

    def answers(self) -> bool:
        """Whether Prefect answers now."""
        return api_answers(self.client)

    def cancelling(self) -> bool:
        """Whether the pipeline's flow run is being cancelled."""
        with prefect_answers("read the pipeline's state"):
            state = self.client.read_flow_run(self.flow_run_id).state
        return state is not None and state.type in CANCEL_TYPES

    def announce(self, state: str, message: str) -> None:
        """Name the pipeline's running state."""
        with prefect_answers("name the state"):
            current = self.client.read_flow_run(self.flow_run_id).state
            if current is None or current.type != StateType.RUNNING or current.name == (state or "Running"):
                return
            shown: State[Any] = Running(name=state or "Running", message=message or None)
            set_state(self.client, self.flow_run_id, shown, force=True)

    def attempts(self, stage: str) -> list[AttemptRecord]:
        """A stage's attempts, newest first."""
        with prefect_answers("list attempts"):
            return [record_of(run) for run in stage_runs(self.client, self.run_id, stage)]

    def attempt(self, attempt_id: UUID) -> AttemptRecord:
        """One attempt as it is now."""
        with prefect_answers("read the attempt"):
            return record_of(self.client.read_flow_run(attempt_id))

    def heartbeat(self, stage: str, attempt_id: UUID) -> tuple[Heartbeat | None, object]:
        """The newest heartbeat and the time of its artifact."""
        with prefect_answers("read the heartbeat"):
            found = artifacts.newest(self.client, artifact_key(self.run_id, stage, HEARTBEAT_SUFFIX), attempt_id)
        return (parse_heartbeat(found.data), found.updated) if found else (None, None)

    def submit(self, order: StageOrder, pod: str) -> AttemptRecord:
        """Create the flow run of an attempt on the pod's queue."""
        with prefect_answers("submit the attempt"):
            made: Any = run_deployment(
                STAGE_DEPLOYMENT,
                parameters={"order": order.model_dump(mode="json")},
                work_queue_name=pod,
                idempotency_key=f"{order.run_id}:{order.stage}:{order.attempt}",
                flow_run_name=f"{order.run_id}-{order.stage}-{order.attempt}",
                tags=stage_tags(order.run_id, order.stage, order.attempt),
                timeout=0,
            )
        return record_of(made)

    def crash(self, attempt_id: UUID, why: str) -> None:
        """Set an attempt Crashed by force."""
        with prefect_answers("crash the attempt"):
            set_state(self.client, attempt_id, Crashed(message=why), force=True)

    def ask_to_stop(self, attempt_id: UUID, why: str) -> None:
        """Set an attempt Cancelling."""
        with prefect_answers("cancel the attempt"):
            set_state(self.client, attempt_id, Cancelling(message=why))

    def set_cancelled(self, attempt_id: UUID, why: str) -> None:
        """Set an attempt Cancelled by force."""
        with prefect_answers("cancel the attempt"):
            set_state(self.client, attempt_id, Cancelled(message=why), force=True)

    def worker_online(self, pod: str) -> bool:
        """Whether the pod's worker is online."""
        with prefect_answers("look for the worker"):
            return worker_online(self.client, pod)

    def open_queue(self, pod: str) -> None:
        """Make the pod's queue unless it is there."""
        with prefect_answers("make the queue"), suppress(ObjectAlreadyExists):
            self.client.create_work_queue(name=pod, work_pool_name=WORK_POOL)

    def drop_queue(self, pod: str) -> None:
        """Delete the pod's queue; one that is gone is fine."""
        with prefect_answers("drop the queue"), suppress(ObjectNotFound):
            queue = self.client.read_work_queue_by_name(pod, work_pool_name=WORK_POOL)
            self.client.delete_work_queue_by_id(queue.id)

    def ledger(self) -> list[Row]:
        """Rows of the ledger artifact."""
        with prefect_answers("read the ledger"):
            return artifacts.rows_of(artifacts.newest(self.client, artifact_key(self.run_id, "pods")))

    def write_ledger(self, rows: Sequence[Row]) -> None:
        """A new version of the ledger artifact, so that the UI shows its history."""
        self.show_table("pods", rows, f"Pods of {self.run_id}")

    def resting(self) -> dict[str, Rest]:
        """Hosts that rest."""
        with prefect_answers("read the resting hosts"):
            return common_knowledge.resting_hosts(self.client)

    def rest_host(self, executor_id: str, rest: Rest) -> None:
        """Leave a host out."""
        with prefect_answers("note a resting host"):
            common_knowledge.rest_host(self.client, executor_id, rest)

    def warm_pods(self) -> list[WarmPod]:
        """Warm pods with their claims."""
        with prefect_answers("read the warm pods"):
            return common_knowledge.warm_pods(self.client)

    def hold_warm(self, pod: WarmPod) -> None:
        """Offer a pod to the next run."""
        with prefect_answers("offer a warm pod"):
            common_knowledge.hold_warm(self.client, pod)

    def claim_warm(self, name: str) -> bool:
        """Take a warm pod for this run."""
        with prefect_answers("claim a warm pod"):
            return common_knowledge.claim_warm(self.client, name, self.run_id)

    def forget_warm(self, name: str) -> None:
        """Take offer and claim away."""
        with prefect_answers("forget a warm pod"):
            common_knowledge.forget_warm(self.client, name)

    def show_table(self, name: str, rows: Sequence[Row], title: str, *, live: bool = False) -> None:
        """A table artifact of the pipeline's flow run."""
        with prefect_answers(f"write the table {name}"):
            if live and name in self._live:
                artifacts.update(self.client, self._live[name], artifacts.table_data(rows))
                return
            key = artifact_key(self.run_id, name)
            self._live[name] = artifacts.put_table(self.client, self.flow_run_id, key, rows, title)

    def show_markdown(self, name: str, text: str) -> None:
        """A markdown artifact of the pipeline's flow run."""
        with prefect_answers(f"write {name}"):
            artifacts.put_markdown(self.client, self.flow_run_id, artifact_key(self.run_id, name), text)


def record_of(flow_run: FlowRun) -> AttemptRecord:
    """An attempt from its flow run."""
    state = flow_run.state
    kind, message = (state.type.value, state.message or "") if state else ("SCHEDULED", "")
    return AttemptRecord(flow_run.id, attempt_of(flow_run), flow_run.work_queue_name, kind, message)
