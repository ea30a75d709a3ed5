"""The trainer as a plain process in the place of a Ray job: it outlives its stage, and is found again by its name."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

GONE = ("Z", "X")


class ProcessJobs:
    """The interface of `RayJobs`. Each job has a file `<submission id>.pid` in `folder`, the pod's list of jobs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._mine: dict[str, subprocess.Popen[bytes]] = {}
        self._stopped: set[str] = set()

    def wait_ready(self, _timeout_s: float) -> None:
        """Always."""

    def knows(self, submission_id: str) -> bool:
        return self._file(submission_id).exists()

    def submit(self, submission_id: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(argv),
                env={**os.environ, **env},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._mine[submission_id] = process
        whole = self._file(submission_id).with_suffix(".new")
        whole.write_text(f"{process.pid} {_born(process.pid)}")
        whole.rename(self._file(submission_id))

    def status(self, submission_id: str) -> str:
        code = self._mine[submission_id].poll()
        if submission_id in self._stopped and code is not None:
            return "STOPPED"
        return "RUNNING" if code is None else "FAILED" if code else "SUCCEEDED"

    def exit_code(self, submission_id: str) -> int | None:
        return self._mine[submission_id].poll()

    def message(self, _submission_id: str) -> str | None:
        return None

    def stop(self, submission_id: str, timeout_s: float) -> str:
        """SIGTERM, then SIGKILL."""
        self._stopped.add(submission_id)
        file, deadline = self._file(submission_id), time.monotonic() + timeout_s
        end_job(file, signal.SIGTERM)
        while is_alive(file):
            if mine := self._mine.get(submission_id):
                mine.poll()
            if time.monotonic() > deadline:
                end_job(file, signal.SIGKILL)
            time.sleep(0.01)
        return "STOPPED"

    def _file(self, submission_id: str) -> Path:
        return self._folder / f"{submission_id}.pid"


def is_alive(file: Path) -> bool:
    """Whether the process of a job's file runs: the one that was started, not another one of its number."""
    pid, born = file.read_text().split()
    return _born(int(pid)) == born


def end_job(file: Path, number: int) -> None:
    """A signal to the process of a job's file, which leads a group; one that is gone is no error."""
    if is_alive(file):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(file.read_text().split()[0]), number)


def end_jobs(folder: Path) -> None:
    """Every trainer of a pod is gone at once, as when the pod is."""
    for file in folder.glob("*.pid"):
        end_job(file, signal.SIGKILL)


def _born(pid: int) -> str:
    """When a process was started, in clock ticks; empty when it does not run."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in GONE else fields[19]
    return ""
