"""slime's log lines, written and read: the way a stage knows which iteration a trainer is at.

The formats are slime's since v0.2.0 (reference page slime.md 3.1; slime/observability/logging_utils.py,
train_metric_utils.py) and Megatron's checkpoint prints. Text of samples stands in the same log, so a line counts
only when the whole of it has the right shape from its first character on, and what is said about loading only when it
does not come from a process that cannot say it: Ray names the speaker, samples are printed by the RolloutManager and
checkpoints are loaded by the trainers. Following a file and deciding what progress means are left to the caller.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

DICT_KINDS = ("step", "rollout", "perf", "eval")
"""Kinds whose line carries a dict of metrics."""

LONGEST_LINE = 16_000
"""Characters of a line that are read, from what stands after the last redrawing of a progress bar: longer than any line
of figures, and short enough for a program that prints without line ends."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_RAY_PREFIX = re.compile(r"\((?:(?P<actor>[^\s()]{1,300}) )?pid=\d+(?:, ip=[0-9A-Fa-f.:]+)?\) ?")
_RAY_REPEATED = r"(?: \[repeated \d+x across cluster\].*)?"
# A progress bar leaves the cursor at its end, so the next log message of that process follows it without a newline.
_BAR = r"(?:[\w .-]+: +\d+%\|[^|\n]*\| *\d+/\d+ \[[^\[\]]*\] *)?"
_LOGGED = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)?\] [\w./-]+\.py:\d+ - "
_METRICS = re.compile(
    rf"{_BAR}{_LOGGED}(?P<kind>{'|'.join(DICT_KINDS)}) (?P<number>\d{{1,9}}): \{{(?P<body>.*)\}}{_RAY_REPEATED}"
)
_STAMP = r"\s{0,4}(?:\[[\d :.,-]+\] +)?"
_FOLDER = r"(?P<text>\S.*?) \[ t [\d/]+, p [\d/]+ \]"
_TRACKER = r"(?P<text>\S.*/latest_checkpointed_iteration\.txt|because load directory is not defined)"
_STATE = r"(?P<text>\S.*/global_dataset_state_dict_(?P<number>-?\d{1,9})\.pt)"
_SAID = {
    kind: re.compile(pattern + _RAY_REPEATED)
    for kind, pattern in {
        # Megatron-LM 1dcf0daf megatron/training/checkpointing.py:727, :1898, :1212
        "saved": rf"{_STAMP}successfully saved checkpoint from iteration +(?P<number>\d{{1,9}}) to {_FOLDER}",
        "loaded": rf"{_STAMP}successfully loaded checkpoint from {_FOLDER} at iteration +(?P<number>\d{{1,9}})",
        "no_tracker": rf"{_STAMP}(?:WARNING: )?could not find the metadata file {_TRACKER}",
        # slime docker/patch/latest/megatron.patch: print(f"{sh_ten.key} from model not in state dict, will skip")
        "skipped": r"(?P<text>[^\s'\"]{1,300}) from model not in state dict, will skip",
        # slime/rollout/data_source.py:147-150
        "dataset_state": rf"{_BAR}{_LOGGED}load metadata from {_STATE}",
        "no_dataset_state": rf"{_BAR}{_LOGGED}Checkpoint {_STATE} does not exist\.",
    }.items()
}
_SAID_WORDS = ("heckpoint", "metadata f", "will skip")
"""One of them is in every such line: most lines of a log need no further look."""
_ROLLOUTS = "RolloutManager"
"""Ray actor of slime that owns the data source and prints samples (slime/ray/rollout.py); it loads no weights."""
_WORDS = re.compile(
    rf"{_BAR}\[\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d[^\]]*\] (?:(?P<file>[\w./-]+\.py):\d+ - )?(?P<words>.*)"
)
_LAST_BAR = re.compile(r"(?P<name>[\w .\[\]/-]{0,60}?): +\d+%\|[^|\n]*\| *(?P<done>\d+)/(?P<total>\d+) \[[^\[\]]*\]? *")
_NUMBER = r"[-+]?(?:nan|inf|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)"
_ITEM = re.compile(
    r"'(?P<key>[^'\\]+)': "
    rf"(?:(?P<plain>{_NUMBER})"
    rf"|(?:[A-Za-z_][\w.]*)\((?P<wrapped>{_NUMBER})(?:, [^()]*(?:<[^<>()]*>)?)?\)"
    r"|(?P<other>True|False|None|'[^']*'|\"[^\"]*\"|\[[^\[\]]*\]))"
    r"(?:, |$)"
)

_KEY = re.compile(r"'[^'\\]+': ")
_NEXT_KEY = re.compile(r", '[^'\\]+': ")


@dataclass(frozen=True)
class Point:
    """One thing the trainer said.

    kind: `step`, `rollout`, `perf`, `eval` (with `values`, may hold nan or inf), or one of these without values:
    `saved` (a hint to go and look: only the tracker says that a checkpoint is there), `loaded`, `skipped` (a tensor
    that the checkpoint lacks and that keeps its start value), `no_tracker` (nothing was loaded), `dataset_state` (the
    data cursor is read), `no_dataset_state` (it is missing: the data starts from row 0).
    number: the step for `step` (rollout * num_steps_per_rollout + step), the 0-based rollout id for all others, 0 for
    `skipped` and `no_tracker`.
    text: the folder of `saved` and `loaded`, the tensor of `skipped`, the file of the last three; takes no part in
    comparing. hook: whether the hook said it and not the log; takes no part either.
    """

    kind: str
    number: int
    values: dict[str, float] = field(default_factory=dict)
    text: str = field(default="", compare=False)
    hook: bool = field(default=False, compare=False)


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


