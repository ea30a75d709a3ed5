"""Which batches the run that was kept has trained, from the trainer's own log and from where each attempt started.

attempt 1   0 1 2 3 4 |            kept: 0 1 2   (attempt 2 went on from 2: 3 and 4 were given up)
attempt 2         3 4 5 6 |        kept: 3 4 5
attempt 3               6 7
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Batches:
    """kept: rollout to the rows it was trained on and their numbers in the order drawn. twice: trained twice by one
    attempt. backwards: an attempt that started from something that no attempt before it had trained.
    """

    kept: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict)
    twice: list[int] = field(default_factory=list)
    backwards: str = ""

    def lost(self, true: "Batches") -> list[int]:
        """Rollouts of the uncut run in which a prompt was trained that the kept run never saw."""
        seen = {group for _, groups in self.kept.values() for group in groups}
        return [
            rollout for rollout, (_, groups) in true.kept.items() if rollout not in self.kept or not set(groups) <= seen
        ]

    def repeated(self, true: "Batches") -> list[int]:
        """Kept rollouts with other rows than in the uncut run, or with a prompt that another one has too."""
        times = Counter(group for _, groups in self.kept.values() for group in groups)
        other = {number for number, batch in self.kept.items() if batch != true.kept.get(number, batch)}
        again = {number for number, (_, groups) in self.kept.items() if any(times[group] > 1 for group in groups)}
        return sorted(other | again | set(self.twice))


def read_batches(log: Path, restored: Mapping[int, int | None]) -> Batches:
    """The kept batches. restored: attempt to the iteration it started from, None for a cold start."""
    found = Batches()
    by_attempt: dict[int, list[dict]] = {}
    for line in log.read_text().splitlines():
        record = json.loads(line)
        by_attempt.setdefault(int(record["attempt"]), []).append(record)
    for attempt in sorted(by_attempt):
        start = restored.get(attempt)
        start = -1 if start is None else start
        if start not in {-1, *found.kept}:
            found.backwards = f"attempt {attempt} started from {start}, which was not trained before"
        found.kept = {number: batch for number, batch in found.kept.items() if number <= start}
        for record in by_attempt[attempt]:
            if record["rollout"] in found.kept:
                found.twice.append(record["rollout"])
            found.kept[record["rollout"]] = (record["rows"], record["groups"])
    return found
