"""The list of pods a run has rented, kept as a table artifact: what it asked for and paid, which number comes next.

A row is written before the rent is sent (state INTENT, with the request itself), so that a process that dies in between
leaves behind what the next one must ask about. Lium forgets a pod that ended; the ledger is how `status` can still say
what it cost.

    INTENT -> REFUSED                       nothing was rented
    INTENT -> PENDING, RUNNING, ... -> ENDED | WARM (handed to the next run)

Several nodes rented as one cluster are one row: `id` is node 0's, `nodes` has the ids of all, `executors` their hosts.
"""

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime

from prefect.client.orchestration import SyncPrefectClient

from plugins.errors import ControlPlaneError
from plugins.lium.budget import Charge
from plugins.lium.client import LiumAccount
from plugins.lium.offers import Offer
from plugins.lium.pods import Intent, PodRow
from tasks import artifacts
from tasks.board import Board, Row
from tasks.stage_contract import artifact_key

INTENT, REFUSED, ENDED, WARM = "INTENT", "REFUSED", "ENDED", "WARM"
EMPTY: Row = {
    "name": "",
    "id": None,
    "executor": None,
    "host": None,
    "tier": None,
    "gpu": "",
    "price_per_hour": None,
    "state": "",
    "fit": False,
    "claimed": False,
    "rented_at": None,
    "running_at": None,
    "ready_at": None,
    "ended_at": None,
    "cost_usd": None,
    "why": "",
    "intent": None,
    "cluster": None,
    "nodes": [],
    "executors": [],
}
"""Every column of the ledger; a row that an earlier version wrote lacks some."""


def pod_number(name: str) -> int:
    """The number at the end of a pod's name, 0 when there is none."""
    tail = name.rpartition("-a")[2]
    return int(tail) if tail.isdigit() else 0


def gpu_words(count: int | None, name: str | None, nodes: int = 1) -> str:
    """A pod's GPUs in words: 8x NVIDIA H200, and for a cluster how many nodes have them."""
    return f"{f'{nodes} nodes of ' if nodes > 1 else ''}{count or '?'}x {name or '?'}"


def read_ledger(client: SyncPrefectClient, run_id: str) -> list[Row]:
    """The ledger of any run, for people who look at it."""
    found = artifacts.rows_of(artifacts.newest(client, artifact_key(run_id, "pods")))
    return [EMPTY | row for row in found]


def was_lost(row: Row) -> bool:
    """Whether a pod that could take stages ended before its time; one that never got ready was no loss."""
    return bool(row["why"]) and row["ended_at"] is not None and row["ready_at"] is not None


def ids_of(row: Row) -> list[str]:
    """Ids of the pods behind a row: one, or the nodes of a cluster."""
    return list(row["nodes"]) or [row["id"]]


def charge_of(row: Row) -> Charge | None:
    """What a ledger's row costs; None for a pod that was never rented."""
    if row["id"] is None:
        return None
    ended = row["ended_at"]
    return Charge(
        price_per_hour=row["price_per_hour"] or 0.0,
        since=_epoch(row["rented_at"]),
        until=_epoch(ended) if ended else None,
        cost=row["cost_usd"] if ended else None,
    )


