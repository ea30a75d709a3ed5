"""Who calls the API, and how the API says no: shared by all routes.

Every API key that is not empty is an account, with a few that are refused by the way they begin:

    bad...       no key at all (401)
    norent...    may look, not rent (403, as the real service says that the scope is missing)
    poor...      has 1 cent on the account, so that a rent is refused (403)

Some routes work without a key.
"""

import json
import uuid
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import JSONResponse

from plugins.errors import UserError
from plugins.lium.emulator.inventory import NothingFits
from plugins.lium.emulator.market import BalanceTooLow, NotFound, Unprocessable, VolumeBusy
from plugins.lium.emulator.pods import Pods
from plugins.lium.emulator.state import Account

REFUSALS: dict[type[Exception], tuple[int, str]] = {
    NotFound: (404, "not_found"),
    Unprocessable: (400, "bad_request"),
    VolumeBusy: (409, "volume_in_use"),
    NothingFits: (409, "no_matching_node"),
    BalanceTooLow: (403, "insufficient_balance"),
    UserError: (400, "bad_request"),
}


class ApiError(Exception):
    """A refusal with its HTTP status and Lium's code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def envelope(status: int, code: str, message: str) -> JSONResponse:
    """Lium's error body; the SDK reads the top-level `message` only."""
    request_id = f"req_{uuid.uuid4().hex[:8]}"
    error = {"code": code, "message": message, "hint": None, "request_id": request_id}
    return JSONResponse({"error": error, "message": message}, status_code=status)


def pods_of(request: Request) -> Pods:
    """The emulator behind this request."""
    pods: Pods = request.app.state.pods
    return pods


def caller(request: Request) -> Account:
    """The account of the key; 401 without one."""
    key = request.headers.get("x-api-key", "")
    if not key or key.startswith("bad"):
        raise ApiError(401, "invalid_api_key", "Invalid API key" if key else "An API key is needed")
    return pods_of(request).state.account_of(key)


def renter(request: Request) -> Account:
    """The account of a key that may rent; 403 for one without the right to."""
    account = caller(request)
    if request.headers["x-api-key"].startswith("norent"):
        raise ApiError(403, "missing_scope", "This API key does not have the 'rent' scope")
    return account


def maybe_caller(request: Request) -> Account | None:
    """The account, or None for a caller without a key."""
    return caller(request) if request.headers.get("x-api-key") else None


async def json_body(request: Request) -> dict[str, Any]:
    """The body as an object; an empty one is {}."""
    try:
        parsed = json.loads(await request.body() or b"{}")
    except ValueError as error:
        raise ApiError(400, "bad_request", f"the body is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ApiError(400, "bad_request", "the body is not a JSON object")
    return parsed


Emulated = Annotated[Pods, Depends(pods_of)]
Caller = Annotated[Account, Depends(caller)]
Renter = Annotated[Account, Depends(renter)]
MaybeCaller = Annotated[Account | None, Depends(maybe_caller)]
Body = Annotated[dict[str, Any], Depends(json_body)]
