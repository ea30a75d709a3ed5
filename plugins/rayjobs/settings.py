"""What one Ray head is started with, and the small file by which others find it.

<state dir>/                 0700
  ray.json                   written when the jobs API answers, removed when the head ends
  ray-token                  0600, new for every head
  ray-start.log              what `ray start` said
  ray-logs/                  the logs of the last head that ended (they lie in Ray's temporary folder while it
  runs) head.lock                  held while a head of this state dir lives
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
LAPTOP_STORE_BYTES = 100 << 20
_TEMP_PREFIX = "ts-ray-"
_SHORT = 24  # Ray puts Unix sockets about 75 characters below its folder; the kernel takes 107 in all


@dataclass(frozen=True)
class HeadSettings:
    """How a head is started.

    num_gpus None: Ray looks itself; store_bytes None: small without GPUs, Ray's own default (30% of memory) with them.
    """

    state: Path
    num_cpus: int
    num_gpus: int | None = None
    cwd: Path | None = None
    store_bytes: int | None = None
    start_timeout_s: float = 90.0


@dataclass(frozen=True)
class HeadInfo:
    """Contents of ray.json. dashboard: URL of the jobs API; address: of the GCS, for `ray.init`; both on loopback."""

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
    """Write a fresh secret that every call to this head must carry."""
    file = token_file(state)
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(secrets.token_hex(32))
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


def ray_environment(token: Path) -> dict[str, str]:
    """The caller's environment, which every job inherits, with what Ray needs; no other Ray is looked for."""
    env = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    paths = [str(HOME), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    return env | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # The only way to keep 127.0.0.1: otherwise `ray start` replaces it by the machine's outer address and every
        # service listens on all interfaces (ray/_private/services.py, resolve_ip_for_localhost).
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_START_HOOK": "plugins.rayjobs.start_hook.apply",
    }


def ray_start_argv(settings: HeadSettings, python: str, temp_dir: Path) -> list[str]:
    """Command line of `ray start`: every port free, loopback only."""
    store = settings.store_bytes if settings.store_bytes or settings.num_gpus else LAPTOP_STORE_BYTES
    argv = [python, "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address", "127.0.0.1", "--port", "0"]
    argv += ["--dashboard-host", "127.0.0.1", "--dashboard-port", "0", "--dashboard-agent-listen-port", "0"]
    argv += ["--num-cpus", str(settings.num_cpus), "--temp-dir", str(temp_dir), "--disable-usage-stats"]
    argv += ["--log-style", "record", "--log-color", "false"]
    argv += [] if settings.num_gpus is None else ["--num-gpus", str(settings.num_gpus)]
    return argv + ([] if store is None else ["--object-store-memory", str(store)])
