"""The list of pods a run has rented, kept as a table artifact: what it paid, and which number the next pod gets.

Lium forgets the row of a pod that ended; the ledger is how `status` can still say what it cost.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient

from plugins.lium.pods import PodRow
from tasks import artifacts
from tasks.stage_contract import artifact_key


def ledger_key(run_id: str) -> str:
    """Artifact key of a run's ledger."""
    return artifact_key(run_id, "pods")


def pod_number(name: str) -> int:
    """The number at the end of a pod's name, 0 when there is none."""
    tail = name.rpartition("-a")[2]
    return int(tail) if tail.isdigit() else 0


def read_ledger(client: SyncPrefectClient, run_id: str) -> list[artifacts.Row]:
    """Rows of the ledger, oldest pod first: name, id, executor, gpu, price_per_hour, state, rented_at, ended_at,
    cost_usd.
    """
    return artifacts.rows_of(artifacts.newest(client, ledger_key(run_id)))


@dataclass
class PodLedger:
    """Writes the ledger of one run; every write is a new version, so the UI shows its history."""

    client: SyncPrefectClient
    run_id: str
    flow_run_id: UUID

    def rented(self, pod: PodRow) -> None:
        """Note a pod as soon as it is ours."""
        row = {
            "name": pod.name,
            "id": pod.id,
            "executor": pod.executor_id,
            "gpu": f"{pod.gpu_count}x {pod.gpu_name}",
            "price_per_hour": pod.price_per_hour,
            "state": pod.status,
            "rented_at": (pod.created_at or datetime.now(UTC)).isoformat(),
            "ended_at": None,
            "cost_usd": None,
        }
        rows = read_ledger(self.client, self.run_id)
        self._write([old for old in rows if old["id"] != pod.id] + [row])

    def ended(self, pod_id: str, cost_usd: float | None) -> None:
        """Note the end of a pod and what it cost in USD."""
        rows = read_ledger(self.client, self.run_id)
        for row in rows:
            if row["id"] == pod_id and row["ended_at"] is None:
                row.update(state="RELEASED", ended_at=datetime.now(UTC).isoformat(), cost_usd=cost_usd)
        self._write(rows)

    def next_number(self) -> int:
        """Number for the next pod: one more than the highest ever used."""
        return 1 + max((pod_number(row["name"]) for row in read_ledger(self.client, self.run_id)), default=0)

    def _write(self, rows: list[artifacts.Row]) -> None:
        artifacts.put_table(self.client, self.flow_run_id, ledger_key(self.run_id), rows, f"Pods of {self.run_id}")
