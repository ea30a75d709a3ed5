"""Whether a rented pod is what was paid for, looked at before anything is trained on it.

Hosts on a marketplace are strangers: some list GPUs they do not have, some are full, slow, or cut off from the net, and
training finds that out after an hour. So each of twelve figures becomes a row with the limit it was held to. Measuring
is `preflight_probe.py`'s, which runs on the pod, and judging `preflight_rows.py`'s; what happens to a pod with a
failing row is the caller's.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from plugins.lium import preflight_probe
from plugins.lium.preflight_rows import Check, ClockReading, Limits, Said, rows, shown
from plugins.lium.tunnel import PodConnection

__all__ = ["Check", "Limits", "failing", "preflight"]

PROBE_S = 90.0
CLOCK_S = 30.0
NO_PYTHON = 66  # the exit status for "this pod has no python3"
PROBES = ("gpus", "cuda", "disk", "write", "download", "shm", "api", "digest")

# A session may lack the PATH of the image, which pid 1 has.
_RUN = f"""
of_init() {{ {{ tr '\\0' '\\n' </proc/1/environ; }} 2>/dev/null | sed -n 's/^PATH=/:/p' | head -n 1; }}
python=$(command -v python3) || python=$(PATH=$PATH:/opt/trainstack/.venv/bin$(of_init); command -v python3) ||
  exit {NO_PYTHON}
exec "$python" -I -c {shlex.quote(preflight_probe.LAUNCH)}
"""


def preflight(connection: PodConnection, limits: Limits, now: Callable[[], float]) -> list[Check]:
    """Look at the pod and hold it to the limits: twelve rows, always in the same order, in about ten seconds.

    `now` gives epoch seconds; the pod's clock is held to it. At most 256 MB are written on the pod (never more than a
    tenth of what is free) and about 1 GB downloaded. ControlPlaneError: the pod did not answer over SSH.
    """
    said = _ask(connection, limits)
    before = now()
    date = connection.run(["date", "+%s.%N"], timeout_s=CLOCK_S)
    after = now()
    clock = ClockReading(Said((date.stdout or date.stderr).decode(errors="replace")), before, after)
    return rows(said, clock, limits)


def failing(checks: Sequence[Check]) -> str | None:
    """One line that names the failing rows with found and limit; None when there is none."""
    parts = []
    for found, group in groupby((check for check in checks if not check.ok), key=lambda check: check.found):
        same = list(group)
        limits = ", ".join(check.limit for check in same if check.limit)
        parts.append(f"{', '.join(check.name for check in same)}: {found}" + (f" (limit: {limits})" if limits else ""))
    return "; ".join(parts) or None


def _ask(connection: PodConnection, limits: Limits) -> dict[str, Said]:
    source = Path(preflight_probe.__file__).read_text(encoding="utf-8")
    # On standard input, not in argv: the address of a download may be a signed one.
    ask = {"source": source, "download_url": limits.download_url, "api_url": limits.api_url}
    done = connection.run(["sh", "-c", _RUN], stdin=json.dumps(ask).encode(), timeout_s=PROBE_S)
    if done.rc == NO_PYTHON:
        return dict.fromkeys(PROBES, Said(problem="there is no python3 on the pod"))
    answers = _answers(done.stdout)
    if answers is None:
        text = (done.stderr or done.stdout).decode(errors="replace")
        return dict.fromkeys(PROBES, Said(problem=f"the probe ended with status {done.rc}: {shown(text) or 'nothing'}"))
    return {name: _said(answers.get(name)) for name in PROBES}


def _answers(output: bytes) -> dict[str, object] | None:
    try:
        answers = json.loads(output)
    except (ValueError, RecursionError):
        return None
    return answers if isinstance(answers, dict) else None


def _said(answer: object) -> Said:
    if isinstance(answer, dict):
        text, problem = answer.get("text"), answer.get("problem")
        if isinstance(problem, str):
            return Said(problem=problem)
        if isinstance(text, str):
            return Said(text)
    return Said(problem="the probe did not answer")