class PodLedger:
    """Reads and writes the ledger of one run. The rows last read or written are at hand while Prefect is down."""

    def __init__(self, board: Board, now: Callable[[], float]) -> None:
        self._board, self._now = board, now
        self._rows: list[Row] = []

    def rows(self) -> list[Row]:
        """All rows, oldest first; those last known when Prefect does not answer."""
        with suppress(ControlPlaneError):
            self._fresh()
        return [dict(row) for row in self._rows]

    def names(self) -> set[str]:
        """Names that this run ever intended to rent, less those handed on. Raises ControlPlaneError."""
        self._fresh()
        return {row["name"] for row in self._rows} - self.handed_on()

    def known(self) -> list[Row]:
        """The rows as this process last saw them, without asking anybody."""
        return self._rows

    def intends(self, intent: Intent, offer: Offer) -> None:
        """Write down what is about to be rented. Raises ControlPlaneError: then nothing may be rented."""
        row = {
            **EMPTY,
            "name": intent.name,
            "executor": intent.executor_id,
            "host": offer.host.huid,
            "tier": offer.host.tier,
            "gpu": gpu_words(offer.gpu_count, offer.host.gpu, len(offer.hosts)),
            "executors": [host.executor_id for host in offer.hosts] if offer.others else [],
            "price_per_hour": offer.price_per_hour,
            "state": INTENT,
            "rented_at": self._time(intent.at),
            "intent": asdict(intent),
        }
        rows = [*self._fresh(), row]
        self._board.write_ledger(rows)
        self._rows = rows  # not before: an intent that is not written down must never be asked about, let alone sent

    def refresh(self) -> None:
        """Read the ledger now. Raises ControlPlaneError: whoever rents next must know what was rented before."""
        self._fresh()

    def unsettled(self) -> list[Intent]:
        """Rents of which it is not known what became of them."""
        return [Intent(**row["intent"]) for row in self.rows() if row["intent"] and row["state"] == INTENT]

    def refused(self, name: str, why: str) -> None:
        """Note that a rent made no pod."""
        self._change(name, state=REFUSED, ended_at=self._time(), cost_usd=0.0, why=why, intent=None)

    def rented(self, pod: PodRow) -> None:
        """Note a pod that is ours, with what Lium says of it now."""
        known: Row = {"id": pod.id, "state": pod.status, "intent": None}
        if pod.price_per_hour is not None:
            known["price_per_hour"] = pod.price_per_hour
        if pod.members:
            known |= {"cluster": pod.cluster_id, "nodes": list(pod.ids)}
        if pod.status == "RUNNING" and not any(row["running_at"] for row in self._rows if row["name"] == pod.name):
            known["running_at"] = self._time()
        if any(row["name"] == pod.name and row["ended_at"] is None for row in self._fresh()):
            self._change(pod.name, **known, **self._rented_later(pod))
        else:
            self._write([*self._rows, self._found(pod)])

    def passed_preflight(self, name: str) -> None:
        """Note that the pod was checked and is what was paid for."""
        self._change(name, fit=True)

    def ready(self, name: str) -> None:
        """Note that the pod can take stages: its worker is online."""
        if not any(row["ready_at"] for row in self.open() if row["name"] == name):
            self._change(name, ready_at=self._time())

    def fit(self, name: str) -> bool:
        """Whether the pod was checked already, by this run."""
        return any(row["name"] == name and row["fit"] for row in self.open())

    def handed_on(self) -> set[str]:
        """Names of pods that were left warm and are not this run's any more, unless it claimed them back."""
        rows = self.rows()
        return {row["name"] for row in rows if row["state"] == WARM} - {
            row["name"] for row in rows if not row["ended_at"]
        }

    def open(self) -> list[Row]:
        """Rows of pods that may still live and cost money."""
        return [row for row in self.rows() if row["id"] is not None and row["ended_at"] is None]

    def ended(self, names: Collection[str], account: LiumAccount, why: str = "", state: str = ENDED) -> None:
        """Note the end of pods that are gone (or handed on), with the bill where Lium gives one."""
        rows = self._fresh()
        for row in rows:
            if row["name"] in names and row["ended_at"] is None and row["id"] is not None:
                self._close(row, account, why, state)
        self._write(rows)

    def charges(self) -> list[Charge]:
        """What this run pays for, as far as this process knows."""
        return [charge for row in self._rows if (charge := charge_of(row)) is not None]

    def next_number(self, listed: Iterable[PodRow] = ()) -> int:
        """Number for the next pod: one more than the highest in the ledger and in Lium's listing of the run's pods."""
        names = [row["name"] for row in self.rows()] + [pod.name for pod in listed]
        return 1 + max(map(pod_number, names), default=0)

    def _rented_later(self, pod: PodRow) -> Row:
        """A rent whose outcome was asked for later may have happened only then: it costs from that moment."""
        row = next(row for row in self._rows if row["name"] == pod.name and row["ended_at"] is None)
        if row["state"] != INTENT or pod.created_at is None or pod.created_at.timestamp() <= _epoch(row["rented_at"]):
            return {}
        return {"rented_at": pod.created_at.isoformat()}

    def _close(self, row: Row, account: LiumAccount, why: str, state: str) -> None:
        try:
            records = [account.record(one) for one in ids_of(row)] if state == ENDED else []
        except ControlPlaneError:
            records = []  # then our own estimate stands
        charge = charge_of(row)
        assert charge is not None
        bills = [record for record in records if record and record.removed_at]
        whole = bool(bills) and len(bills) == len(records)
        ends = [record.removed_at for record in bills if record.removed_at] if whole else []
        ended = max(ends, default=datetime.fromtimestamp(self._now(), UTC))
        estimate = charge.usd(ended.timestamp())
        claimed = row["claimed"]  # the bill of a pod taken over warm is partly another run's
        row["ended_at"] = ended.isoformat()
        row["cost_usd"] = sum(bill.cost_usd for bill in bills) if whole and not claimed else round(estimate, 6)
        row["state"], row["why"] = state, why or row["why"]

    def _found(self, pod: PodRow) -> Row:
        """The row of a pod that was not rented by this run's intent: an adopted stray, or one taken over warm."""
        return {
            **EMPTY,
            "name": pod.name,
            "id": pod.id,
            "executor": pod.executor_id,
            "gpu": gpu_words(pod.gpu_count, pod.gpu_name, len(pod.nodes)),
            "cluster": pod.cluster_id,
            "nodes": list(pod.ids) if pod.members else [],
            "executors": [node.executor_id for node in pod.nodes] if pod.members else [],
            "price_per_hour": pod.price_per_hour,
            "state": pod.status,
            "rented_at": self._time(),
            "claimed": True,
        }

    def _change(self, name: str, **changes: object) -> None:
        rows = self._fresh()
        for row in rows:
            if row["name"] == name and row["ended_at"] is None:
                row |= changes
        self._write(rows)

    def _fresh(self) -> list[Row]:
        """The rows as they are written now. Raises ControlPlaneError."""
        self._rows = [EMPTY | row for row in self._board.ledger()]
        return self._rows

    def _write(self, rows: list[Row]) -> None:
        self._rows = rows  # what is known counts also when it cannot be written down
        self._board.write_ledger(rows)

    def _time(self, at: float | None = None) -> str:
        return datetime.fromtimestamp(self._now() if at is None else at, UTC).isoformat()


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
