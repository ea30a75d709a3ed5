"""Find and end processes for good: Ray's own tools leave agents and daemonised children behind.

Linux only (/proc, prctl), standard library only. The head and its guard adopt every orphan below them, so that "all
descendants" really is all.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies (prctl PR_SET_CHILD_SUBREAPER)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def reap() -> set[int]:
    """Collect the children that ended, adopted ones too; gives their process ids."""
    ended: set[int] = set()
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.add(pid)


def descendants(root: int) -> set[int]:
    """Process ids of everything alive below `root`, without `root`; zombies do not count."""
    children: dict[int, list[int]] = {}
    alive = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in brackets may hold anything; the fields that count stand behind the last bracket.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        pid = int(entry.name)
        children.setdefault(int(parent), []).append(pid)
        if state not in "ZX":
            alive.add(pid)
    below: set[int] = set()
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in below:
                below.add(pid)
                waiting.append(pid)
    return below & alive


def children_named(root: int, name: str) -> set[int]:
    """Processes below `root` whose kernel name (at most 15 characters) is `name`."""
    found = set()
    for pid in descendants(root):
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                found.add(pid)
        except OSError:
            continue
    return found


def marked(variable: str, value: str) -> set[int]:
    """Processes of this user that were started with `variable=value` in their environment; never this one."""
    wanted = f"{variable}={value}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
        except OSError:
            continue  # gone, or not ours
    return found


def end_all(find: Callable[[], set[int]], *, grace_s: float, kill_s: float = 3.0) -> set[int]:
    """SIGTERM to what `find` gives, after `grace_s` seconds SIGKILL, until nothing is found or `kill_s` more are
    over.

    `find` is asked again and again, because a process may start another while it is being ended. Gives what is left.
    """
    told: set[int] = set()
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        left = find()
        if not left:
            return left
        _send(left - told, signal.SIGTERM)
        told |= left
        time.sleep(_POLL_S)
    deadline = time.monotonic() + kill_s
    while True:
        left = find()
        if not left or time.monotonic() > deadline:
            return left
        _send(left, signal.SIGKILL)
        time.sleep(_POLL_S)


def _send(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
