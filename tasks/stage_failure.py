"""The error that a failed trainer becomes: where it failed, what it died of, what to do, and its last lines.

`chain.py` reads the first line again to tell whether a stage fails twice in the same way, so its form is fixed:

    Run <run>, <submission>: <problem>, at iteration 7 [<name>: <signature>].
    <name>: <what happened>. What to do: <remedy>.          (where the cause is known)
    Earlier in the log, and survived: <name> (<words>).     (where it is not, and there is such)
    Its last lines:
    ...
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from plugins.errors import TrainstackError
from plugins.rayjobs.settings import read_info
from plugins.slime.diagnose import Diagnosis, diagnose, earlier_cause
from plugins.slime.failure import signature
from plugins.slime.watchdog import Stall
from plugins.slime.worker_logs import last_lines
from tasks.plain_text import plain
from tasks.redact import redactor
from tasks.stage_attempt import PodUnfit, Stage, TrainerFailed
from tasks.stores import SECRET_NAMES

SHOWN_LINES = 25
LONGEST_LINE, LONGEST_TEXT = 500, 8000
"""Characters of a line and of all lines that an error shows: what carries it refuses large bodies."""
BYTES_PER_GB = 10**9


def ended_badly(
    stage: Stage, problem: str, tail: Sequence[str], *, exit_reason: str, exit_code: int | None, since: float
) -> TrainstackError:
    """The error for a trainer that ended without reaching its last iteration.

    tail: the end of its log; exit_reason: its job's last state, exit_code its own; since: when it was started, epoch
    seconds. A PodUnfit when the machine is at fault, else a TrainerFailed.
    """
    tail = _speakable(stage, tail)
    kind = stage.order.recipe.trainer.kind
    found = diagnose(tail, None, kind)
    logs = ray_logs(stage)
    if found is None and logs is not None and kind != "command":  # a command's own exception is its cause
        found = diagnose(last_lines(logs, since), None, kind)  # what actors said after the driver had died
    found = found or diagnose((), exit_code, kind)
    if found is not None and found.name == "disk-full" and _filled_by_others(stage):
        what = "The host's disk is full, and most of it is not this run's"
        found = replace(
            found, what=what, remedy="Nothing in the recipe: the next attempt goes to another host", mend="pod"
        )
    shown = tail[-SHOWN_LINES:]
    said = signature(shown, exit_reason)
    earlier = None if found else earlier_cause(tail)
    return _error(stage, problem, f"{found.name}: {said}" if found else said, found, shown, earlier)


def stood_still(stage: Stage, stall: Stall, tail: Sequence[str]) -> TrainstackError:
    """The error for a trainer that the watchdog stops."""
    found = Diagnosis(stall.name, stall.sentence, stall.remedy, "unknown")
    problem = "the trainer made no progress and was stopped"
    return _error(stage, problem, f"{stall.name} in {stall.phase}", found, _speakable(stage, tail)[-SHOWN_LINES:])


def ray_logs(stage: Stage) -> Path | None:
    """Where Ray's workers write on this pod; None when no head runs."""
    info = read_info(stage.ray_state)
    return Path(info.log_dir) if info else None


def _error(
    stage: Stage, problem: str, cause: str, found: Diagnosis | None, shown: Sequence[str], earlier: str | None = None
) -> TrainerFailed | PodUnfit:
    done = stage.progress.iteration
    at = "before its first iteration" if done is None else f"at iteration {done}"
    known = f"\n{found}\n" if found else f"\nEarlier in the log, and survived: {earlier}.\n" if earlier else " "
    text = _fitting(shown) or "(it wrote nothing)"
    kind = PodUnfit if found is not None and found.mend == "pod" else TrainerFailed
    return kind(
        f"Run {stage.order.run_id}, {stage.submission_id}: {problem}, {at} [{cause}].{known}Its last lines:\n{text}"
    )


def _speakable(stage: Stage, tail: Sequence[str]) -> list[str]:
    """The lines without secrets and control characters: before they are cut, as half a secret is not found."""
    redact = redactor([*stage.order.recipe.secrets, *SECRET_NAMES])
    return [redact(plain(line)) for line in tail]


def _fitting(shown: Sequence[str]) -> str:
    """The lines, each cut, and as many of the last ones as there is room for."""
    text = "\n".join(line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 3]}..." for line in shown)
    return text if len(text) <= LONGEST_TEXT else f"...\n{text[-LONGEST_TEXT:].partition(chr(10))[2]}"


def _filled_by_others(stage: Stage) -> bool:
    """Whether the recipe asked for a disk (pod.min_disk_gb) of which our files do not take half: weights that were
    fetched count, what Ray spilled and what was deleted since does not."""
    promised = stage.order.recipe.pod.min_disk_gb
    if promised is None:
        return False
    places = (stage.root, Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"))
    try:
        files = (file for place in places for file in place.rglob("*") if file.is_file() and not file.is_symlink())
        return sum(file.stat().st_size for file in files) < promised * BYTES_PER_GB / 2
    except OSError:
        return False
