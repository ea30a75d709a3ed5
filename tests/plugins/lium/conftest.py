"""An emulator for the plugin's tests: one per test process, an account of its own for every test."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
import httpx
import pytest

from plugins.lium.client import Intent, LiumAccount, LiumSettings, PodRow, RentOrder
from tests.plugins.lium.road import Road
from tests.plugins.lium.still_clock import StillClock


@dataclass
class RunningEmulator:
    """A running emulator and its control interface."""

    url: str
    key_path: Path

    @property
    def control(self) -> str:
        return self.url.removesuffix("/api") + "/_emulator"

    def faults(self, wanted: dict) -> None:
        httpx.post(f"{self.control}/faults", json=wanted, timeout=20).raise_for_status()

    def clear_faults(self, wanted: dict) -> None:
        self.faults(dict.fromkeys(wanted, 0))

    def kill_pod(self, pod_id: str, how: str = "vanish", reason: str = "spot reclaim") -> None:
        answer = httpx.post(f"{self.control}/pods/{pod_id}/kill", json={"how": how, "reason": reason}, timeout=20)
        answer.raise_for_status()

    def pod_count(self) -> int:
        """Pods of all accounts, listed or not."""
        return httpx.get(f"{self.control}/info", timeout=20).json()["pods"]

    def calls(self, key: str) -> list[str]:
        rows = httpx.get(f"{self.control}/log", timeout=20).json()
        return [f"{row['method']} {row['path']}" for row in rows if row["api_key_tail"] == key[-4:]]


@dataclass
class World:
    """One test's account on the emulator, and the intents that were journalled for it."""

    emulator: RunningEmulator
    settings: LiumSettings
    account: LiumAccount
    intents: list[Intent] = field(default_factory=list)

    def order(self, name: str, gpu: str = "RTX 4090", **changes) -> RentOrder:
        """A rent on the host of this GPU that has the most of them free."""
        fitting = [host for host in self.account.hosts() if gpu in host.gpu]
        host = max(fitting, key=lambda host: host.free_gpus)
        return RentOrder(**{"name": name, "executor_id": host.executor_id, **changes})

    def rent(self, name: str, gpu: str = "RTX 4090", **changes) -> PodRow:
        return self.account.rent(self.order(name, gpu, **changes), self.intents.append)

    def rented(self, name: str) -> list[str]:
        """Ids of the pods that there really are, past every obstacle."""
        return [row.id for row in self.account.pods() if row.name == name]

    def calls(self) -> list[str]:
        return self.emulator.calls(self.settings.api_key)


def until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


@pytest.fixture(name="until", scope="session")
def _until() -> Callable[..., None]:
    return until


@pytest.fixture(scope="session")
def running_emulator() -> Iterator[RunningEmulator]:
    with tempfile.TemporaryDirectory(prefix="em-") as name:
        folder = Path(name)
        key = asyncssh.generate_private_key("ssh-ed25519", comment="test")
        key.write_private_key(str(folder / "id_ed25519"))
        key.write_public_key(str(folder / "id_ed25519.pub"))
        ready = folder / "ready.json"
        argv = [sys.executable, "-m", "plugins.lium.emulator", "--port", "0", "--boot-delay", "0.1"]
        argv += ["--state", str(folder / "state"), "--ready-file", str(ready)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, "HOME": name})
        try:
            until(lambda: ready.exists() or process.poll() is not None, "the emulator serves", 60)
            assert process.poll() is None, (folder / "log").read_text()
            yield RunningEmulator(json.loads(ready.read_text())["url"], folder / "id_ed25519")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


@pytest.fixture
def name() -> str:
    return f"ts-{uuid.uuid4().hex[:8]}-sft-a1"


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def hasty_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's pauses between its own tries are fixed (up to 20 s in all); the order of calls is what is tested."""
    real = time.sleep
    monkeypatch.setattr(time, "sleep", lambda pause_s: real(min(pause_s, 0.05)))


@pytest.fixture
def road(running_emulator: RunningEmulator) -> Iterator[Road]:
    made = Road(running_emulator.url)
    yield made
    made.close()


@pytest.fixture
def world(running_emulator: RunningEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("HOME", str(tmp_path))  # the SDK keeps its pins and caches there
    settings = LiumSettings(running_emulator.url, f"key-{uuid.uuid4().hex}", running_emulator.key_path)
    made = World(running_emulator, settings, LiumAccount(settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield made
    leftovers = httpx.get(f"{settings.base_url}/pods", headers={"X-API-KEY": settings.api_key}, timeout=20).json()
    for row in leftovers:
        httpx.delete(f"{settings.base_url}/pods/{row['id']}", headers={"X-API-KEY": settings.api_key}, timeout=20)


@pytest.fixture
def far(world: World, road: Road, clock: StillClock) -> LiumAccount:
    """The world's account by the road, with the still clock."""
    return LiumAccount(road.settings(world.settings), clock=clock)
