"""The trainer's side of the protocol: every call has a time limit, failures are retried for a bounded time, and what
stays broken is an EnvError. Connections are kept per event loop, for thousands of samples share one environment.

A start may always be asked again. A step may be asked again after a lost answer only if the server repeats request
ids, the sign that it knows them; with other servers only failures in which the request cannot have arrived are
retried.
"""

import asyncio
import json
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from plugins.errors import EnvError
from plugins.http_env.connections import connections_for
from plugins.http_env.protocol import CLOSE, HEALTH, START, STEP, Ask, Json, Problem, Turn, plain, text_field

NEVER_ARRIVED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
RETRIED = frozenset({429, 500, 502, 503, 504})
NOT_TAKEN = frozenset({429, 503})  # statuses with which a server says that it did nothing
CLOSE_S = 5.0


@dataclass(frozen=True)
class Session:
    """An open session, the first turn, and whether the server answers a repeated request id with the same answer."""

    id: str
    opened: Turn
    idempotent: bool


class EnvClient:
    """Calls one environment server. `call_s` limits each try, `patience_s` the time until the last retry starts
    (seconds).
    """

    def __init__(
        self,
        url: str,
        *,
        call_s: float = 60,
        patience_s: float = 20,
        http: httpx.AsyncClient | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.rstrip("/")
        self._call_s = call_s
        self._patience_s = patience_s
        self._http = http
        self._sleep = sleep
        self._clock = clock

    async def health(self) -> Json:
        """The server's own words about itself; raises EnvError when it does not answer."""
        return await self._call("GET", HEALTH, None, again=True)

    async def start(self, problem: Problem) -> Session:
        """Open a session; raises EnvError."""
        ask = self._ask()
        body = await self._call("POST", START, {"task": problem.to_json()} | ask.to_json(), again=True)
        session_id = text_field(body, "session_id")
        return Session(session_id, Turn.from_json(body), idempotent=body.get("request_id") == ask.request_id)

    async def step(self, session: Session, action: str) -> Turn:
        """Make one transition, exactly one however often the answer got lost; raises EnvError."""
        body = {"session_id": session.id, "action": action} | self._ask().to_json()
        return Turn.from_json(await self._call("POST", STEP, body, again=session.idempotent))

    async def close(self, session: Session) -> bool:
        """Tell the server that the session is over: one try, a few seconds, no error (it expires by itself)."""
        try:
            async with asyncio.timeout(min(CLOSE_S, self._call_s)):
                response = await self._send("POST", CLOSE, {"session_id": session.id})
        except (httpx.HTTPError, TimeoutError):
            return False
        return response.is_success

    def _ask(self) -> Ask:
        return Ask(request_id=uuid.uuid4().hex, deadline_s=self._call_s)

    async def _call(self, method: str, path: str, body: Json | None, *, again: bool) -> Json:
        """One request with its retries; `again` allows a retry when the request may have arrived."""
        begun = self._clock()
        tries = 0
        while True:
            tries += 1
            wait_s = min(0.25 * 2 ** min(tries - 1, 5), 4.0) * random.uniform(0.75, 1.25)  # noqa: S311 - spreads the herd
            try:
                async with asyncio.timeout(self._call_s):
                    response = await self._send(method, path, body)
                if response.status_code not in RETRIED:
                    return _answer(response, f"{method} {self.url}{path}")
                safe = again or response.status_code in NOT_TAKEN
                failure = f"HTTP {response.status_code} {_detail(response)}".rstrip()
                wait_s = max(wait_s, _retry_after_s(response))
            except TimeoutError:
                safe, failure = again, f"no answer in {self._call_s:g} s"
            except httpx.HTTPError as error:
                safe, failure = (
                    again or isinstance(error, NEVER_ARRIVED),
                    f"{type(error).__name__}: {error}".rstrip(": "),
                )
            except httpx.InvalidURL as error:
                raise EnvError(f"{self.url}: is not a usable address ({error})") from error
            if not safe or self._clock() - begun + wait_s > self._patience_s:
                times = "once" if tries == 1 else f"{tries} times"
                raise EnvError(f"environment {self.url}: {method} {path} failed ({failure}), tried {times}")
            await self._sleep(wait_s)

    async def _send(self, method: str, path: str, body: Json | None) -> httpx.Response:
        http = self._http or connections_for(self.url)
        content = None if body is None else json.dumps(body, default=plain)
        headers = {"content-type": "application/json"} if content else {}
        return await http.request(method, self.url + path, content=content, headers=headers, timeout=self._call_s)


def _answer(response: httpx.Response, what: str) -> Json:
    if not response.is_success:
        raise EnvError(f"{what}: refused with HTTP {response.status_code} {_detail(response)}".rstrip())
    try:
        body: Any = response.json()
    except ValueError as error:
        raise EnvError(f"{what}: the answer is not JSON ({error})") from error
    if not isinstance(body, dict):
        raise EnvError(f"{what}: the answer is {type(body).__name__}, not a JSON object")
    return body


def _detail(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return ""
    return str(body.get("detail", ""))[:300] if isinstance(body, dict) else ""


def _retry_after_s(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 0.0
