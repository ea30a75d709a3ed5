"""What the rest of trainstack knows about Lium pods: plain frozen values, no SDK object.

The SDK's own models change with its versions and carry whole host descriptions; these rows carry what a run needs
(who it is, how to reach it, what it costs, when the server ends it). Reading them off the SDK happens here, asking
for them in `client.py`.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

RUNNING = "RUNNING"

TERMINAL_STATUSES = frozenset(
    {
        "FAILED",
        "STOPPED",
        "ERROR",
        "TERMINATED",
        "DELETED",
        "REMOVED",
        "CANCELLED",
        "CREATION_FAILED",
        "BROKEN",
        "REBOOT_FAILED",
        "DELETING",
    }
)
"""Statuses from which no pod comes back (the closed set of the SDK's `wait_ready`, lium.io 0.32.0)."""

_SSH_COMMAND = re.compile(r"ssh (?P<user>[\w][\w.-]*)@(?P<host>[A-Za-z0-9][A-Za-z0-9.:-]*)(?: -p (?P<port>\d{1,5}))?")


@dataclass(frozen=True)
class RentOrder:
    """One rent: which host, under which name.

    `name` is unique over the account's life: it is how a lost answer is resolved. `termination_hours` is the
    server-side end that goes with the rent (Lium counts it from the boot). `ceiling`: USD per GPU-hour. `others`: hosts
    of the same fabric, rented whole together with the first as one cluster; Lium takes neither a volume, nor a part of
    a host, nor an end with such a rent.
    """

    name: str
    executor_id: str
    gpu_count: int = 1
    template_id: str | None = None
    volume_id: str | None = None
    termination_hours: int = 1
    ceiling: float | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Intent:
    """A rent request as it is about to be sent: enough to send the very same one again. `at`: epoch seconds.

    executor_id: the host; of a cluster the first of its hosts.
    """

    name: str
    executor_id: str
    key: str
    endpoint: str
    payload: dict[str, Any]
    at: float


@dataclass(frozen=True)
class PodRow:
    """One pod as a listing showed it. Prices are USD per hour for the whole pod; times are aware UTC.

    `ssh_host` is None until the pod can be reached. Several pods rented as one cluster are one row, that of node 0
    (`clusters.py` puts them together): `members` are the further nodes, `price_per_hour` is that of all, `status` the
    worst of theirs, `gpu_count` that of each. `overlay_ip`: where the other nodes reach this one.
    """

    id: str
    name: str
    status: str
    ssh_host: str | None = None
    ssh_port: int = 22
    ssh_user: str = "root"
    price_per_hour: float | None = None
    executor_id: str | None = None
    gpu_name: str | None = None
    gpu_count: int | None = None
    created_at: datetime | None = None
    removal_scheduled_at: datetime | None = None
    phase: str | None = None
    cluster_id: str | None = None
    node: int | None = None
    overlay_ip: str | None = None
    members: tuple["PodRow", ...] = ()

    @property
    def nodes(self) -> tuple["PodRow", ...]:
        """This pod, and the further nodes of its cluster."""
        return (self, *self.members)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all nodes, node 0 first."""
        return tuple(one.id for one in self.nodes)

    @property
    def terminal(self) -> bool:
        """Whether this pod will never run (again)."""
        return self.status in TERMINAL_STATUSES

    @property
    def reachable(self) -> bool:
        """Whether every node runs and says where its SSH server listens."""
        return all(one.status == RUNNING and one.ssh_host is not None for one in self.nodes)


@dataclass(frozen=True)
class PodEvent:
    """One entry of a pod's event log; it can be read after the pod is gone."""

    at: datetime | None
    type: str
    from_status: str | None
    to_status: str | None
    reason: str | None
    detail: str | None
    error: str | None

    @property
    def cause(self) -> str | None:
        """Why the pod changed its status, in Lium's own words, or None if the event does not say."""
        if self.error:
            return self.error
        if self.reason:
            return f"{self.reason}: {self.detail}" if self.detail else self.reason
        return None


@dataclass(frozen=True)
class PodRecord:
    """What one pod was and what it cost (USD, from Lium's ledger); it can be read after the pod is gone."""

    pod_id: str
    name: str
    cost_usd: float
    billed_seconds: float
    gpu_name: str | None
    gpu_count: int | None
    executor_id: str | None
    created_at: datetime | None
    removed_at: datetime | None
    close_reason: str | None


def parse_time(value: Any) -> datetime | None:
    """Read an API time (ISO 8601; without an offset it is UTC). Anything unreadable is None."""
    if not isinstance(value, str) or not value:
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def format_time(value: datetime) -> str:
    """Write a time as the API reads it: UTC with a Z."""
    return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def ssh_target(command: str | None) -> tuple[str, str, int] | None:
    """Read (user, host, port) from `ssh_connect_cmd`; only the exact shape the API sends is taken, else None."""
    match = _SSH_COMMAND.fullmatch(command or "")
    if match is None:
        return None
    return match["user"], match["host"], int(match["port"] or 22)


def row_from_info(info: Any) -> PodRow:
    """Read a row off the SDK's `PodInfo`."""
    executor = info.executor
    user, host, port = ssh_target(info.ssh_cmd) or ("root", None, 22)
    return PodRow(
        id=str(info.id),
        name=str(info.name),
        status=str(info.status or "UNKNOWN").upper(),
        ssh_host=host,
        ssh_port=port,
        ssh_user=user,
        price_per_hour=executor.price_per_hour if executor else None,
        executor_id=executor.id if executor else None,
        gpu_name=executor.machine_name if executor else None,
        gpu_count=info.gpu_count,
        created_at=parse_time(info.created_at),
        removal_scheduled_at=parse_time(info.removal_scheduled_at),
        phase=info.phase,
        cluster_id=getattr(info, "cluster_id", None),
        node=getattr(info, "cluster_node_index", None),
        overlay_ip=getattr(info, "cluster_overlay_ip", None),
    )


def row_from_json(raw: dict[str, Any]) -> PodRow:
    """Read a row off the raw JSON of `GET /pods/{id}`, which the SDK returns as it came."""
    executor = raw.get("executor") or {}
    user, host, port = ssh_target(raw.get("ssh_connect_cmd")) or ("root", None, 22)
    return PodRow(
        id=str(raw["id"]),
        name=str(raw.get("pod_name") or ""),
        status=str(raw.get("status") or "UNKNOWN").upper(),
        ssh_host=host,
        ssh_port=port,
        ssh_user=user,
        price_per_hour=_number(raw.get("price")),
        executor_id=executor.get("id"),
        gpu_name=raw.get("gpu_name") or executor.get("machine_name"),
        gpu_count=int(count) if (count := _number(raw.get("gpu_count"))) is not None else None,
        created_at=parse_time(raw.get("created_at")),
        removal_scheduled_at=parse_time(raw.get("removal_scheduled_at")),
        phase=raw.get("phase"),
        cluster_id=raw.get("cluster_id"),
        node=raw.get("cluster_node_index"),
        overlay_ip=raw.get("cluster_overlay_ip"),
    )


def event_from_json(raw: dict[str, Any]) -> PodEvent:
    """Read one entry of `GET /pods/{id}/events`."""
    return PodEvent(
        at=parse_time(raw.get("created_at")),
        type=str(raw.get("sub_event_type") or raw.get("event_type") or ""),
        from_status=raw.get("from_status"),
        to_status=raw.get("to_status"),
        reason=raw.get("reason"),
        detail=raw.get("detail"),
        error=raw.get("error"),
    )


def record_from_json(raw: dict[str, Any]) -> PodRecord:
    """Read `GET /pods/{id}/record`."""
    return PodRecord(
        pod_id=str(raw.get("pod_id") or ""),
        name=str(raw.get("pod_name") or ""),
        cost_usd=_number(raw.get("total")) or 0.0,
        billed_seconds=_number(raw.get("billed_seconds")) or 0.0,
        gpu_name=raw.get("gpu_name"),
        gpu_count=int(count) if (count := _number(raw.get("gpu_count"))) is not None else None,
        executor_id=raw.get("executor_id"),
        created_at=parse_time(raw.get("created_at")),
        removed_at=parse_time(raw.get("removed_at")),
        close_reason=raw.get("close_reason"),
    )


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None
