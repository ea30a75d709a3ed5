"""The asynchronous half of `tunnel.py`: one asyncssh connection that is opened again whenever it breaks.

Everything here runs on one event loop. Foreign exceptions pass through; `tunnel.py` converts them where the two
halves meet. A reconnect counts as done only when every listener on the pod is back on the port it had, because the
pod's worker was told that port.
"""

import asyncio
import contextlib
import secrets
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import asyncssh

from plugins.errors import ControlPlaneError, TrainstackError, UserError
from plugins.lium.pods import PodRow

LOOPBACK = "127.0.0.1"
KEEPALIVE_S = 10.0
KEEPALIVES_MISSED = 3
ATTEMPT_TIMEOUT_S = 15.0
FIRST_BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 10.0
REFUSALS_BELIEVED = 3  # a pod that has just booted may refuse the key before it was installed

# A half-open connection (the laptop slept) keeps its listener on the pod for hours, and the port is wanted again. It
# may be ended only where it is surely an sshd of ours: the parent of a shell that we ran over that connection.
SESSION_PID = "echo $PPID $(cat /proc/$PPID/comm)"
END_OLD_SESSION = "case $(cat /proc/{pid}/comm) in sshd*) kill {pid};; esac"


@dataclass(frozen=True)
class Completed:
    """How a command ended: its exit status (minus the signal's number if one killed it) and its output."""

    rc: int
    stdout: bytes
    stderr: bytes


@dataclass
class Forward:
    """A listener on the pod's loopback and the port here that it leads to."""

    local_port: int
    remote_port: int  # 0 until the pod gave one


class HostKeyChanged(ControlPlaneError):
    """The pod shows another host key than the pinned one."""


