"""The last words of actors, in the logs of Ray's workers: the driver's log repeats them until the driver dies."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path

from plugins.slime.diagnose import TAIL_LINES

_END_BYTES = 256 << 10
_ACTOR_NAME = re.compile(rb"^:actor_name:([\w.-]+)", re.MULTILINE)  # ray/_private/ray_constants.py:504


def last_lines(log_dir: Path, since: float) -> list[str]:
    """The ends of the logs of Ray's workers that were written since then (epoch seconds), oldest first.

    Each line carries Ray's prefix of who says it. Never raises: logs may vanish while they are read.
    """
    lines: deque[str] = deque(maxlen=TAIL_LINES)
    for file in sorted(_written(log_dir, since), key=lambda found: found[0]):
        try:
            with file[1].open("rb") as opened:
                name = _ACTOR_NAME.search(opened.read(1000))
                opened.seek(max(0, file[1].stat().st_size - _END_BYTES))
                text = opened.read().decode("utf-8", "replace")
        except OSError:
            continue
        speaker = name[1].decode() if name else file[1].stem
        lines.extend(f"({speaker} pid=0) {line}" for line in text.splitlines())
    return list(lines)


def _written(log_dir: Path, since: float) -> list[tuple[float, Path]]:
    found = []
    for file in log_dir.glob("worker-*"):
        try:
            changed = file.stat().st_mtime
        except OSError:
            continue
        if changed >= since and file.suffix in (".out", ".err"):
            found.append((changed, file))
    return found
