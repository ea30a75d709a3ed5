"""The Hub as a server: in a thread of this process, or as a process of its own that can be killed."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from tests.hub_server.app import Hub, Limits
from tests.hub_server.faults import Connection, FaultyHub


class Running:
    """A Hub that answers at `url`, and its control."""

    def __init__(self, url: str, root: Path) -> None:
        self.url, self.root = url, root
        self._client = httpx.Client(base_url=url, timeout=10, trust_env=False)

    def token(self, secret: str, user: str, role: str = "write", **more: Any) -> str:
        """Make a token known; return it."""
        self._post("tokens", {"token": secret, "user": user, "role": role, **more})
        return secret

    def fault(self, match: str, times: int = 1, **fault: Any) -> None:
        """Order a fault; see `faults.py`."""
        self._post("faults", {"match": match, "times": times, **fault})

    def clear(self) -> None:
        """Forget faults and calls."""
        self._post("clear", {})

    def rate(self, commits_per_hour: int | None) -> None:
        """Refuse more commits an hour to one repository than that."""
        self._post("rate", {"commits_per_hour": commits_per_hour})

    def commits(self, repo: str) -> int:
        """How many commits were made to a repository since the server started."""
        return int(self.state()["commits"].get(repo, 0))

    def calls(self, match: str = "") -> list[str]:
        """The calls whose "METHOD path" holds `match`, in order."""
        return [entry["call"] for entry in self.state()["calls"] if match in entry["call"]]

    def state(self) -> dict[str, Any]:
        """Commits, calls, and the bytes that the object store received."""
        return dict(self._client.get("/_hub/state").raise_for_status().json())

    def _post(self, what: str, body: dict[str, Any]) -> None:
        self._client.post(f"/_hub/{what}", json=body).raise_for_status()


def server(hub: Hub) -> uvicorn.Server:
    """The uvicorn server of a Hub, not started."""
    app = FaultyHub(hub, hub.faults)
    return uvicorn.Server(uvicorn.Config(app, http=Connection, log_level="critical", lifespan="off", ws="none"))


def listen(port: int = 0) -> socket.socket:
    """A socket on loopback. With the protocol named, asyncio sends small answers at once (TCP_NODELAY)."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(128)
    return listening


@contextlib.contextmanager
def running_hub(root: Path, limits: Limits | None = None) -> Iterator[Running]:
    """A Hub in a thread."""
    listening = listen()
    port = listening.getsockname()[1]
    inner = server(Hub(root, port, limits or Limits()))
    thread = threading.Thread(target=inner.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not inner.started:
        time.sleep(0.005)
    try:
        yield Running(f"http://127.0.0.1:{port}", root)
    finally:
        inner.should_exit = inner.force_exit = True
        thread.join(timeout=10)
        listening.close()


@contextlib.contextmanager
def hub_process(root: Path, port: int = 0) -> Iterator[tuple[Running, "subprocess.Popen[str]"]]:
    """A Hub in a process of its own, killed at the end."""
    command = [sys.executable, "-m", "tests.hub_server", str(root), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Running(process.stdout.readline().strip(), root), process
        finally:
            process.kill()