class SshLink:
    """The connection to one pod, kept up by `keep_up()`; `connected` is set while it is usable."""

    def __init__(self, row: PodRow, host: str, key_path: Path, known_hosts: Path) -> None:
        self.row = row
        self.host = host
        self.key_path = key_path
        self.known_hosts = known_hosts
        self.forwards: list[Forward] = []
        self.connected = asyncio.Event()
        self.last_error = "not connected yet"
        self._connection: asyncssh.SSHClientConnection | None = None
        self._session_pid: int | None = None
        self._refusals = 0
        self._refusal: TrainstackError | None = None

    async def keep_up(self) -> None:
        """Open the connection, and again whenever it breaks, until this task is cancelled."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                self._connection = await asyncio.wait_for(self._open(), ATTEMPT_TIMEOUT_S)
            except Exception as error:  # whatever it was: the next try may succeed
                self._note(error)
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)
                continue
            backoff_s = FIRST_BACKOFF_S
            self._refusals, self._refusal = 0, None
            self.connected.set()
            try:
                with contextlib.suppress(asyncssh.Error, OSError):
                    self._session_pid = await self._session_pid_of(self._connection)
                await self._connection.wait_closed()
            finally:
                self.connected.clear()
            self.last_error = "the connection broke"

    def close(self) -> None:
        """Say goodbye, so that the pod frees our listeners at once."""
        if self._connection is not None:
            self._connection.close()

    async def wait_up(self, timeout_s: float, *, believe_refusals: bool = False) -> asyncssh.SSHClientConnection:
        """Wait for the connection; `believe_refusals` raises early when trying again can hardly help."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self._connection is not None and self.connected.is_set():
                return self._connection
            if believe_refusals and self._refusal is not None:
                raise self._refusal
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise ControlPlaneError(
                    f"no SSH connection to pod {self.row.name} ({self.host}:{self.row.ssh_port}) within "
                    f"{timeout_s:.0f} s: {self.last_error}"
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.connected.wait(), min(left_s, 0.1))

    async def run(self, command: str, stdin: bytes, timeout_s: float) -> Completed:
        """Run a command line of the pod's login shell to its end."""
        started = time.monotonic()
        connection = await self.wait_up(timeout_s)
        left_s = max(0.1, timeout_s - (time.monotonic() - started))
        # asyncssh sends no end of file after an empty input, and a command that reads would wait for ever
        feed: dict[str, Any] = {"input": stdin} if stdin else {"stdin": asyncssh.DEVNULL}
        try:
            done = await connection.run(command, encoding=None, timeout=left_s, **feed)
        except asyncssh.TimeoutError:
            raise ControlPlaneError(
                f"a command on pod {self.row.name} did not end within {timeout_s:.0f} s; it may still run there"
            ) from None
        if done.returncode is None:
            raise ControlPlaneError(f"the connection to pod {self.row.name} broke while a command ran; it may have run")
        return Completed(done.returncode, _bytes(done.stdout), _bytes(done.stderr))

    async def forward(self, forward: Forward, timeout_s: float) -> int:
        """Open a listener on the pod and keep it over reconnects; returns the pod's port."""
        connection = await self.wait_up(timeout_s)
        try:
            await self._listen(connection, forward)
        except asyncssh.ChannelListenError as error:
            wanted = f"port {forward.remote_port}" if forward.remote_port else "any port"
            raise ControlPlaneError(
                f"pod {self.row.name} does not listen on {wanted} of its loopback for us ({error}): the port may be "
                "taken, or its SSH server forbids forwarding; a public API address is the other way"
            ) from None
        self.forwards.append(forward)
        return forward.remote_port

    async def upload(self, local: Path, remote: str, timeout_s: float) -> None:
        """Copy a file under a temporary name, then rename it."""
        connection = await self.wait_up(timeout_s)
        async with asyncio.timeout(timeout_s), connection.start_sftp_client() as sftp:
            target = _remote_path(remote)
            temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
            await sftp.makedirs(str(target.parent), exist_ok=True)
            try:
                await sftp.put(str(local), str(temporary), preserve=True)
                await sftp.posix_rename(str(temporary), str(target))
            except BaseException:
                with contextlib.suppress(asyncssh.Error, OSError):
                    await sftp.remove(str(temporary))
                raise

    async def read(self, remote: str, timeout_s: float) -> bytes | None:
        """Read a whole file; None if it does not exist."""
        connection = await self.wait_up(timeout_s)
        async with asyncio.timeout(timeout_s), connection.start_sftp_client() as sftp:
            try:
                async with sftp.open(str(_remote_path(remote)), "rb") as file:
                    return _bytes(await file.read())
            except asyncssh.SFTPNoSuchFile:
                return None

    async def _open(self) -> asyncssh.SSHClientConnection:
        pinned = self._pinned()
        try:
            connection = await asyncssh.connect(
                self.host,
                self.row.ssh_port,
                username=self.row.ssh_user,
                client_keys=[str(self.key_path)],
                known_hosts=str(self.known_hosts) if pinned else None,
                config=None,
                agent_path=None,
                keepalive_interval=KEEPALIVE_S,
                keepalive_count_max=KEEPALIVES_MISSED,
                connect_timeout=ATTEMPT_TIMEOUT_S,
                login_timeout=ATTEMPT_TIMEOUT_S,
            )
        except asyncssh.HostKeyNotVerifiable:
            raise HostKeyChanged(
                f"pod {self.row.name} shows a host key other than the one pinned in {self.known_hosts}: it was "
                "rebooted by someone else, or something stands in between; if you trust it, delete that file"
            ) from None
        try:
            if not pinned:
                self._pin(connection)
            await self._restore_forwards(connection)
        except BaseException:
            connection.abort()
            raise
        return connection

    def _note(self, error: Exception) -> None:
        """Remember why no connection came up, and whether trying again can hardly help."""
        self.last_error = describe(error)
        if isinstance(error, HostKeyChanged):
            self._refusal = error
        elif isinstance(error, asyncssh.PermissionDenied | asyncssh.KeyImportError):
            self._refusals += 1
            if self._refusals >= REFUSALS_BELIEVED:
                self._refusal = UserError(
                    f"pod {self.row.name} does not take SSH key {self.key_path} for user {self.row.ssh_user} "
                    f"({self.last_error}): use the key that the pod was rented with, without a passphrase"
                )

    def _pinned(self) -> bool:
        if not self.known_hosts.is_file():
            return False
        keys, *_ = asyncssh.match_known_hosts(str(self.known_hosts), self.host, "", self.row.ssh_port)
        return bool(keys)

    def _pin(self, connection: asyncssh.SSHClientConnection) -> None:
        """Trust on first use, in the format the Lium SDK writes."""
        key = connection.get_server_host_key()
        if key is None:
            raise ControlPlaneError(f"pod {self.row.name} showed no host key")
        host = self.host if self.row.ssh_port == 22 else f"[{self.host}]:{self.row.ssh_port}"
        algorithm, blob = key.export_public_key().split()[:2]
        self.known_hosts.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.known_hosts.touch(mode=0o600)
        with self.known_hosts.open("ab") as file:
            file.write(b" ".join([host.encode(), algorithm, blob]) + b"\n")

    async def _restore_forwards(self, connection: asyncssh.SSHClientConnection) -> None:
        for forward in self.forwards:
            try:
                await self._listen(connection, forward)
            except asyncssh.ChannelListenError:
                if self._session_pid is not None:
                    await self._quietly(connection, END_OLD_SESSION.format(pid=self._session_pid))
                raise

    async def _listen(self, connection: asyncssh.SSHClientConnection, forward: Forward) -> None:
        listener = await connection.forward_remote_port(LOOPBACK, forward.remote_port, LOOPBACK, forward.local_port)
        forward.remote_port = forward.remote_port or listener.get_port()

    async def _session_pid_of(self, connection: asyncssh.SSHClientConnection) -> int | None:
        pid, _, name = (await self._quietly(connection, SESSION_PID)).partition(" ")
        return int(pid) if pid.isdigit() and int(pid) > 1 and name.startswith("sshd") else None

    async def _quietly(self, connection: asyncssh.SSHClientConnection, command: str) -> str:
        done = await connection.run(command, stdin=asyncssh.DEVNULL, timeout=ATTEMPT_TIMEOUT_S)
        return str(done.stdout or "").strip()


def describe(error: BaseException) -> str:
    """Say what an SSH or socket error was, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _remote_path(remote: str) -> PurePosixPath:
    """A pod's path for SFTP, where a relative path starts in the home directory and `~` is a plain name."""
    return PurePosixPath(remote.removeprefix("~/"))


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value or b"")
