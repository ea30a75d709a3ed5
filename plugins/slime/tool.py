"""One of slime's own tools as a process: its words go to a file, somebody looks after it, nothing of it is left behind.

What the tools are given and what they make stands in `convert` and `export`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from plugins.errors import StoreError, UserError

LOOK_S = 1.0
TAIL_LINES, TAIL_BYTES = 20, 64 * 1024
END_S = 5.0
"""How long a tool that is told to end may take before it is killed."""


def run_tool(
    what: str,
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log_file: Path,
    each: Callable[[], None] = lambda: None,
    look_s: float = LOOK_S,
) -> None:
    """Run a tool to its end. `each` is called again and again meanwhile; whatever it raises stops the tool.

    what: says in messages what the tool does; env: additions to the environment; log_file: gets all the tool says.
    Raises UserError with the last lines when it fails or cannot be started, StoreError when the log cannot be written.
    """
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        output = log_file.open("ab")
    except OSError as error:
        raise StoreError(f"{log_file}: cannot be written ({error.strerror}): check space and rights there") from error
    with output:
        try:
            tool = subprocess.Popen(
                list(argv),
                cwd=cwd,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            raise UserError(f"{what} could not be started: {error}: is slime in {cwd} on the pod?") from error
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = tool.wait(timeout=look_s)
                break
            each()
    finally:
        _end(tool)
    if status != 0:
        killed = " (killed from outside; was the memory used up?)" if status == -signal.SIGKILL else ""
        raise UserError(
            f"{what} failed with exit code {status}{killed}; its log on the pod is {log_file}. Its last lines:\n"
            + "\n".join(_tail(log_file))
        )


def _end(tool: subprocess.Popen[bytes]) -> None:
    """End the tool and all it started in its group: torchrun's processes too."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(tool.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            tool.wait(timeout=END_S)


def _tail(log_file: Path) -> list[str]:
    with log_file.open("rb") as file:
        file.seek(max(0, log_file.stat().st_size - TAIL_BYTES))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    return [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a killed stage leaves no tool behind
