"""The pod's processes as /proc shows them: who lives, who is whose child, who carries a supervisor's marker.

Standard library only, because the supervisor runs before anything else of a pod does. Nothing here decides to end a
process; `service_tree.py` does.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MARKER = "TRAINSTACK_SUPERVISOR"  # environment variable that every process under a supervisor carries


class Proc(NamedTuple):
    """One line of /proc: state is the letter of proc(5), start_ticks tells a process from a later one with its pid."""

    pid: int
    parent: int
    state: str
    start_ticks: int


def proc(pid: int) -> Proc | None:
    """Read one process; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return Proc(pid, int(fields[1]), fields[0], int(fields[19]))


def processes() -> Iterator[Proc]:
    """Every process of this pid namespace."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (found := proc(int(entry.name))) is not None:
            yield found


def lives(pid: int, start_ticks: int | None = None) -> bool:
    """Whether the process runs. A zombie does not: a stopped parent cannot reap it."""
    found = proc(pid)
    return found is not None and found.state not in "ZX" and start_ticks in (None, found.start_ticks)


def children(pid: int) -> list[Proc]:
    """The living children of a process."""
    return [item for item in processes() if item.parent == pid and item.state not in "ZX"]


def descendants(pid: int) -> list[Proc]:
    """The living processes below a process (zombies are walked through, not returned)."""
    by_parent: dict[int, list[Proc]] = {}
    for item in processes():
        by_parent.setdefault(item.parent, []).append(item)
    below: list[Proc] = []
    queue = [pid]
    while queue:
        for item in by_parent.get(queue.pop(), []):
            below.append(item)
            queue.append(item.pid)
    return [item for item in below if item.state not in "ZX"]


def environment_of(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty if it may not be read or the process is gone."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.decode(errors="surrogateescape").partition("=") for item in raw.split(b"\0") if item)
    return {name: value for name, _, value in pairs}


def marked(marker: str) -> list[Proc]:
    """The living processes that carry this supervisor's marker."""
    entry = f"{MARKER}={marker}".encode()
    found = []
    for item in processes():
        try:
            environ = Path(f"/proc/{item.pid}/environ").read_bytes()
        except OSError:
            continue
        if entry in environ.split(b"\0") and item.state not in "ZX":
            found.append(item)
    return found


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that is already gone is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
