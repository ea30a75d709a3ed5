"""The HTTP side of the emulator: one FastAPI application that answers like `https://lium.io/api`.

    /api/...          what the SDK and the CLI call (routes_*.py, rent.py)
    /_emulator/...    what a test orders (routes_control.py)

This file puts them together; the error envelope is in `caller.py`, faults and journal in `fault_answers.py`.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from plugins.lium.emulator.caller import REFUSALS, ApiError, envelope
from plugins.lium.emulator.fault_answers import CONTROL, journal_and_faults
from plugins.lium.emulator.faults import Journal
from plugins.lium.emulator.limiter import SlidingMinute, TooMany
from plugins.lium.emulator.patrol import Patrol
from plugins.lium.emulator.pods import Pods
from plugins.lium.emulator.rent import router as rent_router
from plugins.lium.emulator.routes_clusters import router as clusters_router
from plugins.lium.emulator.routes_control import router as control_router
from plugins.lium.emulator.routes_market import router as market_router
from plugins.lium.emulator.routes_pods import router as pods_router
from plugins.lium.emulator.routes_volumes import router as volumes_router

LISTINGS_PER_MINUTE = 60


def create_app(pods: Pods, listings_per_minute: int = LISTINGS_PER_MINUTE) -> FastAPI:
    """The application; it starts `pods` with its lifespan and stops them at its end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await pods.start()
        watching = asyncio.create_task(Patrol(pods).watch())
        yield
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await pods.stop()

    app = FastAPI(title="Lium emulator", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.pods = pods
    app.state.journal = Journal()
    app.state.listings = SlidingMinute(listings_per_minute, pods.now)
    app.state.started_at_s = time.time()
    # Clusters first: "cluster" would also be read as a machine's id.
    for router in (clusters_router, rent_router, market_router, pods_router, volumes_router):
        app.include_router(router, prefix="/api")
    app.include_router(control_router, prefix=CONTROL)
    _add_error_answers(app)
    app.middleware("http")(journal_and_faults)
    return app


def _add_error_answers(app: FastAPI) -> None:
    async def refused(_: Request, error: Exception) -> JSONResponse:
        status, code = REFUSALS[type(error)]
        return envelope(status, code, str(error))

    async def api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return envelope(error.status, error.code, str(error))

    async def too_many(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, TooMany)
        answer = envelope(429, "rate_limited", str(error))
        answer.headers["Retry-After"] = str(error.retry_after_s)
        return answer

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
    app.exception_handler(TooMany)(too_many)
    app.exception_handler(HTTPException)(http_error)
    app.exception_handler(RequestValidationError)(invalid)
