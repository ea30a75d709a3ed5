"""Look at every flag of a slime command line before anything is rented, against the options that slime really has.

slime reads its command line with four parsers, and all four drop what they do not know without a word (slime.md 5.5):
`--save-intervall 5` trains for hours and saves nothing. `flags.tsv`, beside this file, lists what the parsers of slime
and Megatron-LM accept, written down from the parsers themselves (`tests/slime_real/make_flag_table.py`; its first
lines name the versions). Options of SGLang and its router exist only where they are installed: their names pass
here, unless they look like a misspelt well-known one, and `dry_parse.py` checks them on the pod.
"""

from __future__ import annotations

import csv
import difflib
import functools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plugins.errors import UserError

TABLE = Path(__file__).with_name("flags.tsv")
COLUMNS = ("name", "also", "takes", "type", "choices", "source", "sets", "default")


@dataclass(frozen=True)
class Flag:
    """One option of slime's command line.

    name: with its dashes; also: other spellings of the same option. argparse takes a spelling letter by letter: `_`
    is not `-`, and slime's main parser takes no abbreviations (`allow_abbrev=False`).
    takes: number of values as in argparse's `nargs`: "0" is a switch, "1", "3", "?", "*", "+".
    type: of each value: int, float, str, bool, json, name (one of choices), pattern, tuple; "any" is not checked here.
    choices: the values allowed, all if empty. source: slime, megatron, or "image" when read from parsers on a pod.
    sets: the attribute of the parsed arguments; default: its value, as JSON, when no flag sets it.
    """

    name: str
    also: tuple[str, ...] = ()
    takes: str = "1"
    type: str = "str"
    choices: tuple[str, ...] = ()
    source: str = "slime"
    sets: str = ""
    default: str = "null"


@functools.cache
def known() -> Mapping[str, Flag]:
    """The options of slime and Megatron-LM, under each of their spellings."""
    return by_spelling(read_table(TABLE.read_text(encoding="utf-8")))


def by_spelling(flags: Sequence[Flag]) -> dict[str, Flag]:
    """Each flag under its name and its other spellings; where two claim a spelling, the later one has it."""
    return {spelling: flag for flag in flags for spelling in (flag.name, *flag.also)}


