"""The connection to a pod, against a real SSH server on loopback."""

import asyncio
import http.server
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest

from plugins.errors import ControlPlaneError, UserError
from plugins.lium.pods import PodRow
from plugins.lium.tunnel import PodConnection, known_hosts_file


def until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


class SshServer:
    """An asyncssh server with shell commands, SFTP and -R, whose connections can be cut."""

    def __init__(self, authorized_keys: Path) -> None:
        self.authorized_keys = authorized_keys
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.allow_listening = True
        self.loop = asyncio.new_event_loop()
        self.port = 0
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.start()

    def do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def start(self) -> None:
        server = self

        class Session(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                server.connections.append(conn)

            def server_requested(self, listen_host: str, listen_port: int) -> bool:
                return server.allow_listening

        async def listen() -> asyncssh.SSHAcceptor:
            return await asyncssh.listen(
                "127.0.0.1",
                self.port,
                server_factory=Session,
                server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
                authorized_client_keys=str(self.authorized_keys),
                process_factory=serve_command,
                sftp_factory=True,
                encoding=None,
                reuse_address=True,
            )

        self.acceptor = self.do(listen())
        self.port = self.acceptor.get_port()

    def cut(self) -> None:
        """Break every connection without a goodbye."""

        async def abort() -> None:
            for connection in self.connections:
                connection.abort()
            self.connections.clear()

        self.do(abort())

    def stop(self) -> None:
        async def end() -> None:
            self.acceptor.close()
            await self.acceptor.wait_closed()

        self.do(end())
        self.cut()

    def close(self) -> None:
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()


async def serve_command(process: asyncssh.SSHServerProcess) -> None:
    stdin = await process.stdin.read()
    done = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", process.command or "true"], input=stdin, capture_output=True, timeout=10
    )
    process.stdout.write(done.stdout)
    process.stderr.write(done.stderr)
    process.stdout.write_eof()
    process.exit(done.returncode)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "id_ed25519"
    made = asyncssh.generate_private_key("ssh-ed25519")
    made.write_private_key(str(path))
    made.write_public_key(f"{path}.pub")
    return path


@pytest.fixture
def server(key: Path) -> Iterator[SshServer]:
    made = SshServer(Path(f"{key}.pub"))
    yield made
    made.close()


def row(port: int) -> PodRow:
    return PodRow(
        id="pod-1", name="ts-x-sft-a1", status="RUNNING", ssh_host="127.0.0.1", ssh_port=port, ssh_user="root"
    )


@pytest.fixture
def pod(server: SshServer, key: Path, tmp_path: Path) -> Iterator[PodConnection]:
    connection = PodConnection(row(server.port), key, tmp_path / "known" / "pod-1")
    connection.connect(20)
    yield connection
    connection.close()


@pytest.fixture
def site() -> Iterator[int]:
    """An HTTP server on this machine's loopback: what the pod shall reach. Yields its port."""

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"hello from the laptop"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made.server_address[1]
    made.shutdown()
    made.server_close()


def get(port: int) -> bytes | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            return answer.read()
    except OSError:
        return None


def test_a_command_gets_its_stdin_and_gives_status_and_output(pod: PodConnection) -> None:
    done = pod.run("cat; echo oops >&2; exit 7", stdin=b"\x00secret")
    assert (done.rc, done.stdout, done.stderr) == (7, b"\x00secret", b"oops\n")
    assert pod.run(["echo", "two words", "$HOME"]).stdout == b"two words $HOME\n"


def test_a_megabyte_goes_both_ways(pod: PodConnection) -> None:
    data = bytes(range(256)) * 4096
    assert pod.run(["cat"], stdin=data).stdout == data


def test_a_command_that_takes_too_long_is_given_up(pod: PodConnection) -> None:
    with pytest.raises(ControlPlaneError, match="did not end within 0 s; it may still run"):
        pod.run("sleep 1", timeout_s=0.2)
    assert pod.run(["true"]).rc == 0


