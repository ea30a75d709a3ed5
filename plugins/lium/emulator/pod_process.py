"""A pod as a process tree: start it, run commands in it, end every process in it.

The processes are children of `pod_init.py`, never of the emulator; this module is the emulator's end of the control
socket. Namespace mode puts the tree into its own mount and PID namespace with `unshare` (as root, or through a user
namespace); plain mode has neither. What the pod's directories are is left to `pod_files`, what runs to `ssh_server`.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from plugins.lium.emulator import pod_init
from plugins.lium.emulator.pod_files import MARKER, PodFiles, lay_out, shell

START_TIMEOUT_S = 20.0
END_TIMEOUT_S = 10.0


class PodStartError(Exception):
    """The pod's first process did not come up; the text says why (the emulator makes it the pod's event)."""


@dataclass
class Running:
    """One command in a pod; `done` gives the status as of waitpid."""

    number: int
    done: asyncio.Future[int]


@dataclass
class Container:
    """A started pod. `env` is the environment of its init and the base of every command's."""

    pod_id: str
    files: PodFiles
    env: dict[str, str]
    process: asyncio.subprocess.Process
    control: socket.socket
    running: dict[int, Running] = field(default_factory=dict)
    next_number: int = 0
    closed: bool = False

    @property
    def home(self) -> str:
        """The directory where commands start, as the pod sees it."""
        return self.env["HOME"]

    def spawn(self, argv: list[str], fds: tuple[int, int, int], extra: dict[str, str], *, tty: bool) -> Running:
        """Start `argv` in the pod on the three descriptors (the caller closes its copies afterwards).

        Raises ConnectionError when the pod has ended.
        """
        self.next_number += 1
        run = Running(self.next_number, asyncio.get_running_loop().create_future())
        request = {"argv": argv, "env": self.env | extra, "cwd": self.home, "tty": tty}
        # A command may be longer than a socket message can be, so the request travels as a file in memory.
        with open(os.memfd_create("request"), "wb") as body:  # noqa: PTH123 - a file descriptor, not a path
            body.write(json.dumps(request).encode())
            body.flush()
            message = json.dumps({"op": "spawn", "id": run.number}).encode()
            try:
                socket.send_fds(self.control, [message], [body.fileno(), *fds])
            except OSError as error:
                raise ConnectionError(f"pod {self.pod_id} has ended") from error
        self.running[run.number] = run
        return run

    def signal(self, run: Running, number: int) -> None:
        """Send a signal to the process group of a command."""
        with contextlib.suppress(OSError):
            self.control.send(json.dumps({"op": "signal", "id": run.number, "signal": number}).encode())

    def shell_argv(self, command: str | None, *, tty: bool) -> list[str]:
        """What sshd would start: the user's shell, interactive on a terminal.

        Not a login shell: /etc/profile of the host would replace the pod's PATH.
        """
        if command is not None:
            return [shell(), "-c", command]
        return [shell(), "-i"] if tty else [shell()]

    def on_message(self) -> None:
        """Read one report of the init (called by the event loop)."""
        try:
            data = self.control.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        message = json.loads(data)
        run = self.running.pop(message.get("exited", -1), None)
        if run and not run.done.done():
            run.done.set_result(message["status"])

    def _lost(self) -> None:
        """The init is gone: every command in the pod was killed."""
        asyncio.get_running_loop().remove_reader(self.control)
        for run in self.running.values():
            if not run.done.done():
                run.done.set_result(signal.SIGKILL)
        self.running.clear()

    async def end(self) -> None:
        """End every process of the pod; returns when none is left. Safe to call twice."""
        if self.closed:
            return
        self.closed = True
        self._lost()
        self.control.close()
        try:
            await asyncio.wait_for(self.process.wait(), END_TIMEOUT_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        if not self.files.namespace:
            await asyncio.to_thread(sweep, [self.pod_id])


async def start(pod_id: str, files: PodFiles, env: dict[str, str], *, mode: str) -> Container:
    """Start a pod's first process. `mode` is "namespace" or "plain". Raises PodStartError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # -I -S: the init needs nothing but the standard library, and starts three times faster
    argv = [sys.executable, "-I", "-S", str(Path(pod_init.__file__)), str(theirs.fileno())]
    try:
        process = await asyncio.create_subprocess_exec(
            *(_namespace_argv() if mode == "namespace" else []),
            *argv,
            env=env,
            pass_fds=[theirs.fileno()],
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C on the emulator's terminal is not for the pods
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    container = Container(pod_id, files, env, process, ours)
    setup = {
        "mode": mode,
        "rootfs": str(files.rootfs),
        "private": files.private(),
        "shares": files.needed_shares(),
        "scratch": str(files.tmp),
    }
    try:
        await _set_up(container, setup)
    except BaseException:
        await container.end()
        raise
    asyncio.get_running_loop().add_reader(ours, container.on_message)
    return container


async def _set_up(container: Container, setup: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    answer: dict[str, Any] = {"error": "its first process ended at once"}
    with contextlib.suppress(OSError, ValueError, TimeoutError):
        await loop.sock_sendall(container.control, json.dumps(setup).encode())
        answer = json.loads(await asyncio.wait_for(loop.sock_recv(container.control, 65536), START_TIMEOUT_S))
    if not answer.get("ready"):
        raise PodStartError(f"pod {container.pod_id} did not start: {answer['error']}")


def _namespace_argv() -> list[str]:
    unshare, setpriv = shutil.which("unshare"), shutil.which("setpriv")
    if not unshare:
        raise PodStartError("no `unshare` (util-linux) on this machine")
    # The control socket's end already ends the pod; the death signal is for an init that is stopped or stuck.
    death = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
    return [*death, unshare, *([] if os.geteuid() == 0 else ["-U", "-r"]), "-m", "-p", "-f", "--kill-child"]


async def choose_mode(asked: str, state_dir: Path) -> str:
    """The mode to use: "namespace" or "plain"; `auto` boots an empty pod once to see.

    Raises UserError when "namespace" was asked for and this machine does not allow it.
    """
    if asked == "plain":
        return "plain"
    files = lay_out(state_dir, "probe", None, [], shares=(), namespace=True)
    try:
        await (await start("probe", files, {"PATH": "/usr/bin:/bin"}, mode="namespace")).end()
    except PodStartError as error:
        if asked == "namespace":
            raise UserError(f"--mode namespace does not work on this machine ({error}); use --mode plain") from error
        return "plain"
    finally:
        files.remove()
    return "namespace"


def sweep(pod_ids: Iterable[str]) -> int:
    """Kill every process on the host that carries one of these pods' marker; returns how many were found.

    Needed where no PID namespace does it: after an init that was itself killed with -9.
    """
    markers = {f"{MARKER}={pod_id}".encode() for pod_id in pod_ids}
    total = 0
    while True:
        found = [pid for pid in _pids() if markers & _environ(pid)] if markers else []
        if not found:
            return total
        total += len(found)
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environ(pid: int) -> set[bytes]:
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))  # a zombie's is empty
    except OSError:
        return set()
