"""One HTTP request of the simulated client: it takes time, it can meet a trouble, and it can be a process's last call.

Retries follow lium.io 0.32.0 (`sdk/client.py`, with_retry). Which requests there are is `sim_lium.py`'s.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import requests
from lium.sdk.exceptions import LiumError, LiumRateLimitError, LiumServerError
from lium.sdk.models import PodInfo

from tests.faults.virtual_clock import Process
from tests.faults.weather import Trouble
from tests.faults.world import World

T = TypeVar("T")

TIMEOUT_S = 30.0
NO_ANSWER = (requests.RequestException, LiumServerError, LiumRateLimitError)
STRANGE_WORDS = ("MIGRATING", "HIBERNATED", "unknown", "")


class Wire:
    """The way of one process to the simulated API."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process, self._rng = world, process, world.rng

    def _read(self, what: str, tags: tuple[str, ...], effect: Callable[[], T]) -> T:
        return self._retried(what, ("read", *tags), effect)

    def _retried(self, what: str, tags: tuple[str, ...], effect: Callable[[], T]) -> T:
        """Three attempts, as the SDK gives to what may be asked twice."""
        for pause_s in (1.0, 2.0):
            try:
                return self._http(what, tags, effect)
            except NO_ANSWER:
                self._process.sleep(pause_s + self._rng.random() / 2)
        return self._http(what, tags, effect)

    def _change(self, what: str, tags: tuple[str, ...], effect: Callable[[], T]) -> T:
        """What may not be sent twice is sent again only after a 429."""
        for pause_s in (1.0, 2.0):
            try:
                return self._http(what, tags, effect)
            except LiumRateLimitError:
                self._process.sleep(pause_s + self._rng.random() / 2)
        return self._http(what, tags, effect)

    def _http(self, what: str, tags: tuple[str, ...], effect: Callable[[], T]) -> T:
        process, world = self._process, self._world
        call = process.enter(tags)
        trouble = world.lium_weather.meets(tags)
        naps = len(process.naps)
        kind = trouble.kind if trouble else ""
        process.sleep(self._rng.uniform(5, 25) if kind == "slow" else self._rng.uniform(0.02, 0.2))
        if trouble is not None and kind in ("5xx", "connection", "timeout", "429"):
            self._fail(what, tags, trouble, effect, call)
        try:
            result = effect()
        except LiumError as refusal:
            world.note(what, f"{type(refusal).__name__}: {refusal}")
            raise
        finally:
            process.leave(call)
        process.sleep(self._rng.uniform(0.02, 0.2))
        if kind == "lost" or len(process.naps) > naps:
            world.note(what, "answer lost")
            raise requests.ConnectionError("connection reset")
        if tags == ("list",):
            result = self._distort(result, kind)  # type: ignore[arg-type,assignment]
        world.note(what, kind or "ok")
        return result

    def _fail(self, what: str, tags: tuple[str, ...], trouble: Trouble, effect: Callable[[], Any], call: int) -> None:
        done = trouble.done and "change" in tags and trouble.kind != "429"
        if done:
            try:
                effect()
            except LiumError:
                done = False
        self._process.leave(call)
        if trouble.kind == "timeout":
            self._process.sleep(TIMEOUT_S)
        self._world.note(what, f"{trouble.kind}{', carried out' if done else ''}")
        if trouble.kind == "429":
            raise limited(self._rng.choice((None, 2.0, 10.0)))
        if trouble.kind == "5xx":
            raise LiumServerError("Server error: 503")
        raise requests.ConnectionError("refused") if trouble.kind == "connection" else requests.ReadTimeout("30 s")

    def _distort(self, rows: list[PodInfo], kind: str) -> list[PodInfo]:
        """A listing that answers and is not true."""
        if kind == "empty":
            return []
        if kind == "missing":
            return [row for row in rows if self._rng.random() < 0.3]
        if kind == "status":
            word = self._rng.choice(STRANGE_WORDS)
            return [PodInfo(**{**vars(row), "status": word}) for row in rows]
        return rows


def limited(retry_after_s: float | None) -> LiumRateLimitError:
    error = LiumRateLimitError("Rate limit exceeded")
    error.retry_after = retry_after_s
    return error
