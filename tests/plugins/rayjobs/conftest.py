import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from plugins.rayjobs.jobs import RayJobs
from plugins.rayjobs.processes import marked
from plugins.rayjobs.settings import HeadInfo

SECRET = "hush-hush-7f3a"


@dataclass
class Head:
    state: Path
    cwd: Path
    process: subprocess.Popen
    jobs: RayJobs
    info: HeadInfo
    mark: str

    def processes(self):
        """All that this head ever started and that is alive."""
        return marked("TEST_HEAD", self.mark)


def until(what, timeout_s=60.0):
    """Poll until `what` gives something true, and give that."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("did not happen in time")


@contextlib.contextmanager
def running_head(folder, *more):
    state, cwd = folder / "state", folder / "cwd"
    cwd.mkdir()
    mark = str(folder)
    argv = [sys.executable, "-m", "plugins.rayjobs.head", "--state", state, "--num-cpus=2", "--num-gpus=0"]
    process = subprocess.Popen(
        [*argv, "--cwd", cwd, *more],
        env={**os.environ, "TEST_HEAD": mark, "STORE_PASSWORD": SECRET},
    )
    try:
        jobs = RayJobs(state)
        yield Head(state, cwd, process, jobs, jobs.wait_ready(120), mark)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        for pid in marked("TEST_HEAD", mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def head(tmp_path_factory):
    """One head for all tests that only use it."""
    with running_head(tmp_path_factory.mktemp("shared")) as started:
        yield started
