"""A trainer command of the user's own, such as one of slime's run scripts: what of it cannot run on our pod.

slime's scripts own their machine: they kill every Python, stop Ray, start one of their own and submit a job to it
(slime v0.3.1 scripts/run-qwen3-4B.sh). On a pod most of that is caught by stand-ins in the command's PATH (`shims`).
What goes past a PATH is refused here: programs named by their folder or called by `sudo`, and what the shell's own
`kill` is told to end.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from plugins.errors import UserError

SCRIPT_LIMIT_BYTES = 1 << 20
_CONTINUED = re.compile(r"\\\r?\n")
_COMMENT = re.compile(r"(?m)(?:^|(?<=\s))#.*$")
_START = r"(?<![^\s;&|(){}`'\"])"  # of a word
_END = r"(?![\w./=-])"
_FOLDER = r"[\w.~$@+/{}-]*/"
_KILLERS = r"(?:pkill|killall|skill|fuser|shutdown|reboot|poweroff|halt)"
_VERB = r"\s+(?:-\S+\s+(?:[^-\s]\S*\s+)?)*?(?:stop|start|job\s+submit)"
_SUDO = rf"{_START}sudo\s+(?:-\S+\s+)*"
_BY_NAME = "write the bare name: then the stage sees to it that the pod's own worker, Ray and stage live on"
_REFUSED = (
    (rf"{_START}{_FOLDER}s?bin/{_KILLERS}{_END}", _BY_NAME),
    (rf"{_START}{_FOLDER}ray{_VERB}{_END}", _BY_NAME),
    (rf"{_SUDO}(?:{_KILLERS}|kill|ray{_VERB}){_END}", f"leave `sudo` out (you are root), and {_BY_NAME}"),
    (rf"{_START}ray\.scripts\.scripts{_VERB}{_END}", "write `ray` instead of `python -m ray.scripts.scripts`"),
    (
        rf"{_START}kill\s+(?:-\S+\s+)*-1{_END}(?!\s*[\d$%])",
        "ends every process on the pod: leave it out; the stage starts on a clean pod, and stops what an earlier "
        "attempt left",
    ),
    (
        rf"{_START}(?:xargs\s+(?:-\S+\s+(?:\d+\s+)?)*kill{_END}|kill\s+(?:-\S+\s+)*\"?(?:\$\(|`)\s*"
        r"(?:pgrep|pidof|ps|lsof|fuser|nvidia-smi)\b)",
        "ends processes of the pod that the command did not start: leave it out; the stage starts on a clean pod, and "
        "stops what an earlier attempt left",
    ),
)


def check_command(text: str, where: str = "the command") -> None:
    """Refuse a shell command that would kill the pod's own services although it runs under the stand-ins.

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
    _check_there(_split(command), folder)
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


def _check_there(words: list[str], folder: Path) -> None:
    """A script that the command itself starts or reads must be on the pod, or it fails there attempt by attempt.

    A command that changes its folder may mean another place by a relative path.
    """
    moves = "cd" in words or "pushd" in words
    for before, word in zip(["", *words], words, strict=False):
        started = before in ("", "bash", "sh", "source", ".", "exec")
        if started and word.endswith((".sh", ".bash")) and "$" not in word and not (folder / word).is_file():
            if moves and not word.startswith("/"):
                continue
            raise UserError(f"the command: there is no script {word} on the pod (relative paths start in {folder})")


def _split(command: str | list[str]) -> list[str]:
    """Words of a command, the strings of `bash -c` taken apart too."""
    if isinstance(command, list):
        return [word for part in command for word in _split(part)]
    try:
        return [piece for word in shlex.split(command, comments=True) for piece in re.split(r"[\s;&|()]+", word)]
    except ValueError:  # a quote without its partner; bash will say so
        return re.split(r"[\s;&|()'\"]+", command)
