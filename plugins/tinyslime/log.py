"""Lines on standard output in the shape of slime's logger, so that whoever follows slime can follow the stand-in.

Each kind of line names the file of slime that writes it there; readers match the message and not the line number.
"""

from __future__ import annotations

from datetime import datetime

from plugins.slime.progress import format_line

_SPEAKERS = {"step": ("model.py", 918), "rollout": ("train_metric_utils.py", 135), "eval": ("rollout_metrics.py", 247)}
_PERF_OF_ROLLOUT, _PERF_OF_TRAINER = ("rollout_metrics.py", 268), ("train_metric_utils.py", 401)


def metrics(kind: str, number: int, values: dict[str, float], *, from_rollout: bool = False) -> None:
    """One `kind number: {...}` line. slime writes `perf` twice in a rollout; `from_rollout` says which of the two
    this is.
    """
    perf = _PERF_OF_ROLLOUT if from_rollout else _PERF_OF_TRAINER
    file, line = _SPEAKERS.get(kind, perf)
    print(format_line(kind, number, values, file=file, line=line, now=datetime.now()), flush=True)


def say(message: str, *, file: str = "train.py") -> None:
    """One line of plain words with the logger's prefix."""
    print(f"[{datetime.now():%Y-%m-%d %H:%M:%S}] {file}:1 - {message}", flush=True)


def bare(line: str) -> None:
    """One line as it stands: Megatron prints its checkpoint lines without the logger's prefix."""
    print(line, flush=True)
