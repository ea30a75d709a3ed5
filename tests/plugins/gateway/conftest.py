"""One Prefect server for the folder, one gateway for each test that asks, and pods that talk to it."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import pytest

from plugins.gateway.limits import Limits
from plugins.gateway.service import Gateway
from plugins.gateway.tokens import basic
from tests.plugins.gateway.prefect_api import BOSS, ControlPlane, eventually, stage_key, start_server

KEY = b"k" * 32
Start = Callable[..., Gateway]


@dataclass
class Pod:
    """What a pod has: its name, its auth string, the gateway's URL."""

    name: str
    auth: str
    url: str
    run: str

    @property
    def key(self) -> str:
        """An artifact key of its stage."""
        return stage_key(self.name)

    def __post_init__(self) -> None:
        self.http = httpx.Client(headers={"Authorization": basic(self.auth)}, timeout=60, trust_env=False)

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return self.http.request(method, self.url + path, json=body)


Pair = tuple[Gateway, Pod, Pod]


def enlisted(control: ControlPlane, gateway: Gateway) -> Pod:
    """A pod with a queue and one scheduled run of its own."""
    name = control.queue()
    return Pod(name, gateway.auth_for(name, "lium-1"), gateway.url, control.run(name, key=stage_key(name)))


@pytest.fixture(scope="session")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("prefect") / "home"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = start_server(folder, port)
    made = ControlPlane(f"http://127.0.0.1:{port}/api")

    def answers() -> bool:
        assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
        try:
            return made.http.get(made.url + "/ready").is_success
        except httpx.HTTPError:
            return False

    try:
        eventually(answers, "the Prefect server", 120)
        made.furnish()
        yield made
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


@pytest.fixture(scope="session")
def pair(control: ControlPlane) -> Iterator[Pair]:
    """A gateway with room for many calls, and two pods of it that no test releases."""
    roomy = Limits(calls_per_s=1000, burst=1000)
    gateway = Gateway(control.url, KEY, upstream_auth=BOSS, log=lambda _: None, limits=roomy)
    gateway.start()
    yield gateway, enlisted(control, gateway), enlisted(control, gateway)
    gateway.close()


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def start(control: ControlPlane, log: list[str]) -> Iterator[Start]:
    """Start a gateway; with what differs from the usual."""
    started: list[Gateway] = []

    def start(**changes: Any) -> Gateway:
        said = {"upstream": control.url, "key": KEY, "upstream_auth": BOSS, "log": log.append, **changes}
        gateway = Gateway(said.pop("upstream"), said.pop("key"), **said)
        started.append(gateway)
        gateway.start()
        return gateway

    yield start
    print("\n".join(log))  # pytest shows it when the test failed
    for gateway in started:
        gateway.close()


@pytest.fixture
def gateway(start: Start) -> Gateway:
    return start()


@pytest.fixture
def enlist(control: ControlPlane) -> Callable[[Gateway], Pod]:
    """A pod with a queue and one scheduled run of its own."""

    return partial(enlisted, control)


@pytest.fixture
def pod(gateway: Gateway, enlist: Callable[[Gateway], Pod]) -> Pod:
    return enlist(gateway)


@pytest.fixture
def other(gateway: Gateway, enlist: Callable[[Gateway], Pod]) -> Pod:
    return enlist(gateway)
