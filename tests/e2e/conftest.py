"""One world of real servers per test process (see `world.py`).

Each module names its `xdist_group`: two groups, so two worlds at the most, whatever the number of test processes.
"""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.world import World, new_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with new_world(tmp_path_factory.mktemp("w")) as made:
        yield made


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
