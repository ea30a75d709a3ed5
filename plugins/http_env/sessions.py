"""The sessions of an environment server: how many, how long, and which request was answered already.

A step runs as a task of its own that no caller's impatience can cancel: a retry with the same `request_id` attaches
to it and gets its answer, so a lost answer never makes a second transition. Refusals are HTTP statuses, as the server
sends them.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.exceptions import HTTPException

from plugins.errors import EnvError
from plugins.http_env.protocol import Ask, Problem, Turn
from plugins.http_env.tasks import Episode, Task

log = logging.getLogger(__name__)

MAX_WAIT_S = 600.0  # for callers that name no deadline
T = TypeVar("T")


@dataclass
class Session:
    """One episode, its turns by request id, and when it was last asked for (seconds of the table's clock)."""

    id: str
    episode: Episode
    opened: Turn
    request_id: str | None
    last: Turn
    used_at: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    answers: dict[str, tuple[str, asyncio.Task[Turn]]] = field(default_factory=dict)


class Sessions:
    """At most `max_sessions` at once; one that nobody asks for in `idle_s` seconds is closed by `expire`."""

    def __init__(
        self, task: Task, *, max_sessions: int = 4096, idle_s: float = 1800, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._task = task
        self._max_sessions = max_sessions
        self._idle_s = idle_s
        self._clock = clock
        self._open: dict[str, Session] = {}
        self._starting: set[asyncio.Task[Session]] = set()
        self._starts: dict[str, asyncio.Task[Session]] = {}

    def __len__(self) -> int:
        return len(self._open)

    async def start(self, problem: Problem, ask: Ask) -> Session:
        """Open a session, or find the one this request id opened. 422 bad problem, 503 full, 504 deadline passed."""
        start = self._starts.get(ask.request_id) if ask.request_id else None
        if start is None:
            await self.expire()
            if len(self._open) + len(self._starting) >= self._max_sessions:
                raise HTTPException(503, f"all {self._max_sessions} sessions are in use; close some or try again later")
            start = asyncio.create_task(self._begin(problem, ask.request_id))
            self._starting.add(start)
            start.add_done_callback(self._starting.discard)
            if ask.request_id:
                self._starts[ask.request_id] = start
        return await _within(start, ask.deadline_s, "the session is still being opened")

    async def step(self, session_id: str, action: str, ask: Ask) -> Turn:
        """Make one transition, once per request id. 404 unknown, 409 id of another action, 504 deadline passed."""
        session = self._find(session_id)
        known = session.answers.get(ask.request_id) if ask.request_id else None
        if known and known[0] != action:
            raise HTTPException(409, f"request_id {ask.request_id!r} was used for another action in this session")
        step = known[1] if known else asyncio.create_task(self._advance(session, action))
        if ask.request_id:
            session.answers[ask.request_id] = (action, step)
        return await _within(step, ask.deadline_s, "the step is still running")

    async def close(self, session_id: str) -> None:
        """End a session; one that is not there any more is ended already."""
        session = self._open.pop(session_id, None)
        if session is None:
            return
        if session.request_id:
            self._starts.pop(session.request_id, None)
        for _, step in session.answers.values():
            step.cancel()
        try:
            await session.episode.close()
        except Exception:
            log.exception("session %s: closing its episode failed; it is forgotten all the same", session_id)

    async def expire(self) -> int:
        """Close the sessions that were not asked for in `idle_s`; returns how many."""
        limit = self._clock() - self._idle_s
        old = [session.id for session in self._open.values() if session.used_at < limit and not session.lock.locked()]
        for session_id in old:
            log.warning("session %s: closed after %.0f s without a request", session_id, self._idle_s)
            await self.close(session_id)
        return len(old)

    async def close_all(self) -> None:
        """End every session, for shutdown."""
        for start in list(self._starting):
            start.cancel()
        for session_id in list(self._open):
            await self.close(session_id)

    def _find(self, session_id: str) -> Session:
        session = self._open.get(session_id)
        if session is None:
            raise HTTPException(404, f"no session {session_id[:80]!r}; it was closed, expired, or never started here")
        session.used_at = self._clock()
        return session

    async def _begin(self, problem: Problem, request_id: str | None) -> Session:
        try:
            episode, turn = await self._task.start(problem)
        except BaseException:
            self._starts.pop(request_id or "", None)
            raise
        session = Session(uuid.uuid4().hex, episode, turn, request_id, last=turn, used_at=self._clock())
        self._open[session.id] = session
        return session

    async def _advance(self, session: Session, action: str) -> Turn:
        async with session.lock:
            if session.last.done:
                return Turn("", True, session.last.reward, {"reason": "already_done"})
            session.last = await session.episode.step(action)
            session.used_at = self._clock()
            return session.last


async def _within(work: asyncio.Task[T], deadline_s: float | None, late: str) -> T:
    """The result of work that goes on when its caller gives up; errors become statuses here."""
    await asyncio.wait({work}, timeout=min(deadline_s or MAX_WAIT_S, MAX_WAIT_S))
    if not work.done():
        raise HTTPException(504, f"{late}; ask again with the same request_id")
    if work.cancelled():
        raise HTTPException(404, "the session was closed meanwhile")
    error = work.exception()
    if error is None:
        return work.result()
    if isinstance(error, EnvError):
        raise HTTPException(422, str(error))
    log.error("the task failed", exc_info=error)
    raise HTTPException(500, f"the task failed: {type(error).__name__}: {error}")
