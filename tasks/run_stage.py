"""Run one stage on a pod, seen from the control plane: submit an attempt, wait for it, decide what its end means.

`run_deployment`'s own waiting is not used: it would not notice a pod that is gone, a worker that never starts, or a
cancel of a flow started as plain `python`. Each attempt is a flow run of its own; the same flow run is never scheduled
again, because Prefect does not fence attempts (prefect.md 0, fact 4).
"""

from collections.abc import Iterable
from enum import StrEnum

from blocks.recipe import StageName
from plugins.errors import ControlPlaneError, PodLost, StoreError, TrainstackError, UserError
from plugins.lium import clusters
from plugins.lium.idle import IdleWatch
from plugins.lium.liveness import Evidence, Life, Lookup, Probe, verdict, wants_lookup
from tasks.board import UNCLAIMED, AttemptRecord
from tasks.display import Display
from tasks.node_watch import NodeWatch
from tasks.plain_text import plain
from tasks.run import PodLink, Run, RunCancelled, RunEnded
from tasks.stage_contract import Heartbeat, StageOrder, StageResult

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

    def __init__(self, run: Run, pod: PodLink, record: AttemptRecord, stage: StageName) -> None:
        self.run, self.pod, self.record, self.stage = run, pod, record, stage
        self.number = record.number
        self.beat: Heartbeat | None = None
        self.result: StageResult | None = None
        self.problem = ""
        self._beat_at: float | None = None
        self._beat_stamp: object = None
        self._started = self._now()
        self._warned: str | None = None
        self._ssh_dead_since: float | None = None
        self._probe = Probe.NOT_ASKED
        self._lookup, self._looked_up_at = Lookup.NOT_ASKED, 0
        self._next_pod_look = self._started + POD_LOOK_S
        own = run.recipe.pod
        self._nodes = NodeWatch(run, pod)
        self._idle = IdleWatch(own.idle_gpu_percent, own.idle_minutes * 60)

    def wait(self) -> AttemptEnd:
        """Wait until the attempt ended or its pod is lost. Raises RunCancelled, RunEnded, UserError, StoreError."""
        with Display(self.run, self.stage) as display:
            while True:
                try:
                    end = self._look()
                except ControlPlaneError as error:
                    # A control plane that is down is no news about the training (DESIGN 5.4).
                    self.run.log(f"WARNING {error}; the stage goes on")
                    end = None
                if end is not None:
                    return end
                display.show(self.beat)
                self.run.nap(STATE_LOOK_S)

    def _now(self) -> float:
        return self.run.clock.monotonic()

    def _look(self) -> AttemptEnd | None:
        record = self.run.board.attempt(self.record.id)
        if record.ended:
            return self._ended(record)
        self._read_beat()
        if self._now() < self._next_pod_look:
            return None
        self._next_pod_look = self._now() + POD_LOOK_S
        self._watch_use()
        lost = self._check_pod()  # first: a pod that is gone must not be waited for over SSH
        return lost or (self._check_claimed() if record.state in UNCLAIMED else None)

    def _ended(self, record: AttemptRecord) -> AttemptEnd:
        self._read_beat()
        if record.state == "COMPLETED":
            self.result = result_of(record, self.run.run_id, self.stage)
            self.problem = "the pod says that it completed, and its result is not one of this stage"
            return AttemptEnd.COMPLETED if self.result else AttemptEnd.CRASHED
        self.problem = said = plain(record.message)
        if record.state == "CANCELLED":
            if self.run.board.cancelling():
                raise RunCancelled(f"Run {self.run.run_id} was cancelled.")
            raise UserError(f"Stage {self.stage} of {self.run.run_id} was cancelled by hand, so the run stops: {said}")
        if (cause := self._nodes.lost_after_failure()) is not None:
            self.problem = f"{cause} (the attempt said: {said.partition(chr(10))[0]})"
            self.pod.shut_out()
            return AttemptEnd.POD_LOST
        if record.state == "CRASHED":
            return AttemptEnd.CRASHED
        kind, _, text = said.partition(": ")
        if kind in ("TrainerFailed", "ResumeUnproved"):
            return AttemptEnd.TRAINER_FAILED
        if kind == "PodUnfit":
            return AttemptEnd.POD_LOST  # its host rests, as one that lost a pod
        if kind == "StoreError":
            raise StoreError(text)
        if kind in _names_of(UserError):
            raise UserError(text or said)
        return AttemptEnd.CRASHED  # what is foreign, or not the user's, says nothing about the recipe

    def _read_beat(self) -> None:
        beat, stamp = self.run.board.heartbeat(self.stage, self.record.id)
        if stamp is None or stamp == self._beat_stamp:
            return
        self._beat_stamp, self._beat_at = stamp, self._now()
        self.beat = beat or self.beat
        if beat is not None and beat.warning and beat.warning != self._warned:
            self._warned = beat.warning
            self.run.log(f"WARNING {self.stage}: {plain(beat.warning)}")
        self._probe, self._ssh_dead_since = Probe.NOT_ASKED, None

    def _watch_use(self) -> None:
        """A pod whose GPUs do nothing costs as much as one that trains: say so, and end the run if it is set so."""
        if self.beat is None or self._beat_at is None:
            return
        idle = self._idle.saw(self.beat.gpu_percent, self._beat_at)
        if idle is None:
            return
        pod = self.run.recipe.pod
        words = (
            f"pod {self.pod.name}: the GPUs were under {pod.idle_gpu_percent:g} % for {idle.seconds / 60:.0f} minutes"
        )
        if pod.idle_release:
            self.run.end(RunEnded(f"{words} (pod.idle_release); the run was stopped, the pod given back.", "Pod idle"))
        else:
            self.run.log(f"WARNING {words}; set pod.idle_release to have such a pod given back")

    def _check_claimed(self) -> AttemptEnd | None:
        """See that the pod can take the stage; a run that no worker takes would just wait for ever."""
        try:
            if not self.run.poller.snapshot(self.pod.name).good_listings_absent:
                self.pod.ensure_supervisor()
        except (ControlPlaneError, PodLost) as error:
            self.run.log(f"WARNING pod {self.pod.name}: {error}")
        if self._now() - self._started <= CLAIM_S:
            return None
        if self.run.board.attempt(self.record.id).state not in UNCLAIMED:
            return None  # claimed while SSH kept us waiting
        self.problem = f"no worker took it within {CLAIM_S:.0f} s"
        self.pod.shut_out()
        self._force_crashed()
        return AttemptEnd.POD_LOST

    def _check_pod(self) -> AttemptEnd | None:
        own = self.run.recipe
        limits = {
            "fresh_s": max(30.0, OLD_BEATS * own.heartbeat_s),
            "unreachable_after_s": own.pod.unreachable_after_s,
        }
        found = verdict(self._evidence(), self._now(), **limits)
        if found.life is Life.PROBE:
            self._ask_pod()
            found = verdict(self._evidence(), self._now(), **limits)
        if found.life not in (Life.LOST, Life.FAILED):
            return self._check_nodes()
        self.problem = self._where() + found.reason
        if found.life is Life.LOST:
            self.pod.shut_out()
        self._force_crashed()
        return AttemptEnd.POD_LOST if found.life is Life.LOST else AttemptEnd.CRASHED

    def _check_nodes(self) -> AttemptEnd | None:
        """See that the further nodes of a cluster live: without one of them the training cannot go on."""
        cause = self._nodes.lost()
        if cause is None:
            return None
        self.problem = cause
        self.pod.shut_out()
        self._force_crashed()
        return AttemptEnd.POD_LOST

    def _where(self) -> str:
        """Which node of a cluster a verdict is about, for its sentence."""
        sighting = self.run.poller.snapshot(self.pod.name)
        ended = clusters.trouble(sighting.row) if sighting.row else None
        return self._nodes.where(ended.id if ended else sighting.missing)

    def _evidence(self) -> Evidence:
        sighting = self.run.poller.snapshot(self.pod.name)
        if not wants_lookup(sighting.evidence()):
            self._lookup, self._looked_up_at = Lookup.NOT_ASKED, 0
        elif sighting.good_listings_absent > self._looked_up_at:
            missing = sighting.missing or self.pod.row.id
            self._lookup, self._looked_up_at = self._look_up(missing), sighting.good_listings_absent
        return sighting.evidence(
            lookup=self._lookup,
            # Before the first beat the stage has the time to be claimed and to start.
            heartbeat_at=self._beat_at if self._beat_at is not None else self._started + CLAIM_S,
            probe=self._probe,
            ssh_dead_since=self._ssh_dead_since,
            cause=self.run.account.cause(sighting.missing or self.pod.row.id) if self._lookup is Lookup.GONE else None,
        )

    def _look_up(self, pod_id: str) -> Lookup:
        try:
            return Lookup.FOUND if self.run.account.look_up(pod_id) else Lookup.GONE
        except TrainstackError:
            return Lookup.NO_ANSWER

    def _ask_pod(self) -> None:
        try:
            self._probe = self.pod.probe(self.record.id)
            self._ssh_dead_since = None
        except TrainstackError:
            self._probe = Probe.NO_ANSWER
            if self._ssh_dead_since is None:
                self._ssh_dead_since = self._now()

    def _force_crashed(self) -> None:
        self.run.board.crash(self.record.id, f"Attempt {self.number} ended from outside: {self.problem}")

    def cancel(self, last_sync_s: float = 0.0) -> None:
        """Set the stage Cancelling and wait a little for it to seal what it can.

        last_sync_s: how long a checkpoint that is on its way to the store is waited for before that.
        """
        board, clock = self.run.board, self.run.clock
        try:
            self._await_sync(self._now() + last_sync_s)
            deadline = self._now() + CANCEL_WAIT_S
            board.ask_to_stop(self.record.id, "The pipeline was cancelled.")
            while self._now() < deadline:
                if board.attempt(self.record.id).ended:
                    return
                clock.sleep(STATE_LOOK_S)
            self.problem = f"it did not end within {CANCEL_WAIT_S:.0f} s of a cancel"
            self._force_crashed()
        except ControlPlaneError as error:
            self.run.log(f"WARNING the stage was not told to stop ({error}); its pod ends all the same")

    def _await_sync(self, deadline: float) -> None:
        """Wait until the newest sealed checkpoint is durable, or the attempt or the time is over."""
        while self._now() < deadline and not self.run.board.attempt(self.record.id).ended:
            self._read_beat()
            if self.beat is None or self.beat.sealed is None or self.beat.durable == self.beat.sealed:
                return
            self.run.clock.sleep(STATE_LOOK_S)


