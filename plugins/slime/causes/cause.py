"""What one known cause of death is made of; the table's files share it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Mend = Literal["recipe", "pod", "unknown"]


@dataclass(frozen=True)
class Cause:
    """One known way to die.

    name: stable, part of the failure's signature. words: pattern of a line; its groups fill `what`. within: must be
    found around it too (speaker, frames, earlier exceptions). what: one sentence; remedy: names the recipe's key.
    mend: `pod` when the machine is at fault and another one may do. rank: 0 explains other errors, 1 is an error's own
    reason, 2 is what follows from some reason that may stand elsewhere, 3 says no more than that something died.
    """

    name: str
    words: str
    what: str
    remedy: str
    mend: Mend = "recipe"
    within: str | None = None
    rank: int = 1

    def match(self, line: str) -> re.Match[str] | None:
        """The words at the beginning of a line."""
        return re.match(self.words, line)

    def fits(self, around: str) -> bool:
        """Whether it happened where this cause is at home."""
        return self.within is None or re.search(self.within, around) is not None


ERROR = r"(?:[A-Za-z_][\w.]*: )?"
"""An exception's type, or none: the second line of a message."""
