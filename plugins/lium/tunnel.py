"""One SSH connection to a pod: commands, files, and the way back from the pod to this machine.

A pod cannot reach a Prefect API that listens on the laptop's loopback, so the pod gets a listener on its own loopback
whose connections come out here. The methods are plain and bounded in time; the connection itself (`ssh_link.py`) lives
on an event loop in a thread of its own. What to run on the pod is `bootstrap.py`'s.
"""

import asyncio
import contextlib
import shlex
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from plugins.errors import ControlPlaneError, UserError
from plugins.lium.pods import PodRow
from plugins.lium.ssh_link import Completed, Forward, SshLink, describe

__all__ = ["Completed", "PodConnection", "known_hosts_file"]

T = TypeVar("T")

CLOSE_TIMEOUT_S = 3.0
CANCEL_ROUNDS = 3


def known_hosts_file(pod_id: str) -> Path:
    """Where the Lium SDK and CLI pin this pod's host key; the same file serves `PodConnection`."""
    from lium.sdk.client import known_hosts_path

    return Path(known_hosts_path(pod_id))


class PodConnection:
    """The SSH connection to one pod; safe to use from several threads.

    `known_hosts` is the file with this pod's pinned host key (`known_hosts_file`): the first connection writes it, a
    different key later is refused. After `connect()` the connection is kept up until `close()`. Every method raises
    ControlPlaneError when the pod does not answer in time, and after `close()`.
    """

    def __init__(self, row: PodRow, key_path: Path, known_hosts: Path) -> None:
        if row.ssh_host is None:
            raise ControlPlaneError(f"pod {row.name} ({row.status}) has no SSH address yet: wait until it is ready")
        self.row = row
        self._key_path = key_path
        self._link = SshLink(row, row.ssh_host, key_path, known_hosts)
        self._lock = threading.Lock()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def connect(self, timeout_s: float = 60.0) -> None:
        """Connect, trying again until `timeout_s` is over, and keep the connection up from then on.

        UserError: the private key cannot be read or the pod does not accept it. ControlPlaneError: no answer in time,
        or the pod shows a host key other than the pinned one.
        """
        if not self._key_path.is_file():
            raise UserError(f"SSH key {self._key_path} does not exist: set the path of your private key")
        with self._lock:
            if self._loop is None and not self._closed:
                self._start()
        self._call(lambda: self._link.wait_up(timeout_s, believe_refusals=True), timeout_s)

    def run(self, command: Sequence[str] | str, *, stdin: bytes | None = None, timeout_s: float = 60.0) -> Completed:
        """Run an argv list, or a text as a script of the pod's login shell, and wait for its end.

        Secrets belong on `stdin`. A command whose end was not seen (time-out, lost connection) raises; it may
        have run, and a time-out does not end it on the pod.
        """
        text = command if isinstance(command, str) else shlex.join(command)
        return self._call(lambda: self._link.run(text, stdin or b"", timeout_s), timeout_s)

    def forward_to_pod(self, local_port: int, remote_port: int = 0, timeout_s: float = 30.0) -> int:
        """Listen on the pod's loopback and bring every connection to our loopback's `local_port`.

        Returns the pod's port (the one asked for, or a free one for 0). It stays the same over reconnects.
        """
        return self._call(lambda: self._link.forward(Forward(local_port, remote_port), timeout_s), timeout_s)

    def upload(self, local: Path, remote: str, timeout_s: float = 600.0) -> None:
        """Copy a file to the pod: parents are made, and `remote` is the old file or the whole new one, never a part."""
        if not local.is_file():
            raise UserError(f"{local} is not a file: it cannot be copied to pod {self.row.name}")
        self._call(lambda: self._link.upload(local, remote, timeout_s), timeout_s)

    def read(self, remote: str, timeout_s: float = 60.0) -> bytes:
        """Read a whole file of the pod; one that does not exist raises ControlPlaneError."""
        content = self.read_if_exists(remote, timeout_s)
        if content is None:
            raise ControlPlaneError(f"pod {self.row.name} has no file {remote}")
        return content

    def read_if_exists(self, remote: str, timeout_s: float = 60.0) -> bytes | None:
        """Read a whole file of the pod, or None if it does not exist."""
        return self._call(lambda: self._link.read(remote, timeout_s), timeout_s)

    def alive(self) -> bool:
        """Whether the connection is up as far as we know; a silent peer is noticed by keepalives within 40 s."""
        return not self._closed and self._link.connected.is_set()

    @property
    def last_error(self) -> str:
        """What broke the connection or kept it from opening, for messages."""
        return self._link.last_error

    def close(self) -> None:
        """End the connection and its listeners. May be called any number of times; never hangs."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return

        def end() -> None:
            self._link.close()
            loop.call_later(0.05, loop.stop)  # time for the goodbye to be sent

        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(end)
        if thread is not threading.current_thread():
            thread.join(CLOSE_TIMEOUT_S)

    def _start(self) -> None:
        loop = asyncio.new_event_loop()

        def serve() -> None:
            keeper = loop.create_task(self._link.keep_up())
            try:
                loop.run_forever()
                keeper.cancel()
                loop.run_until_complete(_cancel_all())
            finally:
                loop.close()

        self._loop = loop
        self._thread = threading.Thread(target=serve, name=f"ssh-{self.row.name}", daemon=True)
        self._thread.start()

    def _call(self, work: Callable[[], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        """Run a coroutine on the loop's thread; its foreign errors become ours here and nowhere else."""
        with self._lock:
            loop = self._loop
            if loop is None:
                state = "closed" if self._closed else "not open: connect first"
                raise ControlPlaneError(f"the connection to pod {self.row.name} is {state}")
            future: Future[T] = asyncio.run_coroutine_threadsafe(work(), loop)
        try:
            return future.result(timeout_s + 1)  # the work's own limit comes first and says more
        except CancelledError:
            raise ControlPlaneError(f"the connection to pod {self.row.name} was closed meanwhile") from None
        except TimeoutError:
            future.cancel()
            raise ControlPlaneError(f"pod {self.row.name} did not answer over SSH within {timeout_s:.0f} s") from None
        except (asyncssh.Error, OSError, EOFError) as error:
            raise ControlPlaneError(f"SSH to pod {self.row.name} failed: {describe(error)}") from error
        except BaseException:
            future.cancel()  # Ctrl-C while waiting
            raise


async def _cancel_all() -> None:
    for _ in range(CANCEL_ROUNDS):  # the end of a connection may begin new ones
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if not tasks:
            return
        await asyncio.wait(tasks, timeout=1.0)
