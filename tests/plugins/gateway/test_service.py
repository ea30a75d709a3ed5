"""The gateway as a service: what it does with a bad API behind it, and how it starts and ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from plugins.errors import ControlPlaneError, UserError
from plugins.gateway.limits import Limits
from plugins.gateway.service import Gateway
from plugins.gateway.tokens import auth_string, basic, load_key, mint
from tests.plugins.gateway.prefect_api import bare_env

KEY = b"k" * 32
POD = "ts-run-sft-a1"
ROOT = Path(__file__).resolve().parents[3]
QUEUE = json.dumps({"id": "q", "work_pool_id": "p"})

Seen = list[tuple[str, dict[str, str]]]
Serve = Callable[..., tuple[str, Seen]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """An API that knows every queue and answers all else as it is told."""
    servers: list[ThreadingHTTPServer] = []

    def serve(status: int = 200, body: str = "{}", headers: dict[str, str] | None = None) -> tuple[str, Seen]:
        seen: Seen = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                known = "/queues/" in self.path
                self.send_response(200 if known else status)
                text = (QUEUE if known else body).encode()
                for name, value in {"Content-Length": str(len(text)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/prefect/api", seen

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def start() -> Iterator[Callable[..., Gateway]]:
    started: list[Gateway] = []

    def start(upstream: str, **changes: Any) -> Gateway:
        gateway = Gateway(upstream, KEY, **{"upstream_auth": "boss:pw", "log": lambda _: None, **changes})
        started.append(gateway)
        gateway.start()
        return gateway

    yield start
    for gateway in started:
        gateway.close()


def ask(gateway: Gateway, path: str = "/ready", **headers: str) -> httpx.Response:
    said = {"Authorization": basic(gateway.auth_for(POD, "id")), **headers}
    return httpx.get(gateway.url + path, headers=said, timeout=30)


def test_only_the_gateways_own_headers_reach_the_api(serve: Serve, start: Callable[..., Gateway]) -> None:
    upstream, seen = serve(headers={"Set-Cookie": "a=b", "X-Inside": "1", "Content-Type": "application/json"})
    gateway = start(upstream)
    forged = {
        "X-Forwarded-For": "10.0.0.1",
        "X-Forwarded-Host": "evil",
        "Forwarded": "for=10.0.0.1",
        "Connection": "X-Drop",
        "X-Drop": "1",
        "Cookie": "a=b",
        "Prefect-Csrf-Token": "x",
        "X-Prefect-Worker-Id": "x",
        "Host": "evil",
    }
    answer = ask(gateway, **forged)
    assert answer.status_code == 200
    assert not {"set-cookie", "x-inside", "server"} & set(answer.headers)
    path, headers = seen[-1]
    assert path == "/prefect/api/ready"
    assert headers["authorization"] == basic("boss:pw")
    assert headers["host"] == urlsplit(upstream).netloc
    assert set(headers) == {"authorization", "host", "accept", "accept-encoding", "connection", "user-agent"}


@pytest.mark.parametrize("status", [401, 301, 307])
def test_what_the_api_has_against_the_gateway_is_not_the_pods_fault(
    status: int, serve: Serve, start: Callable[..., Gateway]
) -> None:
    upstream, _ = serve(status, headers={"Location": "http://127.0.0.1:1/inside"})
    answer = ask(start(upstream))
    assert (answer.status_code, answer.headers["Retry-After"]) == (502, "1")
    assert "inside" not in answer.text + str(answer.headers)


@pytest.mark.parametrize("status", [404, 409, 422, 429, 500, 503])
def test_what_the_api_says_to_the_pod_goes_through(status: int, serve: Serve, start: Callable[..., Gateway]) -> None:
    upstream, _ = serve(status, '{"detail": "as it is"}')
    answer = ask(start(upstream))
    assert (answer.status_code, answer.json()) == (status, {"detail": "as it is"})


def test_an_api_that_is_down_is_a_502(start: Callable[..., Gateway]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        gateway = start(f"http://127.0.0.1:{probe.getsockname()[1]}/api")
        assert ask(gateway).status_code == 502
    assert gateway.refusals == 0


def test_an_api_that_never_answers_is_a_503_and_no_hang(start: Callable[..., Gateway]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        gateway = start(f"http://127.0.0.1:{silent.getsockname()[1]}/api", limits=Limits(upstream_s=0.3))
        assert ask(gateway).status_code == 503


def test_a_token_is_not_believed_while_the_api_cannot_be_asked(start: Callable[..., Gateway], serve: Serve) -> None:
    upstream, seen = serve(500, "no json")
    gateway = start(upstream.replace("/prefect/api", ""), work_pool="lium")
    assert ask(gateway, "/flow_runs/" + "0" * 8 + "-0000-0000-0000-" + "0" * 12).status_code == 502
    assert len(seen) == 2


def test_a_port_that_is_taken_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        gateway = Gateway("http://127.0.0.1:1/api", KEY, upstream_auth=None, port=taken.getsockname()[1])
        with pytest.raises(ControlPlaneError, match="cannot listen"):
            gateway.start()


@pytest.mark.parametrize("url", ["", "127.0.0.1:4200", "ftp://x/api", "http:///api"])
def test_a_url_that_is_none_is_a_users_error(url: str) -> None:
    with pytest.raises(UserError, match="is not the URL of a Prefect API"):
        Gateway(url, KEY, upstream_auth=None)


def test_a_closed_gateway_leaves_no_thread_and_no_listener(start: Callable[..., Gateway], serve: Serve) -> None:
    gateway = start(serve()[0])
    assert ask(gateway).is_success
    gateway.close()
    gateway.close()
    gateway.revoke(POD)
    assert f"gateway-{gateway.port}" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(httpx.ConnectError):
        ask(gateway)


def test_a_pod_revoked_before_the_start_stays_revoked(serve: Serve) -> None:
    gateway = Gateway(serve()[0], KEY, upstream_auth=None, log=lambda _: None)
    gateway.revoke(POD)
    gateway.start()
    assert ask(gateway).status_code == 401
    gateway.close()


def test_as_a_service_it_takes_the_password_from_the_environment(serve: Serve, tmp_path: Path) -> None:
    upstream, seen = serve()
    key_file = tmp_path / "gateway.key"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "plugins.gateway", "--upstream", upstream, "--key-file", str(key_file)]
    env = {**bare_env(tmp_path), "PREFECT_API_AUTH_STRING": "boss:pw"}
    process = subprocess.Popen([*argv, "--port", str(port)], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert f"http://127.0.0.1:{port}/prefect/api" in said and "boss" not in said
        auth = auth_string(POD, mint(load_key(key_file), POD, "id"))
        url = f"http://127.0.0.1:{port}/prefect/api/ready"
        assert httpx.get(url, headers={"Authorization": basic(auth)}, timeout=30).is_success
        assert seen[-1][1]["authorization"] == basic("boss:pw")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(20)
        process.stdout.close()


def test_as_a_service_it_says_what_is_wrong_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("short")
    argv = [sys.executable, "-m", "plugins.gateway", "--upstream", "http://127.0.0.1:1/api"]
    done = subprocess.run(
        [*argv, "--key-file", str(tmp_path / "key")],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "gateway's key file" in done.stderr and "Traceback" not in done.stderr
