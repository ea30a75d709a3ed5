"""Let slime's own parser read a command line before the trainer starts, and hear what it has to say.

On the pod, by the interpreter that runs slime, with slime's folder as working directory:

    PYTHONPATH=<Megatron-LM>:<our code>:<slime> python -m plugins.slime.dry_parse -- <arguments of train.py>

It prints one JSON object, the last line of its standard output; whatever the parsers print goes to standard error.
`flag_table.py` knows the parsers from a table; here they are asked themselves, those of the installed SGLang too, and
slime's validation runs with them: paths that are missing, a model that its flags do not describe, sizes that do not
divide. `dry_run.py` starts this and turns the answer into an error.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from plugins.slime.flag_table import Flag, by_spelling, problems

MARK = "trainstack_dry_parse"
"""Key of the answer by which it is told from anything else on the standard output."""

FEWEST_OPTIONS = 400
"""slime v0.3.1 has about 870 options with Megatron's, and SGLang 430 more: with fewer than this we missed a parser."""


class Stopped(Exception):
    """Ends the first reading, which is only there to see the parsers."""


def main(argv: Sequence[str]) -> None:
    """Print the answer to one command line and leave at once, whatever threads the imports have started."""
    if "--" not in argv:
        raise SystemExit("usage: python -m plugins.slime.dry_parse -- <arguments of train.py>")
    answer = os.dup(1)
    os.dup2(2, 1)
    said = json.dumps({MARK: 1, **dry_parse(argv[argv.index("--") + 1 :])})
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(answer, "w", encoding="utf-8") as stdout:
        stdout.write(said + "\n")
    os._exit(0)


def dry_parse(argv: Sequence[str]) -> dict[str, Any]:
    """Read arguments of train.py with slime's own `parse_args`.

    Returns options: how many options the parsers have; problems: what is wrong with the flags, as in `flag_table`;
    complaint: None, or kind, message and where of what slime raised. Changes sys.argv.
    """
    answer: dict[str, Any] = {"options": 0, "problems": [], "complaint": None}
    try:
        from slime.utils.arguments import parse_args

        with recorded_parsers() as parsers:
            sys.argv = ["train.py"]
            with contextlib.suppress(Stopped):
                parse_args()
        flags = by_spelling([flag for parser in parsers for flag in flags_of(parser, "image")])
        answer["options"] = len({flag.name for flag in flags.values()})
        if answer["options"] < FEWEST_OPTIONS:
            raise RuntimeError(f"slime shows only {answer['options']} options: its parsers are not those we know")
        answer["problems"] = problems(argv, flags, engine_flags_known=True)
        sys.argv = ["train.py", *argv]
        with errors_with_words():
            parse_args()
    except BaseException as error:  # SystemExit is argparse's way, and whatever else is slime's to say
        answer["complaint"] = _complaint(error)
    return answer


@contextlib.contextmanager
def recorded_parsers() -> Iterator[list[argparse.ArgumentParser]]:
    """Parsers that are used meanwhile, in their order.

    The last, Megatron's with slime's options, is not run: it ends the reading with `Stopped`.
    """
    parsers: list[argparse.ArgumentParser] = []
    parse = argparse.ArgumentParser.parse_known_args

    def record(parser: argparse.ArgumentParser, *args: Any, **more: Any) -> Any:
        parsers.append(parser)
        if "--rollout-batch-size" in parser._option_string_actions:
            raise Stopped
        return parse(parser, *args, **more)

    argparse.ArgumentParser.parse_known_args = record  # type: ignore[method-assign, assignment]
    try:
        yield parsers
    finally:
        argparse.ArgumentParser.parse_known_args = parse  # type: ignore[method-assign]


def flags_of(parser: argparse.ArgumentParser, source: str) -> list[Flag]:
    """The options of a parser but its help, as the lint wants them."""
    defaults = _defaults(parser)
    flags = []
    for action in parser._actions:
        names = sorted(action.option_strings, key=lambda name: not name.startswith("--"))
        if not names or isinstance(action, argparse._HelpAction):
            continue
        takes = "1" if action.nargs is None else str(action.nargs)
        kind, choices = _kind(action)
        default = json.dumps(defaults.get(action.dest), default=_text, sort_keys=True)
        flags.append(
            Flag(names[0], tuple(names[1:]), takes, "" if takes == "0" else kind, choices, source, action.dest, default)
        )
    return flags


def _defaults(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Attributes of an empty command line: the first option of an attribute decides, and texts are converted."""
    required = [action for action in parser._actions if action.required]
    for action in required:
        action.required = False
    try:
        return vars(parser.parse_known_args([])[0])
    finally:
        for action in required:
            action.required = True


_KINDS: dict[Any, str] = {None: "str", str: "str", int: "int", float: "float", bool: "bool", json.loads: "json"}
_KINDS_OF_MEGATRON = {
    "moe_freq_type": "pattern",
    "la_freq_type": "pattern",
    "no_rope_freq_type": "pattern",
    "tuple_type": "tuple",
    "enum_type_handler": "name",  # of a member; its choices are the members
}


def _kind(action: argparse.Action) -> tuple[str, tuple[str, ...]]:
    convert: Callable[[str], Any] | None = action.type  # type: ignore[assignment]
    kind = _KINDS[convert] if convert in _KINDS else _KINDS_OF_MEGATRON.get(getattr(convert, "__name__", ""), "any")
    if kind == "any" or not isinstance(action.choices, Sequence | Set):  # some containers only know what is in them
        return kind, ()
    choices = tuple(_text(choice) for choice in action.choices)
    return kind, () if any(" " in choice or not choice for choice in choices) else choices


def _text(value: object) -> str:
    return value.name if isinstance(value, enum.Enum) else str(value)


@contextlib.contextmanager
def errors_with_words() -> Iterator[None]:
    """argparse prints its complaint, with a thousand options before it, and leaves with code 2; here it carries it."""
    said = argparse.ArgumentParser.error

    def error(parser: argparse.ArgumentParser, message: str) -> Any:
        raise SystemExit(message)

    argparse.ArgumentParser.error = error  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        argparse.ArgumentParser.error = said  # type: ignore[method-assign]


def _complaint(error: BaseException) -> dict[str, str]:
    traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{'/'.join(Path(frames[-1].filename).parts[-3:])}:{frames[-1].lineno}" if frames else ""
    return {"kind": type(error).__name__, "message": str(error)[:4000], "where": where}


if __name__ == "__main__":
    main(sys.argv)