def read_table(text: str) -> list[Flag]:
    """The flags of a table that `write_table` wrote."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    rows = csv.DictReader(lines, COLUMNS, delimiter="\t", quoting=csv.QUOTE_NONE)
    return [
        Flag(**row | {"also": tuple(row["also"].split()), "choices": tuple(row["choices"].split())}) for row in rows
    ]


def write_table(flags: Sequence[Flag], made: Sequence[str]) -> str:
    """A table as text, sorted by name, one flag a line. made: how it was made, for the first lines."""
    head = [*(f"# {line}" for line in made), "# " + "\t".join(COLUMNS)]
    rows = [
        "\t".join([f.name, " ".join(f.also), f.takes, f.type, " ".join(f.choices), f.source, f.sets, f.default])
        for f in sorted(flags, key=lambda flag: flag.name)
    ]
    return "\n".join([*head, *rows]) + "\n"


def check(argv: Sequence[str]) -> None:
    """Refuse a command line that slime would misunderstand in silence, or understand and then refuse.

    argv: the arguments of train.py, without the script. Raises UserError that names every unknown flag with the ones
    that look like it, every value of a wrong type or outside the choices, and every missing or surplus value.
    """
    if found := problems(argv, known()):
        raise UserError(describe(found))


def describe(found: Sequence[str]) -> str:
    """Problems of a command line as one message."""
    return f"the trainer's flags have {len(found)} problem{'s' * (len(found) > 1)}: {'; '.join(found)}"


def problems(argv: Sequence[str], flags: Mapping[str, Flag], *, engine_flags_known: bool = False) -> list[str]:
    """What is wrong with the arguments of train.py, one sentence each, in their order.

    flags: the options there are, by spelling; engine_flags_known: whether those of SGLang and its router are among
    them, else these pass by their prefix.
    """
    found: list[str] = []
    for word, given, values in _split(argv, flags):
        if word == "--":
            found.append("`--` ends the flags: slime would ignore all that follows it")
        elif not word:
            found.append(f"{_quoted(values)} stands before the first flag: slime would ignore it")
        elif (flag := flags.get(word)) is not None:
            found += _misused(flag, word, given, values)
        elif word in SET_BY_SLIME:
            found.append(f"{word} would be ignored: slime gives its engines this setting itself")
        elif engine_flags_known or not word.startswith(ENGINE_PREFIXES):
            found.append(f"{word} is no flag of slime, which would ignore it{_hint(_alike(word, flags, 0.75))}")
        elif word not in WELL_KNOWN and (alike := _alike(word, WELL_KNOWN, _ALMOST)):
            found.append(f"{word} looks like a misspelt flag of SGLang{_hint(alike)}")
    return found


def _split(argv: Sequence[str], flags: Mapping[str, Flag]) -> Iterator[tuple[str, str | None, list[str]]]:
    """Flags with the value after their `=` and the words behind them; values before any flag come under ""."""
    word, given, values = "", None, []  # type: tuple[str, str | None, list[str]]
    for at, argument in enumerate(argv):
        if not _is_flag(argument, flags):
            values.append(argument)
            continue
        if word or values:
            yield word, given, values
        if argument == "--":
            yield argument, None, list(argv[at + 1 :])
            return
        if argument in flags or "=" not in argument:
            word, given, values = argument, None, []
        else:
            word, given = argument.split("=", 1)
            values = []
    if word or values:
        yield word, given, values


def _is_flag(argument: str, flags: Mapping[str, Flag]) -> bool:
    """argparse's own rule (CPython 3.11 and 3.12, `_parse_optional`): `-1e-5` is a flag, `-5` and `-x y` are not."""
    if not argument.startswith("-") or argument == "-":
        return False
    if argument.split("=", 1)[0] in flags:
        return True
    return re.fullmatch(r"-\d+|-\d*\.\d+", argument) is None and " " not in argument


def _misused(flag: Flag, word: str, given: str | None, values: list[str]) -> Iterator[str]:
    """What is wrong with one use of a flag; a value after `=` is the only one that argparse gives to the flag."""
    words = values if given is None else [given]
    least, most = _counts(flag.takes, len(words))
    if given is not None and most == 0:
        yield f"{word} is a switch and takes no value, not {_quoted(words)}"
        return
    taken, spare = words[:most], words[most:] if given is None else values
    if len(taken) < least:
        value = "a value" if flag.takes in "1+" else f"{flag.takes} values"
        yield f"{word} needs {value}{_allowed(flag)} (a value that starts with - is given as {word}=-...)"
        return
    for text in taken:
        if (wrong := _wrong(flag, text)) is not None:
            yield f"{word}: {text!r} is {wrong}"
    if spare:
        takes = "is a switch" if most == 0 else f"takes {flag.takes} value{'s' * (flag.takes not in '1?')}"
        yield f"{word} {takes}: slime would ignore {_quoted(spare)}"


def _counts(takes: str, there: int) -> tuple[int, int]:
    """The least and the most values that a flag takes of those that are there."""
    if takes.isdigit():
        return int(takes), int(takes)
    return (1 if takes == "+" else 0), (min(1, there) if takes == "?" else there)


def _wrong(flag: Flag, text: str) -> str | None:
    """Why a flag cannot have this value, None if it can."""
    kind, convert = _TYPES.get(flag.type, ("", str))
    try:
        value = convert(text)
    except ValueError:
        return f"not {kind}"
    if flag.choices and value not in [convert(choice) for choice in flag.choices]:
        return f"not one of {', '.join(flag.choices)}"
    return None


def _pattern(text: str) -> object:
    """Megatron's layer patterns: a whole number, or a list expression such as ([1]*3+[0])*2 with nothing else in it."""
    if "[" not in text:
        return int(text)
    if re.search(r"[^,\d\[\]()+*]", text):
        raise ValueError(text)
    return text


