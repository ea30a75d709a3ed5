"""Starts Ray under itself and ends all of it when the head says so, when the head is gone, or when Ray's core died.

Started by `plugins.rayjobs.head` and `plugins.rayjobs.worker` only; the head draws the picture of the processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from plugins.errors import ControlPlaneError, TrainstackError, UserError
from plugins.rayjobs.head import parse
from plugins.rayjobs.processes import adopt_orphans, children_named, descendants, end_all, marked, reap
from plugins.rayjobs.settings import (
    HeadInfo,
    HeadSettings,
    forget,
    info_file,
    new_temp_dir,
    new_token,
    ray_environment,
    ray_start_argv,
    token_file,
    write_info,
)

GRACE_S = 4.0
LOCK_WAIT_S = 15.0
_DASHBOARD = re.compile(r"RAY_API_SERVER_ADDRESS='(http://127\.0\.0\.1:\d+)'")


class _Stop(Exception):
    """The head wants the end (`clean`), or is gone."""

    def __init__(self, clean: bool) -> None:
        super().__init__(clean)
        self.clean = clean


def main() -> int:
    """Run until the end of Ray; gives the exit status."""
    settings = parse(None)
    adopt_orphans()
    signal.signal(signal.SIGTERM, _on_signal)
    try:
        settings.state.mkdir(parents=True, exist_ok=True)
        settings.state.chmod(0o700)
        with _only_one(settings.state):
            return _run(settings)
    except _Stop as stop:
        return 0 if stop.clean else 1
    except (TrainstackError, OSError) as error:
        print(f"ray {'head' if settings.head is None else 'worker'} in {settings.state}: {error}", file=sys.stderr)
        return 1


def _run(settings: HeadSettings) -> int:
    # Head and guard killed together leave Ray running without a parent; its environment tells whose it was.
    end_all(lambda: marked("RAY_AUTH_TOKEN_PATH", str(token_file(settings.state))), grace_s=0)
    forget(settings.state)
    temp_dir = new_temp_dir()
    grace_s = GRACE_S
    try:
        info = _start(settings, temp_dir)
        core = children_named(os.getpid(), "gcs_server") | children_named(os.getpid(), "raylet")
        write_info(settings.state, info)
        if settings.head is None:
            _warm_up(info)
        while not core & reap():
            _look(0.25)
        gone = "" if settings.head is None else ", or its head is gone"
        raise ControlPlaneError(f"a core process of Ray died{gone}; its logs are in {settings.state / 'ray-logs'}")
    except _Stop as stop:
        grace_s = GRACE_S if stop.clean else 0.0
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        info_file(settings.state).unlink(missing_ok=True)
        _end_ray(grace_s)
        _keep_logs(temp_dir, settings.state / "ray-logs")
        shutil.rmtree(temp_dir, ignore_errors=True)


def _start(settings: HeadSettings, temp_dir: Path) -> HeadInfo:
    """Run `ray start` to its end and wait for a head's jobs API.

    Raises ControlPlaneError with the end of what Ray said.
    """
    if settings.or_own:
        settings = _as_found(settings)
    token = new_token(settings.state)
    log = settings.state / "ray-start.log"
    deadline = time.monotonic() + settings.start_timeout_s
    with log.open("wb") as out:
        starter = subprocess.Popen(
            ray_start_argv(settings, temp_dir),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=ray_environment(token, settings.node_ip),
            cwd=settings.cwd,
        )
    while starter.poll() is None:
        _look(0.05)
        if time.monotonic() > deadline:
            raise ControlPlaneError(f"`ray start` took longer than {settings.start_timeout_s:.0f} s; see {log}")
    said = log.read_text(errors="replace")
    found = _DASHBOARD.search(said)
    if starter.returncode != 0 or (settings.head is None and found is None):
        raise ControlPlaneError(f"`ray start` failed with status {starter.returncode}: {said.strip()[-1500:]}")
    dashboard = found[1] if found is not None and settings.head is None else ""
    while dashboard and not _answers(dashboard, token):
        _look(0.05)
        if time.monotonic() > deadline:
            raise ControlPlaneError(f"Ray's jobs API at {dashboard} did not answer in time; see {log}")
    return HeadInfo(
        dashboard=dashboard,
        address=(temp_dir / "ray_current_cluster").read_text().strip(),
        token_file=str(token),
        log_dir=str(temp_dir / "session_latest" / "logs"),
        temp_dir=str(temp_dir),
        head_pid=os.getppid(),
        guard_pid=os.getpid(),
    )


def _as_found(settings: HeadSettings) -> HeadSettings:
    """Without an interpreter that has no Ray, and without a folder that is not there: a command may need neither."""
    python, cwd = settings.python, settings.cwd
    try:
        tried = subprocess.run([python, "-c", "import ray"], capture_output=True, timeout=60, check=False).returncode
    except (OSError, subprocess.TimeoutExpired):
        tried = 1
    if tried != 0:
        print(f"ray head: {python} has no Ray; actors run under {sys.executable}", file=sys.stderr)
        python = sys.executable
    return replace(settings, python=python, cwd=cwd if cwd is not None and cwd.is_dir() else None)


def _answers(dashboard: str, token: Path, job: bytes | None = None) -> bool:
    """Ask the jobs API for its list, or give it a job; whether it answered well."""
    headers = {"Authorization": f"Bearer {token.read_text()}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{dashboard}/api/jobs/", data=job, headers=headers)  # noqa: S310 - loopback
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, OSError):
        return False


def _warm_up(info: HeadInfo) -> None:
    """Run an empty job: the first one of a head takes about two seconds longer, and this need not be the trainer."""
    job = {"entrypoint": "true", "submission_id": "warm-up", "runtime_env": {"env_vars": {"WARM_UP": "1"}}}
    _answers(info.dashboard, Path(info.token_file), json.dumps(job).encode())


def _look(wait_s: float) -> None:
    """Wait for a word of the head; raises _Stop on a byte (stop) or the end of the pipe (the head is gone)."""
    ready, _, _ = select.select([sys.stdin.fileno()], [], [], wait_s)
    if ready:
        raise _Stop(clean=bool(os.read(sys.stdin.fileno(), 1)))


def _on_signal(number: int, _frame: object) -> None:
    raise _Stop(clean=True)


@contextlib.contextmanager
def _only_one(state: Path) -> Iterator[None]:
    """Hold the state dir's lock; an old guard that is still cleaning up is waited for."""
    with (state / "head.lock").open("w") as lock:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError("another Ray head runs in this folder; stop it or take another --state") from None
                _look(0.2)
        yield


def _end_ray(grace_s: float) -> None:
    """The GCS goes last: a raylet that cannot say goodbye to it waits for it."""
    gcs = children_named(os.getpid(), "gcs_server")
    end_all(lambda: descendants(os.getpid()) - gcs, grace_s=grace_s)
    end_all(lambda: descendants(os.getpid()), grace_s=min(grace_s, 1.0))


def _keep_logs(temp_dir: Path, target: Path) -> None:
    logs = (temp_dir / "session_latest" / "logs").resolve()
    if logs.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        with contextlib.suppress(OSError, shutil.Error):
            shutil.move(logs, target)


if __name__ == "__main__":
    raise SystemExit(main())
