"""What the rules of the gateway say about a call: pass it on (as rewritten), answer it here, or refuse it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

Json = dict[str, Any]
MayWrite = Callable[[Sequence[str], str], bool]
"""Whether a pod (by name) may write an artifact under a key."""


@dataclass(frozen=True)
class Call:
    """A call of a pod whose token was believed. `ids` are the variable parts of its path."""

    pod: str
    ids: tuple[str, ...]
    raw: bytes

    def body(self) -> Json:
        """The JSON object in the body. Raises Refusal (400) when it is none."""
        found = parsed(self.raw)
        if not isinstance(found, dict):
            raise Refusal(400, "the body is not a JSON object")
        return found


@dataclass(frozen=True)
class Forward:
    """Ask upstream. The path is written by us, never taken from the pod."""

    method: str
    path: str
    body: Any = None


@dataclass(frozen=True)
class Answer:
    """Answered here, without asking upstream; `complaint` when it is a refusal in Prefect's own words."""

    body: Any
    status: int = 200
    complaint: str = ""


class Refusal(Exception):
    """Not for this pod. Stays inside the gateway: the proxy turns it into an HTTP answer."""

    def __init__(self, status: int, reason: str, retry_after_s: int = 0) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after_s = status, reason, retry_after_s


class UpstreamTrouble(Exception):
    """The API behind the gateway is down (502) or slow (503): Prefect's client tries both again."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def parsed(raw: bytes | str) -> Any:
    """JSON from a stranger. Raises Refusal (400)."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the body is not JSON") from error


def id_of(value: object, what: str) -> str:
    """A UUID in its usual form. Raises Refusal (400)."""
    try:
        if isinstance(value, str):
            return str(UUID(value))
    except ValueError:
        pass
    raise Refusal(400, f"{what} is not an id")


def only(body: Json, *keys: str) -> None:
    """Refuse (403) a body that says anything beyond these keys; null and empty say nothing."""
    if extra := sorted(str(key)[:40] for key, value in body.items() if key not in keys and value not in (None, {}, [])):
        raise Refusal(403, f"a pod may not say {', '.join(extra[:5])} here")


def at(body: Json, *path: str) -> object:
    """What lies at the end of a path of keys; None when the path ends early."""
    found: object = body
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found
