"""Ask slime's own parser about a command line (`dry_parse.py`) in a process of its own; what it refuses is an error.

A stage does this on the pod before Ray starts: it takes seconds there, and a trainer that stops at its own validation
would first have started engines, moved weights and counted as a crash to try again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from plugins.errors import UserError
from plugins.slime import dry_parse, flag_table

_KEPT_BYTES = 1 << 20
_LEAVE_S = 5.0
"""For the streams to close once the process is gone; who holds them open any longer is not waited for."""

_ADVICE = (
    (r"hf_validate_args failed", "the recipe's `model` does not describe the weights in --hf-checkpoint"),
    (r"path should be string.*NoneType", "--use-kl-loss and --kl-coef need --ref-load"),
    (r"ref_load .* does not exist", "--ref-load must be a folder on the pod"),
    (r"Repo id must be|[Cc]an't load the configuration|[Cc]ouldn't connect", "--hf-checkpoint is no folder on the pod"),
    (r"Unrecognized model|does not recognize this architecture", "--hf-checkpoint has no config.json that it knows"),
    (r"world.size .* is not divisible", "the GPUs must divide by tensor * pipeline * context parallel sizes"),
    (r"CUDA_DEVICE_MAX_CONNECTIONS", "the trainer's environment must set it"),
    (r"No module named '?(slime|megatron|plugins)", "this is not slime's image, or PYTHONPATH is not right"),
    (r"No module named", "the image lacks a package that slime imports"),
)
"""What slime says (v0.3.1, with Megatron-LM and transformers), and what that means to who wrote the recipe."""


def run_dry_parse(
    python: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path, timeout_s: float = 180.0
) -> None:
    """Pass if slime accepts the arguments of train.py; else raise UserError with all that is wrong with them.

    python: the interpreter that runs slime; argv: without the script; env: additions to this process's environment,
    with the trainer's PYTHONPATH; cwd: slime's folder. After timeout_s the process is ended and UserError raised: a
    parser that waits mostly waits for a Hugging Face name that it cannot reach.
    """
    command = [python, "-m", "plugins.slime.dry_parse", "--", *argv]
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=os.environ | dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise UserError(f"slime's parser cannot be started with {python} in {cwd}: {error}") from error
    assert process.stdout is not None
    assert process.stderr is not None
    answer, log = _Tail(process.stdout), _Tail(process.stderr)
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        _end(process)
        raise UserError(
            f"slime's parser did not end within {timeout_s:.0f} s. Last it said: {log.last_lines()}"
        ) from error
    finally:
        _end(process)
    if (said := _answer(answer.text())) is None:
        raise UserError(f"slime's parser ended with status {code} and no answer. Last it said: {log.last_lines()}")
    if wrong := _in_words(said):
        raise UserError(wrong)


def _in_words(said: Mapping[str, Any]) -> str:
    """All that is wrong, "" if nothing is."""
    parts = [flag_table.describe(said["problems"])] if said["problems"] else []
    complaint = said["complaint"]
    if complaint is not None and not (parts and complaint["kind"] == "SystemExit"):  # argparse sees the first of them
        message = complaint["message"] or "no words"
        advice = next((words for pattern, words in _ADVICE if re.search(pattern, message)), None)
        kind = "" if complaint["kind"] in ("AssertionError", "SystemExit") else f"{complaint['kind']}: "
        parts.append(f"slime refuses its command line: {kind}{message} ({complaint['where']})")
        parts += [advice] if advice else []
    return "; ".join(parts)


def _answer(text: str) -> dict[str, Any] | None:
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict) and dry_parse.MARK in said:
                return said
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it has started in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Tail:
    """Reads a stream to its end in a thread and keeps the last of it, so that a parser may print without limit."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._kept = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self) -> str:
        self._thread.join(_LEAVE_S)
        return self._kept.decode(errors="replace")

    def last_lines(self, count: int = 5) -> str:
        lines = [line for line in self.text().splitlines() if line.strip()]
        return " | ".join(line.strip()[:300] for line in lines[-count:]) or "nothing"

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(self._stream.fileno(), 1 << 16):
                self._kept = (self._kept + chunk)[-_KEPT_BYTES:]
            self._stream.close()
