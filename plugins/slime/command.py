"""A trainer command of the user's own, such as one taken from slime's run scripts: what of it cannot run on our pod.

slime's scripts own their machine. They begin with `pkill -9 python; ray stop --force`, start a Ray of their own and
submit a job to it (slime v0.3.1 scripts/run-qwen3-4B.sh). On a pod that would end the worker, the stage that watches
the training, and the Ray that it runs in; and a job submitted from inside is one that nobody stops when the stage ends.
What is left, `source scripts/models/<model>.sh` and `python3 train.py ${MODEL_ARGS[@]} ...`, runs as it is.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from plugins.errors import UserError

SCRIPT_LIMIT_BYTES = 1 << 20
_CONTINUED = re.compile(r"\\\r?\n")
_COMMENT = re.compile(r"(?m)(?:^|(?<=\s))#.*$")
_START = r"(?<![\w.@%+=$/-])(?:/[\w./-]*bin/)?"  # /usr/bin/pkill is pkill, /data/pkill is not
_END = r"(?![\w./=-])"
_RAY = rf"{_START}ray\s+(?:-\S+\s+(?:[^-\s]\S*\s+)?)*?"
_CLEAN = "the stage starts on a clean pod, and stops what an earlier attempt left"
_REFUSED = (
    (
        rf"{_START}(?:pkill|killall|skill){_END}",
        f"ends the pod's own worker, Ray and stage: leave it out; {_CLEAN}",
    ),
    (rf"{_START}kill\s+(?:-\S+\s+)*-1{_END}", f"ends every process on the pod: leave it out; {_CLEAN}"),
    (rf"{_START}fuser\s+(?:\S+\s+)*-\w*k", f"ends processes of the pod: leave it out; {_CLEAN}"),
    (rf"{_RAY}stop{_END}", "stops the Ray that the training itself runs in: leave it out"),
    (rf"{_RAY}start{_END}", "the pod's Ray runs already, and a second one takes its ports: leave it out"),
    (
        rf"{_RAY}job\s+submit{_END}",
        "the stage submits the command itself, and a job inside it would go on when the stage is stopped: write only "
        "what stands behind `--` (python3 train.py ...), and put what is in --runtime-env-json into the recipe's `env`",
    ),
    (rf"{_START}(?:shutdown|reboot|poweroff|halt){_END}", "ends the pod: leave it out"),
)


def check_command(text: str, where: str = "the command") -> None:
    """Refuse a shell command that would kill the pod's own services, or start a training that nobody can stop.

    text: one shell line, a script, or an argv joined by spaces; where: names it in the message.
    Raises UserError naming the words, the line they stand in and what to write instead. A word in a comment is none;
    one in a string counts, because `bash -c "..."` runs it.
    """
    code = _COMMENT.sub(_blank, _CONTINUED.sub(_blank, text))
    problems = []
    for pattern, reason in _REFUSED:
        if match := re.search(pattern, code):
            words, number = " ".join(match[0].split()), text.count("\n", 0, match.start()) + 1
            line = f" (line {number})" if "\n" in text.strip() else ""
            problems.append(f"{where}: `{words}`{line}: {reason}")
    if problems:
        raise UserError("\n".join(problems))


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])  # so that places in the text stay what they were


def check_scripts(command: str | list[str], folder: Path) -> None:
    """Look, on the pod, into the scripts that a command runs (`bash run.sh`, `source x.sh`) and refuse as above.

    folder: what relative paths start at. A path put together from variables cannot be followed. Raises UserError.
    """
    waiting, seen = [(_split(command), folder)], set[Path]()
    while waiting:
        words, start = waiting.pop()
        for path in (start / word for word in words if word.endswith((".sh", ".bash"))):
            if path in seen or not path.is_file():
                continue
            seen.add(path)
            with path.open("rb") as file:
                text = file.read(SCRIPT_LIMIT_BYTES).decode(errors="replace")
            check_command(text, str(path))
            waiting.append((_split(text), start))


def _split(command: str | list[str]) -> list[str]:
    """Words of a command, the strings of `bash -c` taken apart too."""
    if isinstance(command, list):
        return [word for part in command for word in _split(part)]
    try:
        return [piece for word in shlex.split(command, comments=True) for piece in re.split(r"[\s;&|()]+", word)]
    except ValueError:  # a quote without its partner; bash will say so
        return re.split(r"[\s;&|()'\"]+", command)
