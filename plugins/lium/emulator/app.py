"""The HTTP side of the emulator: one FastAPI application that answers like `https://lium.io/api`.

    /api/...          what the SDK and the CLI call (routes_market.py, routes_pods.py, rent.py)
    /_emulator/...    faults, journal, and the end of a pod as a lost host brings it

This file puts them together: who calls, the error envelope, the journal, the faults that need no room's knowledge.
"""

import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from plugins.lium.emulator.caller import REFUSALS, ApiError, envelope
from plugins.lium.emulator.faults import Call, Journal
from plugins.lium.emulator.market import NotFound
from plugins.lium.emulator.pods import Pods
from plugins.lium.emulator.rent import router as rent_router
from plugins.lium.emulator.routes_market import router as market_router
from plugins.lium.emulator.routes_pods import router as pods_router
from plugins.lium.emulator.state import iso


def create_app(pods: Pods) -> FastAPI:
    """The application; it starts `pods` with its lifespan and stops them at its end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await pods.start()
        yield
        await pods.stop()

    app = FastAPI(title="Lium emulator", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.pods = pods
    app.state.journal = Journal()
    app.state.started_at_s = time.time()
    for router in (rent_router, market_router, pods_router):
        app.include_router(router, prefix="/api")
    _add_control_routes(app, pods)
    _add_error_answers(app)
    app.middleware("http")(_journal_and_faults)
    return app


async def _journal_and_faults(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    if request.url.path.startswith("/_emulator"):
        return await call_next(request)
    began = time.monotonic()
    body_keys = _keys_of(await request.body())
    pods: Pods = request.app.state.pods
    status = pods.faults.http_status(request.method, request.url.path)
    answer = (
        await call_next(request) if status is None else envelope(status, "emulated_fault", f"ordered fault {status}")
    )
    if answer.status_code == 429:
        answer.headers["Retry-After"] = "1"
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


def _keys_of(body: bytes) -> list[str]:
    try:
        parsed = json.loads(body or b"{}")
    except ValueError:
        return []
    return sorted(parsed) if isinstance(parsed, dict) else []


def _add_error_answers(app: FastAPI) -> None:
    async def refused(_: Request, error: Exception) -> JSONResponse:
        status, code = REFUSALS[type(error)]
        return envelope(status, code, str(error))

    async def api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return envelope(error.status, error.code, str(error))

    async def http_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = "not_found" if error.status_code == 404 else "http_error"
        return envelope(error.status_code, code, f"{error.detail} (the emulator may not have this endpoint)")

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return envelope(422, "validation_error", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    for kind in REFUSALS:
        app.exception_handler(kind)(refused)
    app.exception_handler(ApiError)(api_error)
    app.exception_handler(HTTPException)(http_error)
    app.exception_handler(RequestValidationError)(invalid)


def _add_control_routes(app: FastAPI, pods: Pods) -> None:
    @app.post("/_emulator/faults")
    async def order_faults(wanted: dict[str, Any]) -> dict[str, int]:
        return pods.faults.order(wanted)

    @app.get("/_emulator/faults")
    async def faults_left() -> dict[str, int]:
        return pods.faults.order({})

    @app.get("/_emulator/log")
    async def journal() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = app.state.journal.rows()
        return rows

    @app.post("/_emulator/pods/{pod_id}/kill")
    async def kill(pod_id: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        pod = pods.state.pods.get(pod_id)
        if pod is None or pod.removed:
            raise NotFound(f"Pod {pod_id} not found")
        asked = body or {}
        await pods.reclaim(pod, str(asked.get("reason", "spot reclaim")), str(asked.get("how", "vanish")))
        return {"success": True, "status": pod.status}

    @app.get("/_emulator/info")
    async def info() -> dict[str, Any]:
        return {"mode": pods.settings.mode, "pods": len(pods.state.present()), "free_gpus": pods.market.free_gpus()}
