"""The SSH server of one pod: who may come in, SFTP, scp, forwarding, and the loss of the network. All on loopback.

Each comment marked *trap* is a behaviour of asyncssh or of a client that broke a real session until it was met
(reference: lium.md section 7). Authentication is by the public keys of the rent, for any user name; a pod has one user.
Commands and shells are `ssh_session.py`'s.
"""

import contextlib
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import asyncssh

from plugins.lium.emulator import ssh_session
from plugins.lium.emulator.pod_process import Container
from plugins.lium.emulator.sftp import PodSFTP

HOST = "127.0.0.1"


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


@dataclass
class Listener:
    """A pod's SSH server on one port, its open connections, and whether the network carries them.

    A pod has one host key for each boot, also when its network was away in between.
    """

    options: dict[str, Any]
    clients: set[asyncssh.SSHServerConnection]
    port: int = 0
    acceptor: asyncssh.SSHAcceptor | None = None
    dead_end: socket.socket | None = None

    async def serve(self, port: int | None) -> None:
        """Listen on `port` again if it is free, else on any."""
        self._close_port()
        try:
            self.acceptor = await asyncssh.listen(HOST, port or 0, **self.options)
        except OSError:
            self.acceptor = await asyncssh.listen(HOST, 0, **self.options)
        self.port = self.acceptor.get_port()

    def cut(self, how: str) -> None:
        """The network is gone: drop every client; new ones are refused ("refuse") or never answered ("hang").

        The port stays taken, or another pod could get it.
        """
        port = self.port
        self.close()
        self.dead_end = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.dead_end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            self.dead_end.bind((HOST, port))
            if how == "hang":
                self.dead_end.listen(128)  # the kernel completes the connection, and nobody ever speaks

    def close(self) -> None:
        """Stop listening and drop every client, with their forwardings."""
        self._close_port()
        for conn in list(self.clients):
            conn.abort()

    def _close_port(self) -> None:
        for end in (self.acceptor, self.dead_end):
            if end is not None:
                end.close()
        self.acceptor = self.dead_end = None


async def listen(container: Container, public_keys: list[str], port: int | None) -> Listener:
    """Serve a pod on 127.0.0.1 (see `Listener.serve`); every boot has a host key of its own."""
    keys = {_key_body(line) for line in public_keys}
    clients: set[asyncssh.SSHServerConnection] = set()

    async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
        await ssh_session.run(container, process)

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
    listener = Listener(options, clients)
    await listener.serve(port)
    return listener
