"""Making the Hub fail on purpose, and a note of every call.

A fault is ordered with POST /_hub/faults; it strikes the next `times` calls whose "METHOD path" matches `match`:

    {"match": "POST .*/commit/", "times": 2, "status": 503}        that status instead of the call
    {"match": ..., "status": 429, "headers": {"Retry-After": "1"}}
    {"match": ..., "cut": "before"}                                the connection is closed, nothing was done
    {"match": ..., "cut": "after"}                                 it is done, but the answer is lost
    {"match": ..., "cut_body_bytes": 1000}                         the connection is closed after so much of the answer
    {"match": ..., "slow_s": 0.5}                                  it is done so much later, also if the client is gone
    {"match": ..., "replace": {"old": "new"}}                      the answer's body says something else (a lie)
"""

import asyncio
import re
import threading
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

CONTROL = "/_hub"


class Connection(H11Protocol):
    """One HTTP connection that tells the application its transport, so that a fault can close it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        inner: Any = self.app

        async def with_transport(scope: Any, receive: Any, send: Any) -> None:
            scope["hub.transport"] = transport
            await inner(scope, receive, send)

        self.app = with_transport


class Faults:
    """What was ordered and not yet used up, and the calls that came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ordered: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []

    def order(self, fault: dict[str, Any]) -> None:
        with self._lock:
            self._ordered.append({"times": 1, **fault})

    def clear(self) -> None:
        with self._lock:
            self._ordered.clear()
            self.calls.clear()

    def take(self, call: str) -> dict[str, Any]:
        """The first fault for this call, counted; empty when there is none."""
        with self._lock:
            for fault in self._ordered:
                if fault["times"] > 0 and re.search(fault["match"], call):
                    fault["times"] -= 1
                    return fault
        return {}


class FaultyHub:
    """The application with faults around it."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self.app, self.faults = app, faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(CONTROL):
            await self.app(scope, receive, send)
            return
        call = f"{scope['method']} {scope['path']}"
        headers = dict(scope["headers"])
        self.faults.calls.append({"call": call, "token": b"authorization" in headers})
        fault = self.faults.take(call)
        if "slow_s" in fault:
            receive = await _received(receive)
            await asyncio.sleep(fault["slow_s"])
        if fault.get("cut") == "before":
            scope["hub.transport"].abort()
        elif "status" in fault:
            message = fault.get("message", "a fault that was ordered")
            answer = JSONResponse({"error": message}, fault["status"], fault.get("headers"))
            await answer(scope, receive, send)
        else:
            await self.app(scope, receive, _bent(scope, send, fault))


async def _received(receive: Receive) -> Receive:
    """The whole request, read now: what arrived is carried out even when its sender dies."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)

    given = False

    async def again() -> Message:
        nonlocal given
        if given:  # whoever asks on wants to hear of the end, and would ask for ever
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _bent(scope: Scope, send: Send, fault: dict[str, Any]) -> Send:
    left = [fault.get("cut_body_bytes")]

    async def bent(message: Message) -> None:
        if fault.get("cut") == "after":
            scope["hub.transport"].abort()
            return
        body = message.get("body", b"")
        for old, new in fault.get("replace", {}).items():
            assert len(old) == len(new), "a lie must be as long as the truth"
            body = body.replace(old.encode(), new.encode())
        if left[0] is not None and message["type"] == "http.response.body":
            body, more = body[: left[0]], len(body) > left[0]
            left[0] -= len(body)
            if more:
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await asyncio.sleep(0.02)
                scope["hub.transport"].close()
                return
        await send({**message, "body": body} if "body" in message else message)

    return bent
