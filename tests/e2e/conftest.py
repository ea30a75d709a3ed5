"""One world of real servers per test process (see `world.py`)."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.world import World, pids_with


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("w")
    (folder / "home").mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TERM") if name in os.environ}
    env = {**kept, "HOME": str(folder / "home"), "TRAINSTACK_DIR": str(folder / "state"), "COLUMNS": "200"}
    code = "from tasks.control_plane import use_api; from tasks.local_servers import ensure_emulator as e; "
    code += "print(use_api()); print(e())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    api, lium = done.stdout.split()[-2:]
    made = World(folder, env, api, lium)
    try:
        yield made
    finally:
        made.cli("down")
        assert not [pid for pid in pids_with(f"TRAINSTACK_DIR={env['TRAINSTACK_DIR']}") if pid != os.getpid()]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failure shows what the processes that its test started have printed, and this run's processes."""
    report = yield
    started = getattr(item, "funcargs", {}).get("started")
    if report.when == "call" and report.failed and started is not None:
        for log in item.funcargs["world"].logs[-len(started) :]:
            report.sections.append((f"end of {log.name}", log.read_text(errors="replace")[-6000:]))
        report.sections.append(("load", Path("/proc/loadavg").read_text()))
    return report


@pytest.fixture
def started(world: World) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes to be ended with the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    for row in httpx.get(f"{world.control}/pods", timeout=20).json() if processes else ():
        if not row["removed"]:  # what a failed test leaves training would slow down all that follow
            httpx.post(f"{world.control}/pods/{row['id']}/kill", json={"how": "vanish"}, timeout=30)
