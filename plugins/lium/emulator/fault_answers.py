"""What an ordered fault does to one HTTP call, and the journal's line about it.

    status    the error instead of the call          timeout   silence instead of the call
    empty     [] instead of the call                 lost      the call, then silence: the connection is closed

A lost answer needs the connection itself, which ASGI does not give: `Connection` is uvicorn's protocol with a note of
its transport. Where another server runs the application, a lost answer is a 502.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from plugins.lium.emulator.caller import envelope
from plugins.lium.emulator.faults import Call, Faults
from plugins.lium.emulator.state import iso

HELD_S = 35.0  # longer than the SDK's own 30
LOOK_S = 0.1
CONTROL = "/_emulator"
Next = Callable[[Request], Awaitable[Response]]


class Connection(H11Protocol):
    """One HTTP connection, found again by the client's address."""

    open: ClassVar[dict[tuple[str, int], asyncio.Transport]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Note the transport."""
        super().connection_made(transport)
        self.open[transport.get_extra_info("peername")[:2]] = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self.open.pop(self.transport.get_extra_info("peername")[:2], None)
        super().connection_lost(exc)


async def journal_and_faults(request: Request, call_next: Next) -> Response:
    """The middleware around every call of the API; the control interface is left alone."""
    if request.url.path.startswith(CONTROL):
        return await call_next(request)
    began = time.monotonic()
    body_keys = _keys_of(await request.body())
    answer = await _answer(request, call_next)
    if answer.status_code == 429:
        answer.headers.setdefault("Retry-After", "1")
    answer.headers["X-Request-Id"] = f"req_{uuid.uuid4().hex[:8]}"
    request.app.state.journal.calls.append(
        Call(
            at=str(iso(time.time())),
            method=request.method,
            path=request.url.path,
            query=request.url.query,
            status=answer.status_code,
            ms=round((time.monotonic() - began) * 1000, 2),
            api_key_tail=request.headers.get("x-api-key", "")[-4:],
            body_keys=body_keys,
        )
    )
    return answer


async def _answer(request: Request, call_next: Next) -> Response:
    faults: Faults = request.app.state.pods.faults
    call = (request.method, request.url.path)
    if (status := faults.http_status(*call)) is not None:
        return envelope(status, "emulated_fault", f"ordered fault {status}")
    if faults.take_for("timeout", *call):
        await _until_gone(request)
        return envelope(504, "emulated_fault", "ordered fault timeout")
    if faults.take_for("empty", *call):
        return JSONResponse([])
    lost = faults.take_for("lost", *call)
    answer = await call_next(request)
    return await _lose(request) if lost else answer


async def _until_gone(request: Request) -> None:
    """Wait until the client gives up; not longer than `HELD_S`."""
    deadline = time.monotonic() + HELD_S
    while time.monotonic() < deadline and not await request.is_disconnected():  # noqa: ASYNC110 - no event for it
        await asyncio.sleep(LOOK_S)


async def _lose(request: Request) -> Response:
    """Close the connection; what is returned then is for the journal only."""
    transport = Connection.open.get((request.client.host, request.client.port)) if request.client else None
    if transport is not None:
        transport.abort()
        await asyncio.sleep(0)
    return envelope(502, "emulated_fault", "ordered fault lost")


def _keys_of(body: bytes) -> list[str]:
    try:
        parsed: Any = json.loads(body or b"{}")
    except ValueError:
        return []
    return sorted(parsed) if isinstance(parsed, dict) else []