def _integers(text: str) -> object:
    return tuple(int(one) for one in text.strip("()").split(","))


def _truth(text: str) -> bool:
    """argparse's `type=bool` takes every text but the empty one as true, "false" as well: only true can be meant."""
    if text.lower() in ("", "0", "false", "no", "none", "off"):
        raise ValueError(text)
    return True


_TYPES: dict[str, tuple[str, Callable[[str], object]]] = {
    "int": ("a whole number", int),
    "float": ("a number", float),
    "json": ("JSON", json.loads),
    "bool": ("a way to say no: any text counts as yes, so leave the flag out", _truth),
    "pattern": ("a whole number or a pattern such as [1]*3+[0]", _pattern),
    "tuple": ("whole numbers with commas between them", _integers),
}


def _allowed(flag: Flag) -> str:
    return f", one of {', '.join(flag.choices)}" if flag.choices else ""


def _quoted(values: Sequence[str]) -> str:
    return " ".join(repr(value) for value in values[:3]) + (" ..." if len(values) > 3 else "")


def _alike(word: str, names: Collection[str], cutoff: float) -> list[str]:
    """The names that the word may be a misspelling of, or an abbreviation."""
    plain = "--" + word.lstrip("-").replace("_", "-").lower()
    alike = difflib.get_close_matches(plain, sorted(names), n=3, cutoff=cutoff)
    longer = sorted(name for name in names if name.startswith(plain)) if cutoff < _ALMOST else []
    return list(dict.fromkeys([*alike, *(longer if len(longer) <= 3 else [])]))[:3]


def _hint(alike: Sequence[str]) -> str:
    return f" (did you mean {' or '.join(alike)}?)" if alike else ""


ENGINE_PREFIXES = ("--sglang-", "--router-")
"""What slime puts before the options of SGLang's server and of its router (backends/sglang_utils/arguments.py)."""

_LEFT_OUT = """
model-path trust-remote-code random-seed enable-memory-saver tp-size tensor-parallel-size port nnodes node-rank
dist-init-addr gpu-id-step base-gpu-id nccl-port skip-server-warmup enable-return-routed-experts
"""
SET_BY_SLIME = frozenset(f"--sglang-{name}" for name in _LEFT_OUT.split())
"""Options of SGLang that slime leaves out under its prefix (`skipped_args` in the same file): set, they do nothing."""

_ALMOST = 0.93
"""One letter wrong. No option of SGLang 0.5.15.post1 or its router is so like a well-known one that is not itself."""

_USED = """
attention-backend chunked-prefill-size config context-length cuda-graph-bs cuda-graph-max-bs
custom-pull-weights-pre-read-hook dcp-size deepep-mode disable-cuda-graph disable-overlap-schedule
disable-piecewise-cuda-graph disable-radix-cache disaggregation-ib-device disaggregation-transfer-backend dp-size
dsa-decode-backend dsa-prefill-backend enable-deterministic-inference enable-dp-attention enable-dp-lm-head
enable-metrics ep-num-redundant-experts ep-size expert-parallel-size kv-cache-dtype log-level mamba-scheduler-strategy
max-running-requests mem-fraction-static mm-attention-backend moe-a2a-backend moe-dense-tp-size nsa-decode-backend
nsa-prefill-backend page-size pp-size reasoning-parser router-ip router-port router-request-timeout-secs
server-concurrency speculative-algorithm speculative-draft-attention-backend speculative-draft-model-path
speculative-eagle-topk speculative-num-draft-tokens speculative-num-steps tool-call-parser watchdog-timeout
"""
WELL_KNOWN = frozenset(f"--sglang-{name}" for name in _USED.split()) | {
    f"--router-{name}" for name in ("policy", "log-level", "balance-abs-threshold", "balance-rel-threshold")
}
"""Options of SGLang and its router that slime's scripts, tests and documents set (v0.3.1), and some that look alike;
only to tell a misspelling."""
