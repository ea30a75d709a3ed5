"""A board in memory, for tests of single steps; the fault suite has one that also fails (`tests/faults`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from plugins.errors import ControlPlaneError
from plugins.lium.offers import Rest
from tasks.board import AttemptRecord, Row, WarmPod
from tasks.stage_contract import Heartbeat, StageOrder


@dataclass
class MemoryBoard:
    """What `tasks/board.py` asks for, kept in lists. `down`: every call but `answers` raises ControlPlaneError."""

    run_id: str = "r"
    down: bool = False
    rows: list[Row] = field(default_factory=list)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    hosts: dict[str, Rest] = field(default_factory=dict)
    warm: dict[str, WarmPod] = field(default_factory=dict)
    records: list[AttemptRecord] = field(default_factory=list)
    beats: dict[UUID, Heartbeat] = field(default_factory=dict)
    queues: set[str] = field(default_factory=set)
    announced: list[str] = field(default_factory=list)
    cancel_asked: bool = False
    worker: bool = True

    def answers(self) -> bool:
        return not self.down

    def cancelling(self) -> bool:
        self._up()
        return self.cancel_asked

    def announce(self, state: str, message: str) -> None:
        self._up()
        if state and state not in self.announced[-1:]:
            self.announced.append(state)

    def attempts(self, stage: str) -> list[AttemptRecord]:
        self._up()
        return sorted(self.records, key=lambda record: -record.number)

    def attempt(self, attempt_id: UUID) -> AttemptRecord:
        self._up()
        return next(record for record in self.records if record.id == attempt_id)

    def heartbeat(self, stage: str, attempt_id: UUID) -> tuple[Heartbeat | None, object]:
        self._up()
        beat = self.beats.get(attempt_id)
        return beat, None if beat is None else id(beat)

    def submit(self, order: StageOrder, pod: str) -> AttemptRecord:
        self._up()
        record = AttemptRecord(UUID(int=order.attempt), order.attempt, pod, "SCHEDULED")
        self.records.append(record)
        return record

    def crash(self, attempt_id: UUID, why: str) -> None:
        self._set(attempt_id, "CRASHED", why)

    def ask_to_stop(self, attempt_id: UUID, why: str) -> None:
        self._set(attempt_id, "CANCELLED", why)

    def set_cancelled(self, attempt_id: UUID, why: str) -> None:
        self._set(attempt_id, "CANCELLED", why)

    def worker_online(self, pod: str) -> bool:
        self._up()
        return self.worker

    def open_queue(self, pod: str) -> None:
        self._up()
        self.queues.add(pod)

    def drop_queue(self, pod: str) -> None:
        self._up()
        self.queues.discard(pod)

    def ledger(self) -> list[Row]:
        self._up()
        return [dict(row) for row in self.rows]

    def write_ledger(self, rows: Sequence[Row]) -> None:
        self._up()
        self.rows = [dict(row) for row in rows]

    def resting(self) -> dict[str, Rest]:
        self._up()
        return dict(self.hosts)

    def rest_host(self, executor_id: str, rest: Rest) -> None:
        self._up()
        self.hosts[executor_id] = rest

    def warm_pods(self) -> list[WarmPod]:
        self._up()
        return list(self.warm.values())

    def hold_warm(self, pod: WarmPod) -> None:
        self._up()
        self.warm[pod.name] = pod

    def claim_warm(self, name: str) -> bool:
        self._up()
        if self.warm[name].claimed_by not in (None, self.run_id):
            return False
        self.warm[name] = replace(self.warm[name], claimed_by=self.run_id)
        return True

    def forget_warm(self, name: str) -> None:
        self._up()
        self.warm.pop(name, None)

    def show_table(self, name: str, rows: Sequence[Row], title: str, *, live: bool = False) -> None:
        self._up()
        self.tables[name] = list(rows)

    def show_markdown(self, name: str, text: str) -> None:
        self._up()

    def _up(self) -> None:
        if self.down:
            raise ControlPlaneError("Prefect does not answer (test)")

    def _set(self, attempt_id: UUID, state: str, why: str) -> None:
        self._up()
        self.records = [replace(r, state=state, message=why) if r.id == attempt_id else r for r in self.records]


def row(name: str, pod_id: str | None, **changes: Any) -> Row:
    """A ledger row as it would be found."""
    from tasks.pod_ledger import EMPTY

    return (
        EMPTY | {"name": name, "id": pod_id, "rented_at": "2030-01-01T00:00:00+00:00", "price_per_hour": 1.0} | changes
    )
