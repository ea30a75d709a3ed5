"""What one node of Ray is started with, head or worker, and the small file by which others find it.

<state dir>/                 0700
  ray.json                   written when the node is up (the head: its jobs API answers), removed when it ends
  ray-token                  0600, new for every head; a worker's is the head's
  ray-start.log              what `ray start` said
  ray-logs/                  the logs of the last head that ended (they lie in Ray's temporary folder while it
  runs) head.lock                  held while a head of this state dir lives
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
LAPTOP_STORE_BYTES = 100 << 20
LOOPBACK = "127.0.0.1"
TOKEN = "TRAINSTACK_RAY_TOKEN"  # noqa: S105 - a name, not a secret
"""Environment variable by which a worker is given the head's secret."""

_TEMP_PREFIX = "ts-ray-"
_SHORT = 24  # Ray puts Unix sockets about 75 characters below its folder; the kernel takes 107 in all


@dataclass(frozen=True)
class HeadSettings:
    """How a node is started.

    num_gpus None: Ray looks itself; store_bytes None: small without GPUs, Ray's own default (30% of memory) with them.
    node_ip: the address at which other nodes reach this one; head: `host:port` of the head that a worker joins, None
    for the head itself. python: starts Ray, and so runs what runs in it: actors need the one that has slime. or_own:
    where that one has no Ray, or `cwd` is not there, do without.
    """

    state: Path
    num_cpus: int
    num_gpus: int | None = None
    cwd: Path | None = None
    store_bytes: int | None = None
    start_timeout_s: float = 90.0
    python: str = sys.executable
    or_own: bool = False
    node_ip: str = LOOPBACK
    node_name: str | None = None
    head: str | None = None


@dataclass(frozen=True)
class HeadInfo:
    """Contents of ray.json. dashboard: URL of the jobs API, on loopback, '' on a worker; address: of the head's GCS.

    head_pid, guard_pid: the two processes of this node that stand over Ray's own.
    """

    dashboard: str
    address: str
    token_file: str
    log_dir: str
    temp_dir: str
    head_pid: int
    guard_pid: int


def info_file(state: Path) -> Path:
    """Where `HeadInfo` of a state dir stands."""
    return state / "ray.json"


def read_info(state: Path) -> HeadInfo | None:
    """The head that is said to run, or None: it is not ready, or ended."""
    try:
        return HeadInfo(**json.loads(info_file(state).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_info(state: Path, info: HeadInfo) -> None:
    """Publish a ready head, all at once."""
    temporary = state / ".ray.json.new"
    temporary.write_text(json.dumps(asdict(info), indent=1) + "\n")
    temporary.replace(info_file(state))


def token_file(state: Path) -> Path:
    """Where the secret of the state dir's head stands."""
    return state / "ray-token"


def new_token(state: Path) -> Path:
    """Write the secret that every call to this Ray must carry: the one given in `TOKEN`, else a fresh one."""
    file = token_file(state)
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(os.environ.get(TOKEN) or secrets.token_hex(32))
    return file


def new_temp_dir() -> Path:
    """A folder of its own for this head with a name short enough for Ray's sockets."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir=base if len(base) <= _SHORT else "/tmp"))  # noqa: S108


def forget(state: Path) -> None:
    """Remove what a killed guard left: ray.json and the folder it names, if `new_temp_dir` can have made that."""
    if old := read_info(state):
        temp_dir = Path(old.temp_dir)
        if temp_dir.name.startswith(_TEMP_PREFIX) and temp_dir.is_dir() and temp_dir.stat().st_uid == os.getuid():
            shutil.rmtree(temp_dir, ignore_errors=True)
        info_file(state).unlink(missing_ok=True)


def ray_environment(token: Path, node_ip: str = LOOPBACK) -> dict[str, str]:
    """The caller's environment, which every job inherits, with what Ray needs; no other Ray is looked for."""
    left_out = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", TOKEN)
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    paths = [str(HOME), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    return env | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # The only way to keep 127.0.0.1: otherwise `ray start` replaces it by the machine's outer address and every
        # service listens on all interfaces (ray/_private/services.py, resolve_ip_for_localhost).
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0" if node_ip == LOOPBACK else "1",
        "RAY_START_HOOK": "plugins.rayjobs.start_hook.apply",
    }


def ray_start_argv(settings: HeadSettings, temp_dir: Path) -> list[str]:
    """Command line of `ray start`: every port free, loopback only unless the node has another address."""
    store = settings.store_bytes if settings.store_bytes or settings.num_gpus else LAPTOP_STORE_BYTES
    argv = [settings.python, "-m", "ray.scripts.scripts", "start", "--node-ip-address", settings.node_ip]
    if settings.head is None:
        argv += ["--head", "--port", "0", "--dashboard-host", LOOPBACK, "--dashboard-port", "0"]
    else:
        argv += ["--address", settings.head]
    argv += [] if settings.node_name is None else ["--node-name", settings.node_name]
    argv += ["--dashboard-agent-listen-port", "0", "--min-worker-port", "0", "--max-worker-port", "0"]
    argv += ["--num-cpus", str(settings.num_cpus), "--temp-dir", str(temp_dir), "--disable-usage-stats"]
    argv += ["--log-style", "record", "--log-color", "false"]
    argv += [] if settings.num_gpus is None else ["--num-gpus", str(settings.num_gpus)]
    return argv + ([] if store is None else ["--object-store-memory", str(store)])
