"""The conformance suite does not spend money by accident: it is refused before any call."""

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("test_service.py")
ROOT = Path(__file__).parents[5]
# This address leads to this machine and is not loopback: a server here sees whoever calls it.
ELSEWHERE = "0.0.0.0"


class Refusing(http.server.BaseHTTPRequestHandler):
    """Counts the calls and answers 401."""

    calls = 0

    def do_GET(self):
        type(self).calls += 1
        self.send_error(401)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Refusing.calls = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def run(*options):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LIUM_", "PYTEST_"))}
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", str(SUITE), *options]
    env |= {"LIUM_API_KEY": "not-a-key", "LIUM_SSH_KEY_PATH": "/nowhere"}
    return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_another_machine_is_refused_before_any_call(server):
    url = f"http://{ELSEWHERE}:{server.server_port}/api"
    done = run("--base-url", url)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "would rent pods there and spend money. Give --i-will-pay" in done.stderr
    assert Refusing.calls == 0
    run("--base-url", url, "--i-will-pay", "-k", "wrong_key")
    assert Refusing.calls > 0, "with --i-will-pay the same address is called, so the check above can fail"


@pytest.mark.parametrize(
    "url", ["https://lium.io/api", "https://localhost.lium.io/api", "http://127.0.0.1.lium.io/api"]
)
def test_names_that_only_look_like_this_machine_are_refused(url):
    done = run("--base-url", url, "--collect-only")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and "--i-will-pay" in done.stderr


def test_an_address_that_is_none_is_refused():
    done = run("--base-url", "lium.io/api")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and "not an http(s) address" in done.stderr
