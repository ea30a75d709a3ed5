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
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import httpx
import pytest

from plugins.lium.client import LiumAccount, LiumSettings


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

    def calls(self, key: str) -> list[str]:
        rows = httpx.get(f"{self.control}/log", timeout=20).json()
        return [f"{row['method']} {row['path']}" for row in rows if row["api_key_tail"] == key[-4:]]


@dataclass
class World:
    """One test's account on the emulator."""

    emulator: RunningEmulator
    settings: LiumSettings
    account: LiumAccount

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
