"""Attempts training on simulated pods, and what Prefect remembers of them; both outlive the flow's processes.

Progress is worked out when somebody asks, so an hour of training costs nothing. Claiming, ends and crashes are events.
What a process may ask or change is `sim_board.py`'s.

    SCHEDULED -> RUNNING -> COMPLETED | CRASHED | FAILED | (process gone, state stays RUNNING)
    any -> CANCELLING -> CANCELLED
"""

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tasks.stage_contract import Heartbeat, StageResult
from tests.faults.machines import SimPod
from tests.faults.plan import StagePlan

if TYPE_CHECKING:
    from tests.faults.world import World

BEAT_S = 10.0
STARTUP_S = 20.0
UPLOAD_S = 15.0
AGAIN_S = 5.0
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
BUSY, IDLE = 90.0, 0.0


@dataclass
class SimAttempt:
    """One attempt. Times are epoch seconds; base: iterations that were durable when it began.

    dead_at: when its process ended for whatever reason; stuck_at: from when it makes no progress and still beats.
    """

    id: UUID
    number: int
    plan: StagePlan
    pod: SimPod
    state: str = "SCHEDULED"
    message: str = ""
    base: int = 0
    started_at: float | None = None
    dead_at: float | None = None
    stuck_at: float | None = None
    shown: tuple[float, Heartbeat] | None = None

    @property
    def final(self) -> bool:
        """Whether its state is one that stays."""
        return self.state in FINAL

    @property
    def healthy(self) -> bool:
        """Whether it trains: pod and network up, process alive, getting on."""
        return self.state == "RUNNING" and self.pod.reachable and self.dead_at is None and self.stuck_at is None

    def trained(self, now: float) -> int:
        """Iterations done by now, with those of earlier attempts."""
        if self.started_at is None:
            return self.base
        end = min(now, *(t for t in (self.dead_at, self.stuck_at, self.pod.ended_at) if t is not None), now)
        done = int(max(0.0, end - self.started_at - STARTUP_S) / self.plan.iteration_s)
        return min(self.plan.iterations, self.base + done)

    def durable(self, now: float) -> int:
        """Iterations that a store has."""
        if self.state == "COMPLETED":
            return self.plan.iterations
        end = now if self.pod.cut_at is None else min(now, self.pod.cut_at)
        done = self.trained(end - UPLOAD_S) if self.started_at is not None else self.base
        if done >= self.plan.iterations:
            return done
        return max(self.base, done - done % self.plan.save_every)


