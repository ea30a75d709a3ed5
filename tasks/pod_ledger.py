"""The list of pods a run has rented, kept as a table artifact: what it paid, and which number the next pod gets.

Lium forgets the row of a pod that ended; the ledger is how `status` can still say what it cost.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient

from plugins.lium.client import LiumAccount
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

    def close(self, account: LiumAccount) -> float:
        """Write end and cost of every pod that is given back or was lost; returns the sum of all costs in USD.

        A pod that Lium still lists stays open, and so does one whose record cannot be read now.
        """
        rows = read_ledger(self.client, self.run_id)
        still = {pod.id for pod in account.pods() if not pod.terminal}
        for row in rows:
            if row["ended_at"] is not None or row["id"] in still:
                continue
            record = account.record(row["id"])
            ended = record.removed_at if record else None
            row["ended_at"] = (ended or datetime.now(UTC)).isoformat()
            row["cost_usd"] = record.cost_usd if record else None
            row["state"] = "ENDED"
        self._write(rows)
        return float(sum(row["cost_usd"] or 0.0 for row in rows))

    def next_number(self, listed: Iterable[PodRow] = ()) -> int:
        """Number for the next pod: one more than the highest in the ledger and in Lium's listing of the run's pods."""
        names = [row["name"] for row in read_ledger(self.client, self.run_id)] + [pod.name for pod in listed]
        return 1 + max(map(pod_number, names), default=0)

    def _write(self, rows: list[artifacts.Row]) -> None:
        artifacts.put_table(self.client, self.flow_run_id, ledger_key(self.run_id), rows, f"Pods of {self.run_id}")