def test_an_upload_makes_parents_and_replaces_the_file_at_once(pod: PodConnection, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "a" / "b" / "file"
    source.write_bytes(b"one")
    source.chmod(0o600)
    pod.upload(source, str(target))
    source.write_bytes(b"two")
    pod.upload(source, str(target))
    assert pod.read(str(target)) == b"two"
    assert [item.name for item in target.parent.iterdir()] == ["file"]
    assert target.stat().st_mode & 0o777 == 0o600


def test_files_that_are_not_there(pod: PodConnection, tmp_path: Path) -> None:
    assert pod.read_if_exists(str(tmp_path / "no")) is None
    with pytest.raises(ControlPlaneError, match="pod ts-x-sft-a1 has no file"):
        pod.read(str(tmp_path / "no"))
    with pytest.raises(UserError, match="is not a file"):
        pod.upload(tmp_path / "no", "x")


def test_the_pod_reaches_our_loopback_and_does_so_again_after_the_connection_broke(
    pod: PodConnection, server: SshServer, site: int
) -> None:
    port = pod.forward_to_pod(site)
    assert port != site
    assert get(port) == b"hello from the laptop"
    server.cut()
    until(lambda: get(port) is not None, "the listener is back on the same port")
    assert pod.alive()
    assert pod.run(["true"]).rc == 0


def test_it_keeps_trying_while_the_pod_is_away_and_while_its_port_is_taken(
    key: Path, server: SshServer, site: int, tmp_path: Path
) -> None:
    pins = tmp_path / "pins"
    pod = PodConnection(row(server.port), key, pins)
    pod.connect(20)
    try:
        port = pod.forward_to_pod(site)
        server.stop()
        until(lambda: not pod.alive(), "the break is noticed")
        with pytest.raises(ControlPlaneError, match="no SSH connection to pod ts-x-sft-a1"):
            pod.run(["true"], timeout_s=0.3)
        with socket.create_server(("127.0.0.1", port), reuse_port=False):
            pins.unlink()  # the server below has a new host key
            server.start()
            until(lambda: "listen" in pod.last_error.lower(), "a reconnect without its listener does not count")
            assert not pod.alive()
        until(lambda: get(port) is not None, "the listener is back on the same port")
    finally:
        pod.close()


def test_a_server_that_forbids_listening_is_named(pod: PodConnection, server: SshServer) -> None:
    server.allow_listening = False
    with pytest.raises(ControlPlaneError, match="forbids forwarding"):
        pod.forward_to_pod(1)


def test_the_first_host_key_is_pinned_and_another_one_refused(server: SshServer, key: Path, tmp_path: Path) -> None:
    pins = tmp_path / "known" / "pod-1"
    first = PodConnection(row(server.port), key, pins)
    first.connect(20)
    first.close()
    assert pins.read_text().startswith(f"[127.0.0.1]:{server.port} ssh-ed25519 AAAA")
    assert pins.stat().st_mode & 0o777 == 0o600
    before = pins.read_text()
    again = PodConnection(row(server.port), key, pins)
    again.connect(20)
    again.close()
    assert pins.read_text() == before
    server.stop()
    server.start()  # a new host key
    changed = PodConnection(row(server.port), key, pins)
    try:
        with pytest.raises(ControlPlaneError, match=r"host key other than the one pinned.*delete that file"):
            changed.connect(20)
    finally:
        changed.close()


def test_the_sdk_accepts_our_pin_and_we_its_own(server: SshServer, key: Path, tmp_path: Path, monkeypatch) -> None:
    import paramiko

    monkeypatch.setenv("HOME", str(tmp_path))
    pins = known_hosts_file("pod-1")
    assert pins == tmp_path / ".lium" / "known_hosts" / "pod-1"
    ours = PodConnection(row(server.port), key, pins)
    ours.connect(20)
    ours.close()

    client = paramiko.SSHClient()
    client.load_host_keys(str(pins))
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    client.connect("127.0.0.1", server.port, username="root", key_filename=str(key), allow_agent=False)
    client.save_host_keys(str(pins))
    client.close()
    again = PodConnection(row(server.port), key, pins)
    again.connect(20)
    again.close()


def test_a_wrong_key_is_the_users_error(server: SshServer, tmp_path: Path) -> None:
    other = tmp_path / "other"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(other))
    pod = PodConnection(row(server.port), other, tmp_path / "pins")
    try:
        with pytest.raises(UserError, match=r"does not take SSH key .*other for user root"):
            pod.connect(30)
    finally:
        pod.close()
    with pytest.raises(UserError, match="does not exist"):
        PodConnection(row(server.port), tmp_path / "none", tmp_path / "pins").connect(1)


def test_a_pod_that_does_not_answer_is_named_with_its_address(key: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    pod = PodConnection(row(port), key, tmp_path / "pins")
    try:
        with pytest.raises(ControlPlaneError, match=rf"ts-x-sft-a1 \(127.0.0.1:{port}\) within"):
            pod.connect(0.5)
    finally:
        pod.close()


def test_a_pod_without_an_address_is_refused(key: Path, tmp_path: Path) -> None:
    with pytest.raises(ControlPlaneError, match="PENDING"):
        PodConnection(PodRow(id="p", name="n", status="PENDING"), key, tmp_path / "pins")


def test_close_can_be_called_again_and_ends_what_waits(pod: PodConnection) -> None:
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            pod.run("sleep 2")
        except ControlPlaneError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: pod.alive(), "connected")
    pod.close()
    pod.close()
    waiting.join(10)
    assert not waiting.is_alive() and len(errors) == 1
    assert not pod.alive()
    with pytest.raises(ControlPlaneError, match="closed"):
        pod.run(["true"])
