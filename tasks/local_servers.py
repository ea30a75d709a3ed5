"""The servers a laptop needs and nobody wants to think about: Prefect, the Lium emulator, a worker for pipelines.

Each is started once, detached, on loopback, with its record beside its log:

    <home>/local/prefect.json    {"pid", "started", "url"}      <home>/local/prefect.log
    <home>/local/emulator.json                                  <home>/local/emulator.log
    <home>/local/worker.json                                    <home>/local/worker.log

`<home>` is `blocks.recipe.home()`. A record is believed only when its process still lives with the same start time, so
a re-used pid is never taken for (or killed as) one of ours. `trainstack down` ends them all.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from blocks.recipe import home
from plugins.errors import ControlPlaneError, UserError

CODE_ROOT = Path(__file__).resolve().parent.parent
PREFECT_PORT = 4200
EMULATOR_PORT = 8799
EMULATOR_KEY = "local-emulator"  # the emulator takes any key; no secret


@dataclass(frozen=True)
class Server:
    """A running local server: process id, its start time in clock ticks since boot, and where it answers."""

    name: str
    pid: int
    started: str
    url: str


def running(name: str) -> Server | None:
    """The local server of that name if its process lives, else None."""
    try:
        server = Server(**json.loads(_record(name).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return server if start_time(server.pid) == server.started else None


def recorded_url(name: str) -> str | None:
    """Where the local server of that name listens, or listened before it died; None when there never was one."""
    try:
        return str(json.loads(_record(name).read_text())["url"])
    except (OSError, ValueError, LookupError):
        return None


def ensure_prefect_server() -> str:
    """Start Prefect's own server on loopback unless ours runs already; returns the API URL.

    Not Prefect's ephemeral mode: that one cannot serve a worker and loses task records at exit.
    """
    with _lock():
        server = running("prefect")
        if server is None:
            port = _free_port(_preferred("prefect", PREFECT_PORT))
            server = _spawn(
                "prefect",
                [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
                url=f"http://127.0.0.1:{port}/api",
                env={
                    "PREFECT_HOME": str(home() / "prefect"),
                    "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
                    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                    "DO_NOT_TRACK": "1",
                    # Leases in files survive a restart; the other two shorten what a dead worker leaves open.
                    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
                    "PREFECT_SERVER_SERVICES_FOREMAN_LOOP_SECONDS": "2",
                    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "60",
                },
            )
        _wait_until(server, lambda: _answers(f"{server.url}/health"), timeout_s=180)
        return server.url


def ensure_emulator() -> str:
    """Start the Lium emulator unless ours runs already; returns the base URL for LIUM_BASE_URL."""
    with _lock():
        server = running("emulator")
        if server is None:
            port = _free_port(_preferred("emulator", EMULATOR_PORT))
            store, shared = home() / "store", home() / "shared"  # the second for pod.shared_dir of a cluster
            for folder in (store, shared):
                folder.mkdir(parents=True, exist_ok=True)
            shares = {Path(sys.prefix), Path(sys.base_prefix), CODE_ROOT, store, shared}
            argv = [sys.executable, "-m", "plugins.lium.emulator", "--port", str(port)]
            argv += ["--state", str(home() / "emulator"), "--env", f"TRAINSTACK_HOME={CODE_ROOT}"]
            argv += [word for share in sorted(shares) for word in ("--share", str(share))]
            server = _spawn("emulator", argv, url=f"http://127.0.0.1:{port}/api", env={})
        _wait_until(server, lambda: _answers(f"{server.url}/version"), timeout_s=60)
        return server.url


def ensure_pipeline_worker(api_url: str) -> Server:
    """Start the worker that runs pipeline flows (pool `control`) for deployments, unless ours runs already."""
    with _lock():
        server = running("worker")
        if server is None:
            argv = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "control", "--name", "control-local"]
            env = {
                "PREFECT_API_URL": api_url,
                "PREFECT_WORKER_QUERY_SECONDS": "2",
                "PREFECT_CLIENT_MAX_RETRIES": "9",
                "TRAINSTACK_HOME": str(CODE_ROOT),
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            }
            server = _spawn("worker", argv, url=api_url, env=env)
        return server


def stop_all() -> list[str]:
    """Stop every local server, the emulator (and so its pods) last; returns one line for each that ran."""
    said = []
    with _lock():
        for name in ("worker", "prefect", "emulator"):
            server = running(name)
            if server is not None:
                _end(server)
                said.append(f"stopped {name} (pid {server.pid})")
            _record(name).unlink(missing_ok=True)
    return said


def _record(name: str) -> Path:
    return home() / "local" / f"{name}.json"


@contextmanager
def _lock() -> Iterator[None]:
    folder = home() / "local"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = (folder / "lock").open("w")
    except OSError as error:
        raise UserError(f"Cannot write {folder}: {error}. Set TRAINSTACK_DIR to a folder you can write to.") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _spawn(name: str, argv: list[str], *, url: str, env: dict[str, str]) -> Server:
    log = home() / "local" / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            cwd=home(),
            start_new_session=True,  # Ctrl-C in the terminal must not reach a server that others use
        )
    server = Server(name, process.pid, start_time(process.pid) or "", url)
    record = _record(name)
    staged = record.with_suffix(".tmp")
    staged.write_text(json.dumps(asdict(server)))
    staged.replace(record)
    return server


def _wait_until(server: Server, ready: Callable[[], bool], *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        if running(server.name) is None or time.monotonic() > deadline:
            log = home() / "local" / f"{server.name}.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:]) if log.exists() else ""
            _end(server)
            _record(server.name).unlink(missing_ok=True)
            raise ControlPlaneError(f"The local {server.name} server did not start; its log is {log}:\n{tail}")
        time.sleep(0.2)


def _end(server: Server, grace_s: float = 15) -> None:
    """SIGTERM to the server's process group, SIGKILL to what is left of it after `grace_s`."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        deadline = time.monotonic() + grace_s
        while start_time(server.pid) == server.started and time.monotonic() < deadline:
            _reap(server.pid)
            time.sleep(0.05)
        if start_time(server.pid) != server.started:
            return


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def start_time(pid: int) -> str | None:
    """Start time of a live process (field 22 of /proc/<pid>/stat); None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


def _preferred(name: str, port: int) -> int:
    """Where a server that died listened before, so that runs reconnect to its successor; else the well-known port.

    The well-known port belongs to the usual state folder; several others may start at the same moment.
    """
    before = recorded_url(name)
    if before is not None and (known := urlsplit(before).port) is not None:
        return known
    return 0 if os.environ.get("TRAINSTACK_DIR") else port


def _free_port(preferred: int) -> int:
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # old connections do not hold a port, a server does
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ControlPlaneError("No free port on 127.0.0.1.")
