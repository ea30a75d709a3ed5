"""What the emulator remembers: accounts, pods, volumes, templates, keys, answered rents. One JSON file, replaced whole.

Each API key is an account of its own (so tests do not see each other's pods); machines are shared by all. The file is
written before a changing request is answered, hence a killed emulator forgets nothing it has promised. Processes are
not state: after a restart `pods.py` boots again what was running.
"""

import fcntl
import hashlib
import json
import os
import uuid
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar

from plugins.errors import UserError

KEPT_REMOVED_PODS = 500  # records of removed pods stay readable; the oldest go
START_BALANCE_USD = 1000.0
POOR_BALANCE_USD = 0.01
T = TypeVar("T")


def iso(at_s: float | None) -> str | None:
    """A time in epoch seconds as the API writes it."""
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_iso(text: str) -> float:
    """Epoch seconds of an ISO time; one without a zone is UTC, as on the real server. Raises ValueError."""
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


@dataclass
class Account:
    """One API key. `spent_usd` counts removed pods only; running ones are added when somebody asks."""

    id: str
    api_key_id: str
    deposited_usd: float = START_BALANCE_USD
    spent_usd: float = 0.0


@dataclass
class Event:
    """One line of a pod's history; the reason of an end is here even when the pod is gone."""

    at_s: float
    kind: str
    from_status: str | None
    to_status: str | None
    reason: str | None = None
    detail: str | None = None
    error: str | None = None


@dataclass
class Pod:
    """A rented pod, kept after its end for `events`, `record` and the bill. Times are epoch seconds, prices USD/h.

    `billing_scale`: how many seconds are billed for one. `network`: "up", or how new SSH connections fail ("refuse",
    "hang"); `network_timed` says that the machine's own loss of it is over and done with. `cluster_id`: the pods rented
    together with it, each with a `cluster_node_index` from 0.
    """

    id: str
    account: str
    name: str
    executor_id: str
    gpu_indices: list[int]
    price_per_gpu: float
    template_id: str
    public_keys: list[str]
    created_at_s: float
    updated_at_s: float
    status: str = "PENDING"
    phase: str | None = "queued"
    volume_id: str | None = None
    termination_hours: int | None = None
    removal_at_s: float | None = None
    billed_from_s: float | None = None
    removed_at_s: float | None = None
    close_reason: str | None = None
    ssh_port: int | None = None
    image: str = ""
    billing_scale: float = 1.0
    listed_from_s: float | None = None
    network: str = "up"
    network_timed: bool = False
    gpu_utilization: int = 85
    gpu_memory_used_mib: int = 4
    cluster_id: str | None = None
    cluster_node_index: int | None = None
    events: list[Event] = field(default_factory=list)

    @property
    def removed(self) -> bool:
        """Whether the pod is gone for good."""
        return self.removed_at_s is not None

    @property
    def price_per_hour(self) -> float:
        """What all its GPUs cost together."""
        return round(self.price_per_gpu * len(self.gpu_indices), 6)

    def move(self, status: str, now_s: float, *, reason: str | None = None, error: str | None = None) -> None:
        """Change the status and write the event of it."""
        kind = f"pod-lifecycle.{status.lower()}"
        self.events.append(Event(now_s, kind, self.status if self.events else None, status, reason=reason, error=error))
        self.status, self.updated_at_s = status, now_s


@dataclass
class Volume:
    """A volume; its files are in `<state>/volumes/<id>`."""

    id: str
    account: str
    name: str
    description: str
    created_at_s: float
    updated_at_s: float


@dataclass
class Answered:
    """The first answer to a rent with an idempotency key; `body` None: it is still being carried out."""

    request_hash: str
    at_s: float
    status: int = 0
    body: dict[str, Any] | None = None


@dataclass
class State:
    """Everything in the file. Templates and SSH keys are kept as the API's own rows, with an `account` key."""

    accounts: dict[str, Account] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    templates: dict[str, dict[str, Any]] = field(default_factory=dict)
    ssh_keys: list[dict[str, Any]] = field(default_factory=list)
    answered: dict[str, Answered] = field(default_factory=dict)

    def account_of(self, api_key: str) -> Account:
        """The account of a key, opened at its first use (a poor one for a key that begins so).

        The key itself is not stored.
        """
        digest = hashlib.sha256(api_key.encode()).hexdigest()
        account_id = str(uuid.UUID(digest[:32]))
        usd = POOR_BALANCE_USD if api_key.startswith("poor") else START_BALANCE_USD
        return self.accounts.setdefault(account_id, Account(account_id, f"key-{digest[-8:]}", deposited_usd=usd))

    def present(self, account: str | None = None) -> list[Pod]:
        """Pods that are listed: not removed, oldest first."""
        return [pod for pod in self.pods.values() if not pod.removed and account in (None, pod.account)]

    def cluster(self, account: str, cluster_id: str) -> list[Pod]:
        """The pods of a cluster that are not removed, node 0 first."""
        found = [pod for pod in self.present(account) if pod.cluster_id == cluster_id]
        return sorted(found, key=lambda pod: pod.cluster_node_index or 0)


class StateFile:
    """The file and its lock; two emulators on one folder would rent the same GPUs twice."""

    def __init__(self, folder: Path) -> None:
        """Create the folder, take the lock, read what is there. Raises UserError."""
        self.folder = folder
        self.path = folder / "state.json"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _lock(folder / "lock")
            self.state = _load(json.loads(self.path.read_text())) if self.path.exists() else State()
        except OSError as error:
            raise UserError(f"cannot use {folder} as the emulator's state folder: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{self.path} is not the emulator's state ({error}); move it away or give another --state"
            ) from error

    def save(self) -> None:
        """Replace the file by what is in memory."""
        ended = [pod for pod in self.state.pods.values() if pod.removed]
        for pod in ended[: max(0, len(ended) - KEPT_REMOVED_PODS)]:
            del self.state.pods[pod.id]
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self.state)))
        part.chmod(0o600)
        part.replace(self.path)

    def close(self) -> None:
        """Give the lock back."""
        self._lock.close()


def _lock(path: Path) -> IO[str]:
    handle = path.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise UserError(f"another emulator uses {path.parent}; stop it or give another --state") from error
    os.set_inheritable(handle.fileno(), False)
    return handle


def _load(raw: dict[str, Any]) -> State:
    state = State(templates=raw["templates"], ssh_keys=raw["ssh_keys"])
    state.accounts = {key: _row(Account, row) for key, row in raw["accounts"].items()}
    state.volumes = {key: _row(Volume, row) for key, row in raw["volumes"].items()}
    state.answered = {key: _row(Answered, row) for key, row in raw["answered"].items() if row["body"] is not None}
    for key, row in raw["pods"].items():
        state.pods[key] = _row(Pod, row | {"events": [_row(Event, event) for event in row["events"]]})
    return state


def _row(kind: type[T], row: dict[str, Any]) -> T:
    """A dataclass from its JSON; a field of another version of this file is left out."""
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in row.items() if name in known})