def format_scheduled(iteration: int, save_dir: Path) -> str:
    """Megatron's line for a checkpoint whose data is on its way to the disk (`--async-save`)."""
    return f"  scheduled an async checkpoint save at iteration {iteration:7d} to {save_dir}"


def format_skipped(tensor: str) -> str:
    """The print of slime's Megatron patch for a tensor that the checkpoint does not hold."""
    return f"{tensor} from model not in state dict, will skip"


def parse_values(body: str) -> dict[str, float]:
    """Numbers of a dict's repr without its braces; never evaluated. Empty when the text is not such a repr.

    Known spellings: `0.5`, `1e-06`, `nan`, `inf`, `np.float64(0.5)`, `tensor(0.5, device='cuda:0')`. Other values
    are left out, and one that is spelt as nothing known costs no other.
    """
    values: dict[str, float] = {}
    position = 0
    while position < len(body):
        item = _ITEM.match(body, position)
        if item is None:
            following = _NEXT_KEY.search(body, position + 1) if _KEY.match(body, position) else None
            if following is None:
                return values if _KEY.match(body, position) else {}
            position = following.start() + 2
            continue
        number = item["plain"] or item["wrapped"]
        if number is not None:
            values[item["key"]] = float(number)
        position = item.end()
    return values


def undressed(line: str) -> tuple[re.Match[str] | None, str]:
    """Ray's prefix, where there is one, and the text after it, without colours and what a progress bar drew over; of
    the text LONGEST_LINE characters at most."""
    text = _ANSI.sub("", line).rstrip("\r\n")
    prefix = _RAY_PREFIX.match(text)
    text = text[prefix.end() :] if prefix else text
    return prefix, text.rsplit("\r", 1)[-1][
        :LONGEST_LINE
    ]  # a bar redraws itself with \r; what counts stands after the last one


def parse_line(line: str) -> Point | None:
    """Read one line of a trainer's or driver's log; None when it is anything but a line slime writes itself."""
    prefix, text = undressed(line)
    if metrics := _METRICS.fullmatch(text):
        values = parse_values(metrics["body"])
        return Point(metrics["kind"], int(metrics["number"]), values) if values else None
    if not any(word in text for word in _SAID_WORDS):
        return None
    actor = prefix["actor"] if prefix else None
    for kind, pattern in _SAID.items():
        if match := pattern.fullmatch(text):
            found = match.groupdict()
            return Point(kind, int(found.get("number") or 0), text=found["text"]) if _may_say(actor, kind) else None
    return None


@dataclass(frozen=True)
class Words:
    """One message of a logger. speaker: Ray's prefix, '' for the driver; file: the code that speaks, where it is named
    (SGLang's engines stamp their lines and name none)."""

    speaker: str
    file: str
    text: str


def logged(line: str) -> Words | None:
    """The message of a line that a logger stamped; None for any other line."""
    prefix, text = undressed(line)
    found = _WORDS.fullmatch(text)
    return Words(prefix[0] if prefix else "", found["file"] or "", found["words"]) if found else None


def bar(text: str) -> tuple[str, int, int] | None:
    """Name, count and total of the progress bar that a text ends with as tqdm drew it last; None when there is none."""
    drawn = _ANSI.sub("", text).rstrip("\r\n ").replace("\n", "\r").rsplit("\r", 1)[-1][:LONGEST_LINE]
    prefix = _RAY_PREFIX.match(drawn)
    found = _LAST_BAR.fullmatch(drawn[prefix.end() :] if prefix else drawn)
    return (found["name"].strip(), int(found["done"]), int(found["total"])) if found else None


def _may_say(actor: str | None, kind: str) -> bool:
    """Whether this Ray actor (None: no prefix) can be the speaker: the data source is one process, weights another."""
    return actor is None or (actor == _ROLLOUTS) == kind.endswith("dataset_state")


def parse_hook_line(line: str) -> Point | None:
    """Read one line of the JSONL file that `plugins.slime.hooks` writes; None for a torn or foreign line."""
    try:
        record = json.loads(line)
        values = {str(key): float(value) for key, value in record["values"].items()}
        known = record["kind"] in DICT_KINDS
        return Point(record["kind"], int(record["number"]), values, hook=True) if known else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


class ProgressParser:
    """Lines in, each point out once: Ray prints the end of a failed job's log a second time.

    Keep one parser for one attempt. Points with the same kind and number and other keys are different points (slime
    writes `perf N` twice, once from the rollout and once from the trainer).
    """

    def __init__(self) -> None:
        self._seen: set[tuple[str, int, str, frozenset[str]]] = set()

    def feed(self, line: str) -> Point | None:
        """Take one whole line of the log (with or without its newline)."""
        return self._first_time(parse_line(line))

    def feed_hook(self, line: str) -> Point | None:
        """Take one whole line of the hook's JSONL file."""
        return self._first_time(parse_hook_line(line))

    def _first_time(self, point: Point | None) -> Point | None:
        if point is None:
            return None
        identity = (point.kind, point.number, point.text, frozenset(point.values))
        if identity in self._seen:
            return None
        self._seen.add(identity)
        return point
