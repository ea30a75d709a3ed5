"""slime's flags as data: write them out, and catch the misspelt ones before money is spent.

All four parsers of slime ignore a flag they do not know (slime.md 5.5: `--save-intervall 5` is accepted in
silence), so a launcher has to look. Which flags exist is told by the caller; which flags a stage gets is
`launch.py`'s matter.
"""

from __future__ import annotations

import contextlib
import difflib
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from plugins.errors import UserError

Scalar = str | int | float | bool | None
Value = Scalar | Sequence[str | int | float]


def render(args: Mapping[str, Value]) -> list[str]:
    """Write flags as argv, in the mapping's order.

    True gives the bare flag, False and None leave it out, a list gives one flag with several values.
    Raises UserError for a value that a command line cannot carry.
    """
    argv: list[str] = []
    for name, value in args.items():
        if value is None or value is False:
            continue
        argv.append(f"--{name}")
        if value is True:
            continue
        values = [value] if isinstance(value, str | int | float) else value
        if (
            not isinstance(values, Sequence)
            or not values
            or not all(isinstance(one, str | int | float) for one in values)
        ):
            raise UserError(
                f"trainer flag --{name}: {value!r} is not a number, a text, true, false or a non-empty list of those"
            )
        argv += [str(one) for one in values]
    return argv


def parse_argv(argv: Sequence[str]) -> dict[str, Value]:
    """The other way round, for arguments that a script gave: `--name value ...` to a mapping; the last one wins.

    Numbers become numbers, a flag without a value is True, one with several is a list of texts.
    """
    found: dict[str, list[str]] = {}
    name = ""
    for word in argv:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            found[name] = [value] if value else []
        elif name:
            found[name].append(word)
    return {name: _one(values) for name, values in found.items()}


def _one(values: list[str]) -> Value:
    if not values:
        return True
    return _number(values[0]) if len(values) == 1 else values


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def lint(args: Iterable[str], known: set[str]) -> None:
    """Refuse flag names that the trainer does not have.

    args: names without dashes (a mapping of flags will do); known: the trainer's names, with or without dashes.
    Raises UserError that names every unknown flag and the known ones that look like it.
    """
    names = {name.removeprefix("--") for name in known}
    unknown = [name for name in args if name not in names]
    if not unknown:
        return
    said = []
    for name in unknown:
        near = difflib.get_close_matches(name.replace("_", "-"), sorted(names), n=3, cutoff=0.7)
        said.append(f"{name} (did you mean {' or '.join(near)}?)" if near else name)
    raise UserError(f"unknown trainer flag{'s' if len(unknown) > 1 else ''}: {', '.join(said)}")


def model_args(slime_dir: Path, model: str) -> list[str]:
    """Architecture flags of a model, from `scripts/models/<model>.sh` of the slime checkout (it fills the bash
    array MODEL_ARGS).

    Raises UserError when there is no such file, naming the near ones, or when it fills nothing.
    """
    folder = slime_dir / "scripts" / "models"
    file = folder / f"{model}.sh"
    if "/" in model or not file.is_file():
        there = sorted(path.stem for path in folder.glob("*.sh"))
        near = difflib.get_close_matches(model, there, n=3)
        raise UserError(
            f"model {model!r} has no arguments in {folder}" + (f": did you mean {' or '.join(near)}?" if near else "")
        )
    script = 'source "$1" >/dev/null && printf "%s\\0" "${MODEL_ARGS[@]}"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(file)], capture_output=True, text=True, timeout=30, check=False
    )
    words = done.stdout.split("\0")[:-1]
    if done.returncode != 0 or not any(words):
        raise UserError(f"{file}: gives no MODEL_ARGS: {done.stderr.strip()[-300:] or 'the array is empty'}")
    return words
