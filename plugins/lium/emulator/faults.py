"""Faults to order, and a journal of what was called: how tests make the rare things happen and see what a client did.

`POST /_emulator/faults` with counts that are used up one by one:

    {"429:GET /api/pods": 2}     the next two listings answer 429 (any status; the path may end in `*`)
    {"lose_rent_answer": 1}      the next rent is carried out and answered with 502
    {"boot_fail": 1}             the next pod ends in CREATION_FAILED
    {"no_capacity": 1}           the next rent finds nothing
"""

import fnmatch
import re
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from plugins.errors import UserError

NAMED = ("lose_rent_answer", "boot_fail", "no_capacity")
_HTTP_FAULT = re.compile(r"[45]\d\d:[A-Z]+ /\S*")
JOURNAL_LENGTH = 10_000


class Faults:
    """Counters of faults still to happen."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}

    def order(self, wanted: dict[str, Any]) -> dict[str, int]:
        """Set counters (0 takes one back); returns all that are left. Raises UserError for a name it does not know."""
        for name, count in wanted.items():
            if name not in NAMED and not _HTTP_FAULT.fullmatch(name):
                raise UserError(f"unknown fault {name!r}; it is one of {', '.join(NAMED)} or like '429:GET /api/pods'")
            if not isinstance(count, int) or count < 0:
                raise UserError(f"the count of fault {name!r} is {count!r}, not a whole number from 0")
        self.left = {name: count for name, count in (self.left | wanted).items() if count}
        return self.left

    def take(self, name: str) -> bool:
        """Use one of a named fault up."""
        count = self.left.get(name, 0)
        if count:
            self.left[name] = count - 1
        return count > 0

    def http_status(self, method: str, path: str) -> int | None:
        """The error status ordered for this call, if one is."""
        for name in self.left:
            status, _, call = name.partition(":")
            if fnmatch.fnmatchcase(f"{method} {path}", call) and self.take(name):
                return int(status)
        return None


@dataclass(frozen=True)
class Call:
    """One request in the journal. No secrets: the last four characters of the key, and names of body fields only."""

    at: str
    method: str
    path: str
    query: str
    status: int
    ms: float
    api_key_tail: str
    body_keys: list[str]


class Journal:
    """The last calls, oldest first."""

    def __init__(self) -> None:
        self.calls: deque[Call] = deque(maxlen=JOURNAL_LENGTH)

    def rows(self) -> list[dict[str, Any]]:
        """The journal as JSON rows."""
        return [asdict(call) for call in self.calls]