def _names_of(error: type[Exception]) -> set[str]:
    """The names of an error and of all that are made from it."""
    return {error.__name__}.union(*(_names_of(kind) for kind in error.__subclasses__()))


def submit(run: Run, pod: PodLink, order: StageOrder) -> AttemptRecord:
    """Create the attempt on the pod's queue; the same attempt is never created twice."""
    return run.board.submit(order, pod.name)


def living_attempt(run: Run, stage: StageName) -> AttemptRecord | None:
    """The newest attempt of a stage if it has not ended, for a pipeline that was started again."""
    found = run.board.attempts(stage)
    return found[0] if found and not found[0].ended else None


def next_attempt(run: Run, stage: StageName) -> int:
    """Number of the next attempt over the whole life of the stage."""
    return 1 + max((found.number for found in run.board.attempts(stage)), default=0)


def beats_before(run: Run, stage: StageName) -> list[Heartbeat]:
    """The last heartbeat of each earlier attempt that had one, newest attempt first."""
    beats = (run.board.heartbeat(stage, found.id)[0] for found in run.board.attempts(stage))
    return [beat for beat in beats if beat is not None]


def durable_in(beats: Iterable[Heartbeat]) -> int | None:
    """The newest iteration that an earlier attempt reported durable: a stage that had one never starts from zero."""
    return max((beat.durable for beat in beats if beat.durable is not None), default=None)


def trained_in(beats: Iterable[Heartbeat]) -> int | None:
    """The newest iteration that an earlier attempt trained, durable or not."""
    return max((beat.iteration for beat in beats if beat.iteration is not None), default=None)


def finished_result(run: Run, stage: StageName) -> StageResult | None:
    """The result of a stage that an earlier call of the pipeline completed."""
    for found in run.board.attempts(stage):
        result = result_of(found, run.run_id, stage)
        if result is not None:
            return result
    return None


def result_of(record: AttemptRecord, run_id: str, stage: str) -> StageResult | None:
    """The result of a completed attempt; None when what the pod wrote is not the result of this stage."""
    try:
        result = StageResult.model_validate_json(record.message) if record.state == "COMPLETED" else None
    except ValueError:
        return None
    return result if result and (result.run_id, result.stage) == (run_id, stage) else None
