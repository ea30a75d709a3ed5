"""Emulators for the tests: real processes on free ports, driven through the unmodified SDK and CLI."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from lium import Config, Lium

WAIT_S = 30.0
FAST_POLLS = ("--listings-per-minute", "100000")  # the tests look every 20 ms; the limit has its own


def wait_until(condition, what, timeout_s=WAIT_S):
    """Poll until `condition()` is true and return its value."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s: {what}")


def processes_with(text):
    """Pids of processes, zombies aside, whose command line has `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


@dataclass
class Emulator:
    """A running emulator process and how to reach it."""

    state: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen | None = None
    url: str = ""
    extra_env: dict = field(default_factory=dict)

    def start(self):
        ready = self.state.parent / f"{self.state.name}.ready"
        ready.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "plugins.lium.emulator", "--state", str(self.state), "--port", "0"]
        argv += ["--ready-file", str(ready), *self.options]
        log = (self.state.parent / f"{self.state.name}.log").open("ab")
        self.process = subprocess.Popen(argv, stdout=log, stderr=log, env=os.environ | self.extra_env)
        wait_until(lambda: ready.exists() or self.process.poll() is not None, "the emulator serves")
        assert self.process.poll() is None, log.name and Path(log.name).read_text()
        self.url = json.loads(ready.read_text())["url"]
        return self

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)

    @property
    def control(self):
        return self.url.removesuffix("/api") + "/_emulator"

    def faults(self, **wanted):
        httpx.post(f"{self.control}/faults", json=wanted).raise_for_status()

    def order(self, wanted):
        httpx.post(f"{self.control}/faults", json=wanted).raise_for_status()

    def journal(self):
        return httpx.get(f"{self.control}/log").json()

    def kill_pod(self, pod_id, how="vanish", reason="spot reclaim"):
        body = {"how": how, "reason": reason}
        return httpx.post(f"{self.control}/pods/{pod_id}/kill", json=body, timeout=WAIT_S)

    def network(self, pod_id, **wanted):
        httpx.post(f"{self.control}/pods/{pod_id}/network", json=wanted, timeout=WAIT_S).raise_for_status()

    def gpu(self, pod_id, **wanted):
        return httpx.post(f"{self.control}/pods/{pod_id}/gpu", json=wanted, timeout=WAIT_S)

    def machine(self, machine_id, **wanted):
        return httpx.post(f"{self.control}/machines/{machine_id}", json=wanted, timeout=WAIT_S)

    @property
    def namespaces(self):
        return httpx.get(f"{self.control}/info").json()["mode"] == "namespace"


@dataclass
class Sdk:
    """An SDK client with an account of its own, and shortcuts for what most tests do."""

    lium: Lium
    key: str
    emulator: Emulator

    def pod(self, **wanted):
        rented = self.lium.rent(**{"gpu_type": "4090", "name": f"t-{uuid.uuid4().hex[:6]}"} | wanted)
        return self.ready(rented.pod["id"])

    def ready(self, pod_id):
        pod = self.lium.wait_ready(pod_id, timeout=30, poll_interval=0.05)
        assert pod is not None, "the pod did not become ready"
        return pod

    def out(self, pod, command, **kwargs):
        result = self.lium.exec(pod, command=command, **kwargs)
        assert result["exit_code"] == 0, result
        return result["stdout"].strip()

    def call(self, method, path, **kwargs):
        headers = {"X-API-KEY": self.key, **kwargs.pop("headers", {})}
        return httpx.request(method, f"{self.emulator.url}{path}", headers=headers, timeout=WAIT_S, **kwargs)


# Enough small machines that tests beside each other do not wait for one another, and a few of their own for capacity.
INVENTORY = [
    {"gpu": "NVIDIA GeForce RTX 4090", "price_per_gpu": 0.35, "gpu_count": 64, "vram_mib": 24564, "cpus": 16},
    {"gpu": "NVIDIA H200", "price_per_gpu": 2.49, "gpu_count": 8, "vram_mib": 143771, "nvlink": True},
    {"gpu": "NVIDIA A100-SXM4-80GB", "price_per_gpu": 0.99, "gpu_count": 4, "vram_mib": 81920},
    {"gpu": "NVIDIA H100 80GB HBM3", "price_per_gpu": 1.79, "gpu_count": 8, "vram_mib": 81559, "min_gpu_count": None},
    {"gpu": "NVIDIA L40S", "price_per_gpu": 0.5, "gpu_count": 2, "vram_mib": 46068, "tier": "spot"},
]


@pytest.fixture(name="wait_until", scope="session")
def _wait_until():
    return wait_until


@pytest.fixture(name="processes_with", scope="session")
def _processes_with():
    return processes_with


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("emulator")


@pytest.fixture(scope="session")
def ssh_key(folder):
    key = folder / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=WAIT_S)
    return key


@pytest.fixture(scope="session")
def inventory(folder):
    path = folder / "inventory.json"
    path.write_text(json.dumps(INVENTORY))
    return path


@pytest.fixture(scope="session")
def emulator(folder, inventory):
    """One for most tests of a worker; each test has an account of its own on it."""
    options = ("--inventory", str(inventory), *FAST_POLLS)
    running = Emulator(folder / "shared", options).start()
    yield running
    assert running.stop() == 0
    log = (folder / "shared.log").read_text()
    assert "Traceback" not in log and "never retrieved" not in log, log


@pytest.fixture(params=["auto", "plain"])
def own_emulator(request, tmp_path, inventory):
    """One for the test alone, to be killed and started again; once in the best mode, once plain."""
    options = ("--inventory", str(inventory), "--mode", request.param, *FAST_POLLS)
    running = Emulator(tmp_path / "state", options).start()
    yield running
    if running.process.poll() is None:
        running.stop()


@contextlib.contextmanager
def starter(folder):
    """Start emulators below a folder: `start(*options, machines=[...])`; all are stopped at the end."""
    started = []

    def start(*options, machines=None):
        if machines is not None:
            path = folder / f"machines-{len(started)}.json"
            path.write_text(json.dumps(machines))
            options = ("--inventory", str(path), *options)
        started.append(Emulator(folder / f"own-{len(started)}", options).start())
        return started[-1]

    try:
        yield start
    finally:
        for running in started:
            if running.process.poll() is None:
                running.stop()


@pytest.fixture
def start_emulator(tmp_path):
    """Start one for the test alone."""
    with starter(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def start_for_module(tmp_path_factory):
    """Start one for the tests of a file, which run one after another."""
    with starter(tmp_path_factory.mktemp("module")) as start:
        yield start


@pytest.fixture
def connect(ssh_key, tmp_path, monkeypatch):
    """Make SDK clients; everything they write goes to the test's folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    clients = []

    def make(emulator, key=None):
        key = key or f"key-{uuid.uuid4().hex}"
        lium = Lium(Config(api_key=key, base_url=emulator.url, ssh_key_path=ssh_key))
        clients.append(lium)
        return Sdk(lium, key, emulator)

    yield make
    for lium in clients:
        lium.close()


@pytest.fixture
def sdk(emulator, connect):
    client = connect(emulator)
    yield client
    for pod in client.lium.ps():
        client.lium.down(pod)
