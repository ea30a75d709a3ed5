"""Run one stage on a pod, seen from the control plane: submit an attempt, wait for it, decide what its end means.

`run_deployment`'s own waiting is not used: it would not notice a pod that is gone, a worker that never starts, or a
cancel of a flow started as plain `python`. Each attempt is a flow run of its own; the same flow run is never scheduled
again, because Prefect does not fence attempts (prefect.md 0, fact 4).
"""

import time
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import httpx
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling, Crashed

from blocks.recipe import StageName
from plugins.errors import ControlPlaneError, PodLost, StoreError, TrainstackError, UserError
from plugins.lium.liveness import Evidence, Life, Lookup, Probe, verdict
from tasks import artifacts
from tasks.control_plane import attempt_of, set_state, stage_runs
from tasks.display import Display
from tasks.provision_pod import LivePod, ensure_supervisor
from tasks.run import Run, RunCancelled, is_cancelling
from tasks.stage_contract import (
    HEARTBEAT_SUFFIX,
    STAGE_DEPLOYMENT,
    Heartbeat,
    StageOrder,
    StageResult,
    artifact_key,
    parse_heartbeat,
    stage_tags,
)

STATE_LOOK_S = 0.5
POD_LOOK_S = 5.0
CLAIM_S = 180.0
CANCEL_WAIT_S = 25.0
OLD_BEATS = 6  # heartbeats missed before the pod itself is asked
SAME_CRASHES = 2


class AttemptEnd(StrEnum):
    """How an attempt ended, for the decision what comes next."""

    COMPLETED = "completed"
    TRAINER_FAILED = "trainer failed"
    CRASHED = "crashed"
    POD_LOST = "pod lost"


class Attempt:
    """One attempt being waited for."""

    def __init__(self, run: Run, pod: LivePod, flow_run: FlowRun, stage: StageName) -> None:
        self.run, self.pod, self.flow_run, self.stage = run, pod, flow_run, stage
        self.number = attempt_of(flow_run)
        self.beat: Heartbeat | None = None
        self.result: StageResult | None = None
        self.problem = ""
        self._beat_at: float | None = None
        self._beat_updated: datetime | None = None
        self._started = time.monotonic()
        self._ssh_dead_since: float | None = None
        self._probe = Probe.NOT_ASKED
        self._next_pod_look = time.monotonic() + POD_LOOK_S

    def wait(self) -> AttemptEnd:
        """Wait until the attempt ended or its pod is lost. Raises RunCancelled, UserError, StoreError."""
        with Display(self.run, self.stage) as display:
            while True:
                try:
                    end = self._look()
                except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                    # A control plane that is down is no news about the training (DESIGN 5.4).
                    self.run.log(f"WARNING Prefect does not answer ({type(error).__name__}); the stage goes on")
                    end = None
                if end is not None:
                    return end
                display.show(self.beat)
                self.run.nap(STATE_LOOK_S)

    def _look(self) -> AttemptEnd | None:
        flow_run = self.run.client.read_flow_run(self.flow_run.id)
        state = flow_run.state
        if state is not None and state.is_final():
            return self._ended(state.type, state.message or "")
        self._read_beat()
        if time.monotonic() >= self._next_pod_look:
            self._next_pod_look = time.monotonic() + POD_LOOK_S
            if state is not None and state.type in (StateType.SCHEDULED, StateType.PENDING):
                return self._check_claimed() or self._check_pod()
            return self._check_pod()
        return None

    def _ended(self, state: StateType, message: str) -> AttemptEnd:
        self._read_beat()
        if state == StateType.COMPLETED:
            self.result = StageResult.model_validate_json(message)
            return AttemptEnd.COMPLETED
        self.problem = message
        if state == StateType.CANCELLED:
            if is_cancelling(self.run):
                raise RunCancelled(f"Run {self.run.run_id} was cancelled.")
            raise UserError(
                f"Stage {self.stage} of {self.run.run_id} was cancelled by hand, so the run stops: {message}"
            )
        if state == StateType.CRASHED:
            return AttemptEnd.CRASHED
        kind, _, text = message.partition(": ")
        if kind == "TrainerFailed":
            return AttemptEnd.TRAINER_FAILED
        if kind == "StoreError":
            raise StoreError(text)
        if kind in ("ControlPlaneError", "PodLost"):
            return AttemptEnd.CRASHED
        raise UserError(text or message)

    def _read_beat(self) -> None:
        key = artifact_key(self.run.run_id, self.stage, HEARTBEAT_SUFFIX)
        artifact = artifacts.newest(self.run.client, key, self.flow_run.id)
        if artifact is None or artifact.updated == self._beat_updated:
            return
        self._beat_updated, self._beat_at = artifact.updated, time.monotonic()
        self.beat = parse_heartbeat(artifact.data) or self.beat
        self._probe, self._ssh_dead_since = Probe.NOT_ASKED, None

    def _check_claimed(self) -> AttemptEnd | None:
        """See that the pod can take the stage; a run that no worker takes would just wait for ever."""
        try:
            ensure_supervisor(self.run, self.pod)
        except (ControlPlaneError, PodLost) as error:
            self.run.log(f"WARNING pod {self.pod.name}: {error}")
        if time.monotonic() - self._started <= CLAIM_S:
            return None
        self.problem = f"no worker took it within {CLAIM_S:.0f} s"
        self._force_crashed()
        return AttemptEnd.POD_LOST

    def _check_pod(self) -> AttemptEnd | None:
        now = time.monotonic()
        fresh_s = max(30.0, OLD_BEATS * self.run.recipe.heartbeat_s)
        found = verdict(self._evidence(), now, fresh_s=fresh_s)
        if found.life is Life.PROBE:
            self._ask_pod()
            found = verdict(self._evidence(), time.monotonic(), fresh_s=fresh_s)
        if found.life is Life.LOST:
            self.problem = found.reason
            self._force_crashed()
            return AttemptEnd.POD_LOST
        if found.life is Life.FAILED:
            self.problem = found.reason
            self._force_crashed()
            return AttemptEnd.CRASHED
        return None

    def _evidence(self) -> Evidence:
        sighting = self.run.poller.snapshot(self.pod.name)
        lookup = Lookup.NOT_ASKED
        if sighting.row is None and sighting.good_listings_absent >= 2:
            lookup = self._look_up()
        return sighting.evidence(
            lookup=lookup,
            # Before the first beat the stage has the time to be claimed and to start.
            heartbeat_at=self._beat_at if self._beat_at is not None else self._started + CLAIM_S,
            probe=self._probe,
            ssh_dead_since=self._ssh_dead_since,
            cause=self.run.account.cause(self.pod.row.id) if lookup is Lookup.GONE else None,
        )

    def _look_up(self) -> Lookup:
        try:
            return Lookup.FOUND if self.run.account.look_up(self.pod.row.id) else Lookup.GONE
        except TrainstackError:
            return Lookup.NO_ANSWER

    def _ask_pod(self) -> None:
        marker = f"PREFECT__FLOW_RUN_ID={self.flow_run.id}"
        try:
            seen = self.pod.connection.run(f"grep -lsz '^{marker}$' /proc/[0-9]*/environ", timeout_s=30)
        except TrainstackError:
            self._probe = Probe.NO_ANSWER
            self._ssh_dead_since = self._ssh_dead_since or time.monotonic()
            return
        self._ssh_dead_since = None
        self._probe = Probe.RUNNING if seen.stdout.strip() else Probe.GONE

    def _force_crashed(self) -> None:
        message = f"Attempt {self.number} ended from outside: {self.problem}"
        set_state(self.run.client, self.flow_run.id, Crashed(message=message), force=True)

    def cancel(self) -> None:
        """Set the stage Cancelling at once and wait a little for it to seal what it can."""
        client, deadline = self.run.client, time.monotonic() + CANCEL_WAIT_S
        try:
            set_state(client, self.flow_run.id, Cancelling(message="The pipeline was cancelled."))
            while time.monotonic() < deadline:
                state = client.read_flow_run(self.flow_run.id).state
                if state is not None and state.is_final():
                    return
                time.sleep(STATE_LOOK_S)
            self.problem = f"it did not end within {CANCEL_WAIT_S:.0f} s of a cancel"
            self._force_crashed()
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            self.run.log(f"WARNING the stage was not told to stop ({type(error).__name__}); its pod ends all the same")


