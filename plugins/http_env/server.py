"""The environment server: sessions over HTTP for one task, started as a process of its own.

    python -m plugins.http_env.server --task arithmetic --port 0 --ready-file /tmp/env.json

Listens on loopback unless told otherwise: there is no authentication, whoever reaches the port may open sessions.
The ready file ({"url": ..., "pid": ...}) appears when the port answers and goes away at the end.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from plugins.errors import EnvError, UserError
from plugins.http_env import tasks
from plugins.http_env.protocol import CLOSE, HEALTH, START, STEP, Ask, Json, Problem, plain, text_field
from plugins.http_env.sessions import Sessions

DEFAULT_PORT = 18080
MAX_BODY_BYTES = 8 << 20


def build_app(task: tasks.Task, *, name: str = "", sessions: Sessions | None = None, sweep_s: float = 30) -> Starlette:
    """The ASGI application that serves `task`; sessions are swept for expired ones every `sweep_s` seconds."""
    table = Sessions(task) if sessions is None else sessions

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "task": name, "sessions": len(table)})

    async def start(request: Request) -> JSONResponse:
        body = await _body(request)
        ask = Ask.from_json(body)
        session = await table.start(Problem.from_json(body), ask)
        return _reply({"session_id": session.id} | session.opened.to_json(), ask)

    async def step(request: Request) -> JSONResponse:
        body = await _body(request)
        ask = Ask.from_json(body)
        turn = await table.step(text_field(body, "session_id"), text_field(body, "action"), ask)
        return _reply(turn.to_json(), ask)

    async def close(request: Request) -> JSONResponse:
        await table.close(text_field(await _body(request), "session_id"))
        return JSONResponse({"ok": True})

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(_sweep(table, sweep_s))
        try:
            yield
        finally:
            sweeper.cancel()
            await table.close_all()

    routes = [
        Route(HEALTH, health, methods=["GET"]),
        *(Route(path, call, methods=["POST"]) for path, call in ((START, start), (STEP, step), (CLOSE, close))),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _refused, EnvError: _bad})


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal ends the process. Returns 2 when the port or the task cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m plugins.http_env.server", description="Serve an RL environment.")
    parser.add_argument("--task", required=True, help=f"one of: {', '.join(tasks.NAMES)}")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--ready-file", type=Path, help="JSON file with the server's url, written when it answers")
    parser.add_argument("--max-sessions", type=int, default=4096, help="open at once (default: %(default)s)")
    parser.add_argument(
        "--idle-s", type=float, default=1800, help="an unused session ends after (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(filename)s:%(lineno)d - %(message)s")
    try:
        task = tasks.create(args.task)
        listener = _listen(args.host, args.port)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sessions = Sessions(task, max_sessions=args.max_sessions, idle_s=args.idle_s)
    app = build_app(task, name=args.task, sessions=sessions, sweep_s=max(1.0, min(30.0, args.idle_s / 4)))
    with listener:
        _serve(app, listener, args.ready_file)
    return 0


class _Server(uvicorn.Server):
    """Says in a file that it answers, and takes the file away when it no longer will."""

    def __init__(self, config: uvicorn.Config, ready: Path | None, url: str) -> None:
        super().__init__(config)
        self._ready = ready
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        logging.getLogger(__name__).info("environment answers at %s", self._url)
        if self._ready is not None:
            part = self._ready.with_name(f".{self._ready.name}.part")
            part.write_text(json.dumps({"url": self._url, "pid": os.getpid()}))
            part.replace(self._ready)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._ready is not None:
            self._ready.unlink(missing_ok=True)
        await super().shutdown(sockets=sockets)


def _serve(app: Starlette, listener: socket.socket, ready: Path | None) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn ends in good order first, then raises the signal again
        _Server(config, ready, url).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{host}:{port} cannot be listened on ({reason}); choose another --port, or 0") from error


async def _sweep(table: Sessions, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        await table.expire()


async def _body(request: Request) -> Json:
    """The request's JSON object; 413 and 422 for what is none."""
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the request is longer than {MAX_BODY_BYTES} bytes")
    try:
        body: Any = json.loads(chunks)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"the request is not JSON ({error})") from error
    if not isinstance(body, dict):
        raise HTTPException(422, f"the request must be a JSON object, not {type(body).__name__}")
    return body


def _reply(answer: Json, ask: Ask) -> JSONResponse:
    """Repeats the request id: the sign that asking again with it is safe."""
    if ask.request_id:
        answer["request_id"] = ask.request_id
    return JSONResponse(json.loads(json.dumps(answer, default=plain)))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, str(error))
    return JSONResponse({"detail": detail}, status, headers={"Retry-After": "1"} if status == 503 else None)


async def _bad(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)


if __name__ == "__main__":
    sys.exit(main())
