"""What the relay suite counts, and the breaches it found; as one line of JSON it travels between processes."""

import json
from collections import Counter
from dataclasses import dataclass, field

KILL_POINTS, TORN, STALE = "kill_points", "torn_selected", "stale_selected"
LOST, REPEATED, DOUBLE = "lost_batches", "repeated_batches", "double_publish"
NAMES = (KILL_POINTS, TORN, STALE, LOST, REPEATED, DOUBLE)


@dataclass
class Figures:
    """counts: the figures of `NAMES`. kinds: kill points by what was killed. breaches: a sentence for each."""

    counts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    breaches: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """How often an invariant was breached."""
        return sum(self.counts[name] for name in NAMES if name != KILL_POINTS)

    def breach(self, name: str, text: str, times: int = 1) -> None:
        """Count a breach and keep what it was."""
        self.counts[name] += times
        self.breaches.append(f"{name}: {text}")

    def add(self, other: "Figures") -> None:
        """Take another part's figures in."""
        self.counts += other.counts
        self.kinds += other.kinds
        self.breaches += other.breaches

    def line(self) -> str:
        """The one line that sums up."""
        return " ".join(f"{name}={self.counts[name]}" for name in NAMES)

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"counts": self.counts, "kinds": self.kinds, "breaches": self.breaches})

    @classmethod
    def from_json(cls, text: str) -> "Figures":
        """Read it."""
        raw = json.loads(text)
        return cls(Counter(raw["counts"]), Counter(raw["kinds"]), raw["breaches"])
