"""The SSH server of one pod: commands, shells, SFTP, scp, and forwarding, all on loopback.

Each comment marked *trap* is a behaviour of asyncssh or of a client that broke a real session until it was met
(reference: lium.md section 7). Authentication is by the public keys of the rent, for any user name; a pod has one user.
"""

import asyncio
import contextlib
import fcntl
import ipaddress
import os
import signal
import socket
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import asyncssh

from plugins.lium.emulator.pod_process import Container, Running
from plugins.lium.emulator.sftp import PodSFTP

HOST = "127.0.0.1"
CHUNK_BYTES = 65536
HANGUP_WAIT_S = 0.5
CLIENT_GONE = (OSError, asyncssh.Error)


class _Session(asyncssh.SSHServer):
    """One client connection: who may come in, and where it may forward to."""

    def __init__(self, keys: set[str], clients: set[asyncssh.SSHServerConnection]) -> None:
        self._keys = keys
        self._clients = clients
        self._conn: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Keep the connection, and answer its packets without the kernel's delay."""
        self._conn = conn
        self._clients.add(conn)
        _acknowledge_at_once(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._conn:
            self._clients.discard(self._conn)

    def begin_auth(self, username: str) -> bool:
        """Ask every user for a key."""
        return True

    def public_key_auth_supported(self) -> bool:
        """Keys only."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Whether the key came with the rent."""
        return _key_body(key.export_public_key().decode()) in self._keys

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        """`ssh -L`: to loopback only."""
        return _is_loopback(dest_host)

    def server_requested(self, listen_host: str, listen_port: int) -> Any:
        """`ssh -R`. *Trap*: answering True binds all interfaces for "" and "*", so the listener is made here."""
        assert self._conn is not None
        return self._conn.forward_local_port(HOST, listen_port, listen_host, listen_port)


def _acknowledge_at_once(conn: asyncssh.SSHServerConnection) -> None:
    """*Trap*: paramiko leaves Nagle's algorithm on, so each request waits 40 ms for a delayed ACK.

    The kernel forgets TCP_QUICKACK after some packets; it is set again at each arrival.
    """
    sock = conn.get_extra_info("socket")
    received: Callable[[bytes], None] = conn.data_received

    def data_received(data: bytes, datatype: Any = None) -> None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        received(data)

    conn.data_received = data_received  # type: ignore[method-assign]


def _is_loopback(host: str) -> bool:
    try:
        return host in ("", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _key_body(line: str) -> str:
    return " ".join(line.split()[:2])


@dataclass(frozen=True)
class Listener:
    """A pod's SSH server and its open connections."""

    acceptor: asyncssh.SSHAcceptor
    clients: set[asyncssh.SSHServerConnection]

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return self.acceptor.get_port()

    def close(self) -> None:
        """Stop listening and drop every client, with their forwardings."""
        self.acceptor.close()
        for conn in list(self.clients):
            conn.abort()


async def listen(container: Container, public_keys: list[str], port: int | None) -> Listener:
    """Serve a pod on 127.0.0.1, on `port` again if it is free; every boot has a host key of its own."""
    keys = {_key_body(line) for line in public_keys}
    clients: set[asyncssh.SSHServerConnection] = set()

    async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
        await _run(container, process)

    options: dict[str, Any] = {
        "server_factory": lambda: _Session(keys, clients),
        "server_host_keys": [asyncssh.generate_private_key("ssh-ed25519")],
        "process_factory": run,
        "sftp_factory": lambda chan: PodSFTP(chan, container.files, container.home),
        "allow_scp": True,
        "encoding": None,  # *trap*: bytes through, and no line editing on our side of a terminal
        "line_editor": False,
        "keepalive_interval": 30,
        "login_timeout": 30,
    }
    try:
        acceptor = await asyncssh.listen(HOST, port or 0, **options)
    except OSError:
        acceptor = await asyncssh.listen(HOST, 0, **options)
    return Listener(acceptor, clients)


async def _run(container: Container, process: asyncssh.SSHServerProcess[bytes]) -> None:
    """One exec or shell request, from start to exit status."""
    extra = {name: value for name, value in process.env.items() if name == "LANG" or name.startswith("LC_")}
    tty = process.term_type is not None
    run_in = _run_on_terminal if tty else _run_on_pipes
    try:
        status = await run_in(container, process, container.shell_argv(process.command, tty=tty), extra)
    except ConnectionError as error:
        status = signal.SIGKILL
        with contextlib.suppress(*CLIENT_GONE):
            process.stderr.write(f"{error}\n".encode())
    with contextlib.suppress(*CLIENT_GONE):
        # *Trap*: asyncssh's exit() sends no EOF; paramiko then waits for one until its own deadline.
        process.stdout.write_eof()
        if os.WIFSIGNALED(status):
            process.exit_with_signal(signal.Signals(os.WTERMSIG(status)).name.removeprefix("SIG"))
        else:
            process.exit(os.WEXITSTATUS(status))


async def _run_on_pipes(
    container: Container, process: asyncssh.SSHServerProcess[bytes], argv: list[str], extra: dict[str, str]
) -> int:
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = os.pipe(), os.pipe(), os.pipe()
    try:
        run = container.spawn(argv, (in_read, out_write, err_write), extra, tty=False)
    except ConnectionError:
        for fd in (in_write, out_read, err_read):
            os.close(fd)
        raise
    finally:
        for fd in (in_read, out_write, err_write):
            os.close(fd)
    feeding = asyncio.create_task(_feed(container, process, run, in_write, None))
    # As with OpenSSH, the session lasts until the command has ended *and* nobody holds its output any more.
    await asyncio.gather(_drain(out_read, process.stdout), _drain(err_read, process.stderr))
    status = await run.done
    await _stop(feeding)
    return status


async def _run_on_terminal(
    container: Container, process: asyncssh.SSHServerProcess[bytes], argv: list[str], extra: dict[str, str]
) -> int:
    master, slave = os.openpty()
    _set_size(master, process.term_size)
    try:
        run = container.spawn(argv, (slave, slave, slave), extra | {"TERM": process.term_type or "xterm"}, tty=True)
    except ConnectionError:
        os.close(master)
        raise
    finally:
        os.close(slave)
    feeding = asyncio.create_task(_feed(container, process, run, os.dup(master), master))
    draining = asyncio.create_task(_drain(os.dup(master), process.stdout))
    gone = asyncio.create_task(process.channel.wait_closed())
    try:
        ends: set[asyncio.Future[Any]] = {run.done, gone}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not run.done.done():
            container.signal(run, signal.SIGHUP)  # the terminal is gone: what the kernel would say
        status = await run.done
        await asyncio.wait([draining], timeout=HANGUP_WAIT_S)
    finally:
        await _stop(feeding, draining, gone)
        os.close(master)
    return status


async def _feed(
    container: Container, process: asyncssh.SSHServerProcess[bytes], run: Running, fd: int, terminal: int | None
) -> None:
    """Client to command: bytes, EOF, signals, window size."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(fd, "wb", 0))
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        while True:
            try:
                data = await process.stdin.read(CHUNK_BYTES)
            except asyncssh.TerminalSizeChanged as change:
                if terminal is not None:
                    _set_size(terminal, change.term_size)
                continue
            except (asyncssh.SignalReceived, asyncssh.BreakReceived) as received:
                name = getattr(received, "signal", "INT")
                container.signal(run, signal.Signals[f"SIG{name}"])
                continue
            if not data:
                if terminal is not None:
                    writer.write(b"\x04")  # a terminal has no EOF but Ctrl-D
                return
            writer.write(data)
            await writer.drain()
    except (KeyError, OSError, asyncssh.Error):
        return
    finally:
        transport.close()


async def _drain(fd: int, to: asyncssh.SSHWriter[bytes]) -> None:
    """Command to client. *Trap*: goes on reading when the client is gone, or the command would block for ever."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=CHUNK_BYTES)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0))
    listening = True
    try:
        while data := await reader.read(CHUNK_BYTES):
            if listening:
                try:
                    to.write(data)
                    await to.drain()
                except CLIENT_GONE:
                    listening = False
    except OSError:
        return  # EIO: the last process on a terminal has closed it
    finally:
        transport.close()


def _set_size(terminal: int, size: tuple[int, int, int, int]) -> None:
    width, height, pixel_width, pixel_height = size
    with contextlib.suppress(OSError):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, pixel_width, pixel_height))


async def _stop(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
