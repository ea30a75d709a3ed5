"""How a process of the relay dies: before a chosen step of a chosen actor, and with nothing that happens afterwards.

    fork    a forked child that ends by `os._exit`; safe only in a process that runs no threads (folder, volume)
    raise   an exception at the step and at every step after it; for stores that need a server in this process

What was being written at that moment may lose any part that was not yet on the disk: the file is cut at a random byte.
"""

import json
import os
import random
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DIED = 77
WRITING = ("append", "fsync")
LONGEST_S = 60


class Killed(BaseException):
    """The process is dead; this step, and every one after it, does not happen."""


@dataclass
class Death:
    """actor, step: before which step of which actor the process dies; None: it lives. seed: where files are cut.

    steps: counted by actor. last, over: where it died, and that it did. tell: told of it at that moment.
    """

    actor: str | None = None
    step: int = 0
    seed: str = ""
    forked: bool = False
    steps: Counter[str] = field(default_factory=Counter)
    last: str = ""
    over: bool = False
    now: str = "look"
    tell: Callable[[str], None] = field(default=lambda _last: None, repr=False)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @contextmanager
    def acting(self, actor: str) -> Iterator[None]:
        """Steps inside are this actor's."""
        before, self.now = self.now, actor
        try:
            yield
        finally:
            self.now = before

    def before(self, what: str) -> None:
        """A store is about to do something: 'verb place'."""
        verb, _, place = what.partition(" ")
        self.disk(verb, Path(place))

    def disk(self, step: str, path: Path) -> None:
        """A disk is about to do something; the hook of `Disk` and of the volume."""
        with self.lock:
            if self.over:
                raise Killed
            self.steps[self.now] += 1
            if self.now == self.actor and self.steps[self.now] > self.step:
                self.last = f"{step} {path.name}"
                if step in WRITING and path.is_file():
                    _cut(path, random.Random(f"{self.seed}/cut"))
                self.die()

    def bytes_left(self, wanted: int) -> int:
        """How many of `wanted` bytes the writer still writes; fewer than wanted means: then it dies."""
        with self.lock:
            left = wanted
            if self.now == self.actor:
                left = min(wanted, max(0, self.step - self.steps[self.now]))
            self.steps[self.now] += wanted
            return left

    def die(self) -> None:
        """End here."""
        self.over = True
        self.tell(self.last)
        if self.forked:
            os._exit(DIED)
        raise Killed


def _cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randint(0, path.stat().st_size))


@dataclass(frozen=True)
class Ended:
    """How a process ended. answer: what it returned. error: what it raised; empty when it was killed or got through."""

    died: bool
    answer: Any = None
    error: str = ""


def as_process(work: Callable[[], Any], *, forked: bool, answers: Path) -> Ended:
    """Do `work` as a process of its own. Its answer must be JSON; `answers` is a folder for it."""
    return _fork(work, answers / "answer.json") if forked else _here(work)


def _here(work: Callable[[], Any]) -> Ended:
    try:
        return Ended(False, work())
    except Killed:
        return Ended(True)
    except Exception:
        return Ended(False, error=traceback.format_exc(limit=-6))


def _fork(work: Callable[[], Any], answer: Path) -> Ended:
    answer.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(LONGEST_S)
        ended = _here(work)
        answer.write_text(json.dumps([ended.died, ended.answer, ended.error]))
        os._exit(DIED if ended.died else 0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == DIED:
        return Ended(True)
    if code != 0:
        return Ended(False, error=f"the process ended with {code}: it hung, or was killed by somebody else")
    return Ended(*json.loads(answer.read_text()))
