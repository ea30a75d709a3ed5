"""slime's log lines, written and read: the way a stage knows which iteration a trainer is at.

The formats are slime's since v0.2.0 (reference page slime.md 3.1; slime/observability/logging_utils.py,
train_metric_utils.py) and Megatron's checkpoint prints. Text of samples stands in the same log, so a line counts
only when the whole of it has the right shape from its first character on. Following a file and deciding what
progress means are left to the caller.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

DICT_KINDS = ("step", "rollout", "perf", "eval")
"""Kinds whose line carries a dict of metrics; `saved` and `loaded` are Megatron's checkpoint prints."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_RAY_PREFIX = re.compile(r"\((?:[^\s()]+ )?pid=\d+(?:, ip=[0-9A-Fa-f.:]+)?\) ?")
_RAY_REPEATED = r"(?: \[repeated \d+x across cluster\].*)?"
# A progress bar leaves the cursor at its end, so the next log message of that process follows it without a newline.
_BAR = r"(?:[\w .-]+: +\d+%\|[^|\n]*\| *\d+/\d+ \[[^\[\]]*\] *)?"
_METRICS = re.compile(
    _BAR
    + r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)?\] [\w./-]+\.py:\d+ - "
    + rf"(?P<kind>{'|'.join(DICT_KINDS)}) (?P<number>\d{{1,9}}): \{{(?P<body>.*)\}}"
    + _RAY_REPEATED
)
_STAMP = r"\s{0,4}(?:\[[\d :.,-]+\] +)?"
_PATH_TAIL = r" \[ t [\d/]+, p [\d/]+ \]"
_SAVED = re.compile(
    rf"{_STAMP}successfully saved checkpoint from iteration +(?P<number>\d{{1,9}}) to \S.*?{_PATH_TAIL}{_RAY_REPEATED}"
)
_LOADED = re.compile(
    rf"{_STAMP}successfully loaded checkpoint from \S.*?{_PATH_TAIL} at iteration +(?P<number>\d{{1,9}}){_RAY_REPEATED}"
)
_NUMBER = r"[-+]?(?:nan|inf|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_ITEM = re.compile(
    r"'(?P<key>[^'\\]+)': "
    rf"(?:(?P<plain>{_NUMBER})"
    rf"|(?:[A-Za-z_][\w.]*)\((?P<wrapped>{_NUMBER})(?:, [^()]*(?:<[^<>()]*>)?)?\)"
    r"|(?P<other>True|False|None|'[^']*'|\"[^\"]*\"|\[[^\[\]]*\]))"
    r"(?:, |$)"
)


@dataclass(frozen=True)
class Point:
    """One thing the trainer said.

    kind: `step`, `rollout`, `perf`, `eval` (with `values`, may hold nan or inf), `saved` or `loaded` (without). `saved`
    is a hint to go and look: only the tracker file says that a checkpoint is there.
    number: the step for `step` (rollout * num_steps_per_rollout + step), the 0-based rollout id for all others.
    """

    kind: str
    number: int
    values: dict[str, float] = field(default_factory=dict)


def format_line(kind: str, number: int, values: dict[str, float], *, file: str, line: int, now: datetime) -> str:
    """Write one metrics line as slime does, without a newline. `file` and `line` name the code that speaks."""
    if kind not in DICT_KINDS:
        raise ValueError(
            f"no metrics line of kind {kind!r}: use one of {', '.join(DICT_KINDS)}, or format_saved, format_loaded"
        )
    return f"[{now:%Y-%m-%d %H:%M:%S}] {file}:{line} - {kind} {number}: {values!r}"


def format_saved(iteration: int, save_dir: Path, *, now: datetime) -> str:
    """Megatron's line for a checkpoint that is complete (its tracker is written)."""
    said = f"successfully saved checkpoint from iteration {iteration:7d} to {save_dir} [ t 1/1, p 1/1 ]"
    return f"  [{now:%Y-%m-%d %H:%M:%S}] {said}"


def format_loaded(iteration: int, load_dir: Path, *, now: datetime) -> str:
    """Megatron's line for a checkpoint that was loaded."""
    said = f"successfully loaded checkpoint from {load_dir} [ t 1/1, p 1/1 ] at iteration {iteration}"
    return f"  [{now:%Y-%m-%d %H:%M:%S}] {said}"


def parse_values(body: str) -> dict[str, float]:
    """Numbers of a dict's repr without its braces; never evaluated. Empty when the text is not such a repr.

    Known spellings: `0.5`, `1e-06`, `nan`, `inf`, `np.float64(0.5)`, `tensor(0.5, device='cuda:0')`. Other values
    are left out.
    """
    values: dict[str, float] = {}
    position = 0
    while position < len(body):
        item = _ITEM.match(body, position)
        if item is None:
            return {}
        number = item["plain"] or item["wrapped"]
        if number is not None:
            values[item["key"]] = float(number)
        position = item.end()
    return values


def parse_line(line: str) -> Point | None:
    """Read one line of a trainer's or driver's log; None when it is anything but a line slime writes itself."""
    text = _ANSI.sub("", line).rstrip("\r\n")
    text = _RAY_PREFIX.sub("", text, count=1) if _RAY_PREFIX.match(text) else text
    text = text.rsplit("\r", 1)[-1]  # a bar redraws itself with \r; what counts is what stands after the last one
    if metrics := _METRICS.fullmatch(text):
        values = parse_values(metrics["body"])
        return Point(metrics["kind"], int(metrics["number"]), values) if values else None
    for kind, pattern in (("saved", _SAVED), ("loaded", _LOADED)):
        if match := pattern.fullmatch(text):
            return Point(kind, int(match["number"]))
    return None


def parse_hook_line(line: str) -> Point | None:
    """Read one line of the JSONL file that `plugins.slime.hooks` writes; None for a torn or foreign line."""
    try:
        record = json.loads(line)
        values = {str(key): float(value) for key, value in record["values"].items()}
        return Point(record["kind"], int(record["number"]), values) if record["kind"] in DICT_KINDS else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


class ProgressParser:
    """Lines in, each point out once: Ray prints the end of a failed job's log a second time.

    Keep one parser for one attempt. Points with the same kind and number and other keys are different points (slime
    writes `perf N` twice, once from the rollout and once from the trainer).
    """

    def __init__(self) -> None:
        self._seen: set[tuple[str, int, frozenset[str]]] = set()

    def feed(self, line: str) -> Point | None:
        """Take one whole line of the log (with or without its newline)."""
        return self._first_time(parse_line(line))

    def feed_hook(self, line: str) -> Point | None:
        """Take one whole line of the hook's JSONL file."""
        return self._first_time(parse_hook_line(line))

    def _first_time(self, point: Point | None) -> Point | None:
        if point is None:
            return None
        identity = (point.kind, point.number, frozenset(point.values))
        if identity in self._seen:
            return None
        self._seen.add(identity)
        return point
