"""What a run writes down in Prefect and reads back: attempts, heartbeats, pods, hosts that rest, tables for people.

The steering code (`chain.py`, `provision_pod.py`, `run_stage.py`, ...) knows a `Board` and not Prefect, so that the
fault suite can run the same code on another one (`tests/faults`). `prefect_board.py` is the real one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from plugins.lium.offers import Rest
from tasks.stage_contract import Heartbeat, StageOrder

Row = dict[str, Any]
FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
UNCLAIMED = frozenset({"SCHEDULED", "PENDING"})


@dataclass(frozen=True)
class AttemptRecord:
    """One attempt of a stage as Prefect has it. state: type of the flow run's state, in capitals."""

    id: UUID
    number: int
    pod: str | None
    state: str
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether the attempt will not go on."""
        return self.state in FINAL


@dataclass(frozen=True)
class WarmPod:
    """A pod that a completed run left for the next one. Prices in USD per hour; until: epoch seconds.

    start: what it was started with (`warm_pods.start_of`). claimed_by: run that took it, None while it waits.
    """

    name: str
    pod_id: str
    gpu: str
    gpu_count: int
    start: str
    price_per_hour: float
    until: float
    claimed_by: str | None = None


class Board(Protocol):
    """One run's record. Every method raises ControlPlaneError when Prefect does not answer."""

    def answers(self) -> bool:
        """Whether Prefect answers now, asked without patience."""
        ...

    def cancelling(self) -> bool:
        """Whether the pipeline's own flow run is being cancelled."""
        ...

    def announce(self, state: str, message: str) -> None:
        """Show what the pipeline waits for as the name of its running state; '' is plain Running."""
        ...

    def attempts(self, stage: str) -> list[AttemptRecord]:
        """A stage's attempts, newest first."""
        ...

    def attempt(self, attempt_id: UUID) -> AttemptRecord:
        """One attempt as it is now."""
        ...

    def heartbeat(self, stage: str, attempt_id: UUID) -> tuple[Heartbeat | None, object]:
        """The newest heartbeat of an attempt and a stamp that changes with every beat."""
        ...

    def submit(self, order: StageOrder, pod: str) -> AttemptRecord:
        """Create the attempt on the pod's queue; the same attempt is never created twice."""
        ...

    def crash(self, attempt_id: UUID, why: str) -> None:
        """Set an attempt Crashed by force: nobody is left who could report for it."""
        ...

    def ask_to_stop(self, attempt_id: UUID, why: str) -> None:
        """Set an attempt Cancelling."""
        ...

    def set_cancelled(self, attempt_id: UUID, why: str) -> None:
        """Set an attempt Cancelled by force."""
        ...

    def worker_online(self, pod: str) -> bool:
        """Whether the pod's Prefect worker is online."""
        ...

    def open_queue(self, pod: str) -> None:
        """Make the pod's work queue; what the gateway lets in is who has one."""
        ...

    def drop_queue(self, pod: str) -> None:
        """Delete the pod's work queue; from here on the gateway refuses its token."""
        ...

    def ledger(self) -> list[Row]:
        """Rows of the pods this run rented, oldest first (`pod_ledger.py`)."""
        ...

    def write_ledger(self, rows: Sequence[Row]) -> None:
        """Replace the ledger."""
        ...

    def resting(self) -> dict[str, Rest]:
        """Hosts that are left out, of all runs, by executor id."""
        ...

    def rest_host(self, executor_id: str, rest: Rest) -> None:
        """Leave a host out until `rest.until`, in this run and the next."""
        ...

    def warm_pods(self) -> list[WarmPod]:
        """Pods that are held warm or were claimed, of all runs."""
        ...

    def hold_warm(self, pod: WarmPod) -> None:
        """Offer a pod to the next run."""
        ...

    def claim_warm(self, name: str) -> bool:
        """Take a warm pod for this run; False when another run was faster. Taking it twice is taking it once."""
        ...

    def forget_warm(self, name: str) -> None:
        """The pod is gone: take offer and claim away."""
        ...

    def show_table(self, name: str, rows: Sequence[Row], title: str, *, live: bool = False) -> None:
        """A table artifact `<run_id>-<name>`; `live` replaces the one shown before instead of adding a version."""
        ...

    def show_markdown(self, name: str, text: str) -> None:
        """A markdown artifact `<run_id>-<name>`."""
        ...