def submit(run: Run, pod: LivePod, order: StageOrder) -> FlowRun:
    """Create the flow run of an attempt on the pod's queue; the same attempt is never created twice."""
    return run_deployment(  # type: ignore[return-value]
        STAGE_DEPLOYMENT,
        parameters={"order": order.model_dump(mode="json")},
        work_queue_name=pod.name,
        idempotency_key=f"{order.run_id}:{order.stage}:{order.attempt}",
        flow_run_name=f"{order.run_id}-{order.stage}-{order.attempt}",
        tags=stage_tags(order.run_id, order.stage, order.attempt),
        timeout=0,
    )


def living_attempt(run: Run, stage: StageName) -> FlowRun | None:
    """The newest attempt of a stage if its flow run has not ended, for a pipeline that was started again."""
    found = stage_runs(run.client, run.run_id, stage)
    return found[0] if found and found[0].state and not found[0].state.is_final() else None


def next_attempt(run: Run, stage: StageName) -> int:
    """Number of the next attempt over the whole life of the stage."""
    return 1 + max((attempt_of(found) for found in stage_runs(run.client, run.run_id, stage)), default=0)


def durable_before(run: Run, stage: StageName) -> int | None:
    """The newest iteration that an earlier attempt reported durable: a stage that had one never starts from zero."""
    key = artifact_key(run.run_id, stage, HEARTBEAT_SUFFIX)
    beats = []
    for found in stage_runs(run.client, run.run_id, stage):
        artifact = artifacts.newest(run.client, key, found.id)
        beat = parse_heartbeat(artifact.data) if artifact else None
        if beat is not None and beat.durable is not None:
            beats.append(beat.durable)
    return max(beats, default=None)


def finished_result(run: Run, stage: StageName) -> StageResult | None:
    """The result of a stage that an earlier call of the pipeline completed."""
    for found in stage_runs(run.client, run.run_id, stage):
        if found.state and found.state.is_completed():
            return StageResult.model_validate_json(found.state.message or "")
    return None


def crash(run: Run, flow_run_id: UUID, why: str) -> Any:
    """Set a flow run Crashed by force, because nobody is left who could report for it."""
    set_state(run.client, flow_run_id, Crashed(message=why), force=True)
