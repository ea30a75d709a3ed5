"""Faults to order, and a journal of what was called: how tests make the rare things happen and see what a client did.

`POST /_emulator/faults` with counts that are used up one by one. Those of a call (METHOD PATH, both may hold `*`):

    {"429:GET /api/pods": 2}                    the next two listings answer 429 (any error status)
    {"timeout:GET /api/pods*": 1}               no answer until the client gives up (35 s at most); not carried out
    {"lost:POST /api/templates": 1}             carried out, and the connection closed without an answer
    {"empty:GET /api/pods": 1}                  answers []
    {"late:POST /api/executors/*/rent": 1}      the pod is missing from listings for its first 5 s

and those with a name:

    {"status:SLEEPING": 1}       every row of the next pod listing has this status
    {"lose_rent_answer": 1}      the next rent is carried out and answered with 502
    {"boot_fail": 1}             the next pod ends in CREATION_FAILED
    {"no_capacity": 1}           the next rent finds nothing

What they do to an answer is `fault_answers.py`'s.
"""

import fnmatch
import re
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from plugins.errors import UserError

NAMED = ("lose_rent_answer", "boot_fail", "no_capacity")
KINDS = ("timeout", "lost", "empty", "late")
_OF_A_CALL = re.compile(rf"(?:[45]\d\d|{'|'.join(KINDS)}):[A-Z*]+ [/*]\S*")
_STATUS_WORD = re.compile(r"status:[A-Za-z_]+")
JOURNAL_LENGTH = 10_000


class Faults:
    """Counters of faults still to happen."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}

    def order(self, wanted: dict[str, Any]) -> dict[str, int]:
        """Set counters (0 takes one back); returns all that are left. Raises UserError for a name it does not know."""
        for name, count in wanted.items():
            if name not in NAMED and not _OF_A_CALL.fullmatch(name) and not _STATUS_WORD.fullmatch(name):
                raise UserError(
                    f"unknown fault {name!r}; it is one of {', '.join(NAMED)}, or like '429:GET /api/pods' "
                    f"(an error status or {', '.join(KINDS)}, then method and path), or like 'status:SLEEPING'"
                )
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise UserError(f"the count of fault {name!r} is {count!r}, not a whole number from 0")
        self.left = {name: count for name, count in (self.left | wanted).items() if count}
        return self.left

    def take(self, name: str) -> bool:
        """Use one of a named fault up."""
        count = self.left.get(name, 0)
        if count:
            self.left[name] = count - 1
        return count > 0

    def take_for(self, kind: str, method: str, path: str) -> bool:
        """Use one up of a kind of `KINDS` ordered for this call."""
        return any(name for name in self._of(method, path) if name.startswith(f"{kind}:") and self.take(name))

    def http_status(self, method: str, path: str) -> int | None:
        """The error status ordered for this call, if one is."""
        for name in self._of(method, path):
            if name[0].isdigit() and self.take(name):
                return int(name[:3])
        return None

    def status_word(self) -> str | None:
        """The status that the rows of this listing have instead of theirs, if one is ordered."""
        words = [name for name in self.left if name.startswith("status:")]
        return next((name.partition(":")[2] for name in words if self.take(name)), None)

    def _of(self, method: str, path: str) -> list[str]:
        call = f"{method} {path}"
        return [name for name in self.left if fnmatch.fnmatchcase(call, name.partition(":")[2])]


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