@dataclass
class Stages:
    """The board's memory and the training that goes on, for one run."""

    world: "World"
    attempts: list[SimAttempt] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    resting: dict[str, Any] = field(default_factory=dict)
    warm: dict[str, Any] = field(default_factory=dict)
    queues: set[str] = field(default_factory=set)
    shown: dict[str, int] = field(default_factory=dict)
    cancelling: bool = False
    was_cancelled: bool = False
    cancelled_at: float | None = None

    def __post_init__(self) -> None:
        self._rng = Random(f"stages {self.world.plan.seed}")
        self._plans = {stage.name: stage for stage in self.world.plan.stages}

    # -- asked ----------------------------------------------------------------------------------------------------

    def of_stage(self, stage: str) -> list[SimAttempt]:
        """A stage's attempts, newest first."""
        return [attempt for attempt in reversed(self.attempts) if attempt.plan.name == stage]

    def by_id(self, attempt_id: object) -> SimAttempt:
        """One attempt; KeyError when there is none."""
        for attempt in self.attempts:
            if attempt.id == attempt_id:
                return attempt
        raise KeyError(attempt_id)

    def on_pod(self, pod: SimPod) -> SimAttempt | None:
        """The newest attempt that was given to a pod."""
        return next((attempt for attempt in reversed(self.attempts) if attempt.pod is pod), None)

    def durable(self, stage: str) -> int:
        """Iterations of a stage that a store has."""
        return max((attempt.durable(self.world.clock.now()) for attempt in self.of_stage(stage)), default=0)

    def beat(self, attempt: SimAttempt) -> tuple[Heartbeat | None, float | None]:
        """The newest heartbeat that reached the board, and its time."""
        if attempt.started_at is None:
            return None, None
        ends = (attempt.dead_at, attempt.pod.ended_at, attempt.pod.cut_at)
        last = min([self.world.clock.now(), *(time for time in ends if time is not None)])
        for start, end in self.world.way_down:
            if start <= last < end:
                last = max(attempt.started_at, start)
        at = attempt.started_at + BEAT_S * int((last - attempt.started_at) / BEAT_S)
        if attempt.shown is None or attempt.shown[0] != at:
            stuck = attempt.stuck_at is not None and attempt.stuck_at <= at
            attempt.shown = (at, self._heartbeat(attempt, at, IDLE if stuck else BUSY))
        return attempt.shown[1], at

    def worker_online(self, pod: SimPod | None) -> bool:
        """Whether the pod's worker takes attempts."""
        return (
            pod is not None
            and pod.reachable
            and pod.name in self.queues
            and pod.worker_at is not None
            and self.world.clock.now() >= pod.worker_at
        )

    # -- changed --------------------------------------------------------------------------------------------------

    def submit(self, stage: str, number: int, pod: SimPod) -> SimAttempt:
        """Create an attempt on a pod's queue, once."""
        for attempt in self.of_stage(stage):
            if attempt.number == number:
                return attempt
        made = SimAttempt(UUID(int=self._rng.getrandbits(128), version=4), number, self._plans[stage], pod)
        self.attempts.append(made)
        self.world.watch.submitted(made)
        self.world.clock.after(self._rng.uniform(1, 30), lambda: self._claim(made))
        return made

    def ask_to_stop(self, attempt: SimAttempt) -> None:
        """Set it Cancelling; a living one seals and ends."""
        if not attempt.final:
            attempt.state = "CANCELLING"
            self.world.clock.after(self._rng.uniform(1, 20), lambda: self._stopped(attempt))

    def force(self, attempt: SimAttempt, state: str, why: str) -> None:
        """Set a final state from outside."""
        if not attempt.final:
            attempt.state, attempt.message = state, why
            attempt.dead_at = attempt.dead_at or self.world.clock.now()

    # -- what happens on pods -------------------------------------------------------------------------------------

    def _heartbeat(self, attempt: SimAttempt, at: float, percent: float) -> Heartbeat:
        done, durable = attempt.trained(at), attempt.durable(at)
        return Heartbeat.model_construct(
            stage=attempt.plan.name,
            attempt=attempt.number,
            phase="train",
            iteration=done - 1 if done else None,
            of=attempt.plan.iterations,
            loss=None,
            reward=None,
            sealed=None,
            durable=durable - 1 if durable else None,
            warning=None,
            gpu_percent=percent,
        )

    def _board_hears(self, attempt: SimAttempt) -> bool:
        now = self.world.clock.now()
        down = any(start <= now < end for start, end in self.world.way_down)
        return attempt.pod.reachable and not down

    def _claim(self, attempt: SimAttempt) -> None:
        if attempt.state != "SCHEDULED" or not attempt.pod.living:
            return
        if not (self.worker_online(attempt.pod) and self._board_hears(attempt)):
            self.world.clock.after(AGAIN_S, lambda: self._claim(attempt))
            return
        attempt.base = max(
            (other.durable(self.world.clock.now()) for other in self.of_stage(attempt.plan.name)), default=0
        )
        attempt.state, attempt.started_at = "RUNNING", self.world.clock.now()
        self.world.note(f"attempt {attempt.plan.name} {attempt.number}", f"runs from {attempt.base}")
        work_s = STARTUP_S + (attempt.plan.iterations - attempt.base) * attempt.plan.iteration_s
        ends = attempt.plan.ends
        how = ends[attempt.number - 1] if attempt.number <= len(ends) else "well"
        if how == "well":
            self.world.clock.after(work_s, lambda: self._complete(attempt))
        else:
            self.world.clock.after(self._rng.uniform(0.1, 0.9) * work_s, lambda: self._go_wrong(attempt, how))

    def _complete(self, attempt: SimAttempt) -> None:
        if attempt.final or attempt.dead_at is not None or not attempt.pod.living:
            return
        if not self._board_hears(attempt):
            self.world.clock.after(AGAIN_S, lambda: self._complete(attempt))
            return
        result = StageResult(
            run_id=self.world.run_id,
            stage=attempt.plan.name,  # type: ignore[arg-type]
            attempt=attempt.number,
            outcome="completed",
            last_iteration=attempt.plan.iterations - 1,
            checkpoint_uri=f"sim:{attempt.plan.name}",
        )
        self._end(attempt, "COMPLETED", result.model_dump_json())

    def _go_wrong(self, attempt: SimAttempt, how: str) -> None:
        if attempt.final or attempt.dead_at is not None or not attempt.pod.living:
            return
        now = self.world.clock.now()
        self.world.note(f"attempt {attempt.plan.name} {attempt.number}", how)
        if how == "hangs" and self.world.plan.idle_release:
            attempt.stuck_at = now
        elif how in ("killed", "hangs"):
            attempt.dead_at, attempt.pod.worker_at = now, None
        else:
            attempt.dead_at = now
            words = {"crashed": ("CRASHED", "the stage died"), "failed": ("FAILED", "TrainerFailed: exit code 1")}
            self._report(attempt, *words[how])

    def _report(self, attempt: SimAttempt, state: str, message: str) -> None:
        if attempt.final or not attempt.pod.living:
            return
        if self._board_hears(attempt):
            attempt.state, attempt.message = state, message
        else:
            self.world.clock.after(AGAIN_S, lambda: self._report(attempt, state, message))

    def _stopped(self, attempt: SimAttempt) -> None:
        if attempt.state == "CANCELLING" and attempt.dead_at is None and attempt.started_at is not None:
            if self._board_hears(attempt):
                self._end(attempt, "CANCELLED", "sealed and stopped")
            elif attempt.pod.living:
                self.world.clock.after(AGAIN_S, lambda: self._stopped(attempt))

    def _end(self, attempt: SimAttempt, state: str, message: str) -> None:
        attempt.state, attempt.message, attempt.dead_at = state, message, self.world.clock.now()
        self.world.note(f"attempt {attempt.plan.name} {attempt.number}", state)
