"""The way from a rented pod to running services, on emulator pods: tunnel, bootstrap, supervisor."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plugins.errors import ControlPlaneError, PodLost, UserError
from plugins.lium.bootstrap import (
    _START,
    MISSING,
    pod_env,
    run_module,
    start_supervisor,
    stop_supervisor,
    supervisor_status,
)
from plugins.lium.poller import PodPoller, wait_ready
from plugins.lium.tunnel import PodConnection, known_hosts_file

ROOT = Path(__file__).parents[3]
SECRET = "s3cret-Value-that-must-not-be-written"


@pytest.fixture
def pod(world, name: str) -> Iterator[PodConnection]:
    poller = PodPoller(world.account)
    row = wait_ready(world.account, world.rent(name), 60, poller)
    poller.close()
    connection = PodConnection(row, world.settings.ssh_key_path, known_hosts_file(row.id))
    connection.connect(30)
    yield connection
    connection.close()
    world.account.release(name)


def boot(*services: dict, **more) -> dict:
    return {"pod": "p", "state_dir": "~/trainstack", "env": {"TOKEN": SECRET}, "services": list(services), **more}


def sleeper(name: str) -> dict:
    return {"name": name, "argv": ["sh", "-c", 'echo "token ${#TOKEN}"; exec sleep 600']}


def test_services_start_are_seen_and_stop(pod: PodConnection, until: Callable) -> None:
    assert supervisor_status(pod) is None
    assert stop_supervisor(pod) is False
    start_supervisor(pod, boot(sleeper("ray"), sleeper("worker")))
    status = supervisor_status(pod)
    assert status is not None and status["alive"] and set(status["services"]) == {"ray", "worker"}
    start_supervisor(pod, boot(sleeper("other")))  # adopted, not changed
    assert supervisor_status(pod) == status
    until(lambda: pod.read("~/trainstack/ray.log") == f"token {len(SECRET)}\n".encode(), "the service got its secret")
    assert stop_supervisor(pod, 30) is True
    status = supervisor_status(pod)
    assert status is not None and not status["alive"] and status["state"] == "stopped"


def test_the_secret_is_in_no_process_list_and_no_file_of_the_pod(pod: PodConnection) -> None:
    start_supervisor(pod, boot(sleeper("worker")))
    shown = pod.run("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; grep -rh . ~/trainstack").stdout
    assert b"plugins.lium.supervisor" in shown
    assert SECRET.encode() not in shown
    stop_supervisor(pod, 30)


def test_a_service_that_cannot_start_is_told_with_its_reason(pod: PodConnection) -> None:
    with pytest.raises(PodLost, match="service worker did not start: No such file"):
        start_supervisor(pod, boot({"name": "worker", "argv": ["/no/such/program"]}))


def test_a_session_without_the_images_environment_gets_it_from_pid_1(pod: PodConnection, until: Callable) -> None:
    if b"LIUM_POD_ID" not in pod.run("cat /proc/1/environ").stdout:
        pytest.skip("this pod has no pid 1 of its own")
    seen = {"name": "ray", "argv": ["sh", "-c", "env > ~/seen.tmp; mv ~/seen.tmp ~/seen; exec sleep 600"]}
    bare = ["env", "-i", f"HOME={pod.run('echo $HOME').stdout.decode().strip()}", "PATH=/usr/bin:/bin", "sh", "-c"]
    done = pod.run([*bare, _START], stdin=json.dumps(boot(seen)).encode())
    assert (done.rc, done.stderr) == (0, b"")
    until(lambda: pod.read_if_exists("~/seen"), "the service wrote its environment")
    lines = pod.read("~/seen").decode().splitlines()
    assert any(line.startswith("LIUM_POD_ID=") for line in lines)
    assert any(line.startswith("TRAINSTACK_HOME=") for line in lines)
    assert not any(line.startswith("TRAINSTACK_BARE_SESSION") for line in lines)
    stop_supervisor(pod, 30)


def test_a_pod_without_trainstack_says_so(pod: PodConnection) -> None:
    done = pod.run(["env", "TRAINSTACK_HOME=/no/where", "sh", "-c", _START], stdin=b"{}")
    assert done.rc == MISSING
    assert done.stderr == b"there is no trainstack in /no/where\n"


def test_the_pods_environment_has_the_home_of_trainstack(pod: PodConnection) -> None:
    environment = pod_env(pod)
    assert pod.run(["test", "-f", f"{environment['TRAINSTACK_HOME']}/plugins/lium/supervisor.py"]).rc == 0
    assert environment["HOME"] and environment["PATH"]


class Api(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({"path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_process_in_the_pod_reaches_our_loopback_also_after_a_break(pod: PodConnection, until: Callable) -> None:
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    try:
        port = pod.forward_to_pod(site.server_address[1])
        fetch = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/api/health').read().decode())"

        def reached() -> bool:
            try:
                done = pod.run(["python3", "-c", fetch], timeout_s=20)
            except ControlPlaneError:
                return False
            return done.rc == 0 and json.loads(done.stdout) == {"path": "/api/health"}

        assert reached()
        connection = pod._link._connection
        assert connection is not None and pod._loop is not None
        pod._loop.call_soon_threadsafe(connection.abort)
        until(lambda: pod._link._connection is not connection, "the break is noticed")
        until(reached, "the listener is back on the same port")
    finally:
        site.shutdown()
        site.server_close()


def test_files_go_to_the_pod_and_come_back(pod: PodConnection, tmp_path) -> None:
    source = tmp_path / "recipe.yaml"
    source.write_bytes(b"x" * 200_000)
    pod.upload(source, "~/trainstack/in/recipe.yaml")
    assert pod.read("~/trainstack/in/recipe.yaml") == source.read_bytes()
    assert pod.run("ls -A ~/trainstack/in").stdout == b"recipe.yaml\n"


def test_a_pod_that_is_given_back_is_seen_as_dead(pod: PodConnection, world, until: Callable) -> None:
    world.account.release(pod.row.name)
    until(lambda: not pod.alive(), "the connection is down")
    with pytest.raises(ControlPlaneError, match=f"no SSH connection to pod {pod.row.name}"):
        pod.run(["true"], timeout_s=0.3)


def test_trainstack_is_found_where_the_recipe_says(pod, until):
    """A cluster's image has none of ours: what runs lies on a file system of the user's."""
    start_supervisor(
        pod,
        boot({"name": "worker", "argv": ["sh", "-c", 'echo "$TRAINSTACK_HOME"; exec sleep 600']}),
        home=f"{ROOT}/tests/..",
    )
    until(lambda: pod.read("~/trainstack/worker.log").strip().endswith(b"/tests/.."), "services run in that folder")
    assert stop_supervisor(pod, 30) is True
    with pytest.raises(UserError, match=r"no trainstack in /no/such.*pod\.home"):
        run_module(pod, "plugins", b"", 30, home="/no/such")
