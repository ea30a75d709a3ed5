"""The board of the run as one process sees it: `tasks/board.py`'s methods over a memory that survives the process.

It can be down for a while, and lose the answer to what it carried out. Where it stands in the real system is Prefect.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar
from uuid import UUID

from plugins.errors import ControlPlaneError
from plugins.lium.offers import Rest
from tasks.board import AttemptRecord, Row, WarmPod
from tasks.stage_contract import Heartbeat, StageOrder
from tests.faults.machines import SimPod
from tests.faults.sim_stage import SimAttempt
from tests.faults.virtual_clock import Process
from tests.faults.world import World

T = TypeVar("T")


class SimBoard:
    """One process's view of the board."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process, self._stages = world, process, world.stages

    def answers(self) -> bool:
        """Whether the board answers now."""
        try:
            self._ask("answers", lambda: None)
        except ControlPlaneError:
            return False
        return True

    def cancelling(self) -> bool:
        """Whether this start of the pipeline is being cancelled."""
        return self._ask("cancelling", lambda: self._stages.cancelling, quiet=True)

    def announce(self, state: str, message: str) -> None:
        """Name the running state."""
        self._ask(f"announce {state}", lambda: None)

    def attempts(self, stage: str) -> list[AttemptRecord]:
        """A stage's attempts, newest first."""
        return self._ask("attempts", lambda: [_record(found) for found in self._stages.of_stage(stage)])

    def attempt(self, attempt_id: UUID) -> AttemptRecord:
        """One attempt."""
        return self._ask("attempt", lambda: _record(self._stages.by_id(attempt_id)), quiet=True)

    def heartbeat(self, stage: str, attempt_id: UUID) -> tuple[Heartbeat | None, object]:
        """The newest heartbeat and its stamp."""
        return self._ask("heartbeat", lambda: self._stages.beat(self._stages.by_id(attempt_id)), quiet=True)

    def submit(self, order: StageOrder, pod: str) -> AttemptRecord:
        """Create an attempt."""
        return self._ask(
            f"submit {order.stage} {order.attempt} to {pod}",
            lambda: _record(self._stages.submit(order.stage, order.attempt, self._pod(pod))),
        )

    def crash(self, attempt_id: UUID, why: str) -> None:
        """Set an attempt Crashed."""
        self._ask("crash attempt", lambda: self._force(attempt_id, "CRASHED", why))

    def ask_to_stop(self, attempt_id: UUID, why: str) -> None:
        """Set an attempt Cancelling."""

        def effect() -> None:
            attempt = self._stages.by_id(attempt_id)
            self._world.watch.attempt_ended_by_us(attempt, "asked to stop")
            self._stages.ask_to_stop(attempt)

        self._ask("ask to stop", effect)

    def set_cancelled(self, attempt_id: UUID, why: str) -> None:
        """Set an attempt Cancelled."""
        self._ask("set cancelled", lambda: self._force(attempt_id, "CANCELLED", why))

    def worker_online(self, pod: str) -> bool:
        """Whether the pod's worker is online."""
        return self._ask("worker online", lambda: self._stages.worker_online(self._find(pod)), quiet=True)

    def open_queue(self, pod: str) -> None:
        """Make the pod's queue."""
        self._ask(f"open queue {pod}", lambda: self._stages.queues.add(pod))

    def drop_queue(self, pod: str) -> None:
        """Delete the pod's queue; its attempt cannot reach the board any more."""

        def effect() -> None:
            found = self._find(pod)
            if found is not None and found.living:
                self._world.watch.ended_by_us(found, "queue dropped")
            self._stages.queues.discard(pod)

        self._ask(f"drop queue {pod}", effect)

    def ledger(self) -> list[Row]:
        """Rows of the ledger."""
        return self._ask("ledger", lambda: [dict(row) for row in self._stages.ledger], quiet=True)

    def write_ledger(self, rows: Sequence[Row]) -> None:
        """Replace the ledger."""
        kept = [dict(row) for row in rows]

        def effect() -> None:
            self._stages.ledger = kept

        self._ask("write ledger", effect)

    def resting(self) -> dict[str, Rest]:
        """Hosts that are left out."""
        return self._ask("resting", lambda: dict(self._stages.resting))

    def rest_host(self, executor_id: str, rest: Rest) -> None:
        """Leave a host out."""
        self._ask(f"rest {executor_id[:4]}", lambda: self._stages.resting.__setitem__(executor_id, rest))

    def warm_pods(self) -> list[WarmPod]:
        """Pods that wait for a next run."""
        return self._ask("warm pods", lambda: list(self._stages.warm.values()))

    def hold_warm(self, pod: WarmPod) -> None:
        """Offer a pod to the next run."""

        def effect() -> None:
            self._stages.warm[pod.name] = pod
            self._world.watch.handed_on(self._world.market.pods[pod.pod_id], pod.until)

        self._ask("hold warm", effect)

    def claim_warm(self, name: str) -> bool:
        """Take a warm pod."""

        def effect() -> bool:
            pod = self._stages.warm.get(name)
            if pod is None or pod.claimed_by not in (None, self._world.run_id):
                return False
            if pod.claimed_by is None:
                self._world.watch.claimed(self._world.market.pods[pod.pod_id])
            self._stages.warm[name] = replace(pod, claimed_by=self._world.run_id)
            return True

        return self._ask("claim warm", effect)

    def forget_warm(self, name: str) -> None:
        """The pod is gone."""
        self._ask("forget warm", lambda: self._stages.warm.pop(name, None), quiet=True)

    def show_table(self, name: str, rows: Sequence[Row], title: str, *, live: bool = False) -> None:
        """A table artifact."""
        self._show(name)

    def show_markdown(self, name: str, text: str) -> None:
        """A markdown artifact."""
        self._show(name)

    # -- steps ----------------------------------------------------------------------------------------------------

    def _show(self, name: str) -> None:
        shown = self._stages.shown
        self._ask("show", lambda: shown.__setitem__(name, shown.get(name, 0) + 1), quiet=True)

    def _force(self, attempt_id: UUID, state: str, why: str) -> None:
        attempt = self._stages.by_id(attempt_id)
        self._world.watch.attempt_ended_by_us(attempt, f"set {state}")
        self._stages.force(attempt, state, why)

    def _find(self, name: str) -> SimPod | None:
        found = [pod for pod in self._world.market.pods.values() if pod.name == name]
        return max(found, key=lambda pod: (pod.living, pod.rented_at), default=None)

    def _pod(self, name: str) -> SimPod:
        found = self._find(name)
        assert found is not None, f"an attempt was submitted to {name}, which was never rented"
        return found

    def _ask(self, what: str, effect: Callable[[], T], *, quiet: bool = False) -> T:
        """Do it, unless the board is down. quiet: asked all the time, so it takes none and is not in the journal."""
        process, world = self._process, self._world
        call = process.enter()
        trouble = world.board_weather.meets(())
        if not quiet:
            process.sleep(0.02)
        if trouble is not None and trouble.kind == "down":
            process.sleep(world.rng.uniform(0.5, 4))
            process.leave(call)
            world.note(what, "the board is down")
            raise ControlPlaneError(f"Prefect does not answer ({what})")
        result = effect()
        process.leave(call)
        if trouble is not None and trouble.done:
            world.note(what, "done, answer lost")
            raise ControlPlaneError(f"Prefect does not answer ({what})")
        if not quiet:
            world.note(what, "ok")
        return result


def _record(attempt: SimAttempt) -> AttemptRecord:
    return AttemptRecord(attempt.id, attempt.number, attempt.pod.name, attempt.state, attempt.message)
