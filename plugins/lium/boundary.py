"""The one place where the Lium SDK's exceptions become ours.

The SDK raises its own tree for answers, `requests` errors for no answer, and plain Python errors for answers that it
cannot read. What each means for a run is decided here; retrying a request is `client.py`'s.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from plugins.errors import CapacityError, ControlPlaneError, TrainstackError, UserError

_STATUS = re.compile(r"API error (\d{3}): ?(.*)", re.DOTALL)

AMBIGUOUS_CODES = frozenset({"rent_outcome_unknown", "idempotency_in_progress", "idempotency_outcome_unknown"})
"""Refusals that leave open whether the pod was rented (SDK: `Lium.rent`)."""


class RateLimited(ControlPlaneError):
    """Lium answers 429. `retry_after_s` is what it asked for, None if it did not say."""

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotFound(ControlPlaneError):
    """Lium answers 404. Inside this room it is a result, not an error."""


class OutcomeUnknown(ControlPlaneError):
    """A request that changes something got no usable answer: it may have been carried out."""


@contextmanager
def boundary(what: str) -> Iterator[None]:
    """Convert whatever comes out of the SDK; `what` says what was being done, to which pod."""
    try:
        yield
    except TrainstackError:
        raise
    except Exception as error:  # the SDK raises its own tree, requests' and plain Python errors
        raise convert(error, what) from error


def convert(error: Exception, what: str) -> TrainstackError:
    """Decide what a foreign exception means: the user's, no capacity, or a control plane that does not answer."""
    import requests
    from lium.sdk import exceptions as lium

    text = " ".join(str(error).split())
    if getattr(error, "code", None) in AMBIGUOUS_CODES or isinstance(error, lium.LiumRentOutcomeUnknownError):
        return OutcomeUnknown(f"{what}: {text}")
    if isinstance(error, lium.LiumAuthError):
        return UserError(f"{what}: {text}: check the Lium API key")
    if isinstance(error, lium.LiumPermissionError):
        return UserError(f"{what}: Lium refuses: {text}: {_permission_remedy(error)}")
    if isinstance(error, lium.LiumNotFoundError):
        return NotFound(f"{what}: {text}")
    if isinstance(error, lium.LiumRateLimitError):
        return RateLimited(f"{what}: Lium's rate limit is reached", error.retry_after)
    if isinstance(error, lium.LiumServerError | requests.RequestException | OSError | EOFError):
        return OutcomeUnknown(f"{what}: Lium does not answer: {text or type(error).__name__}")
    if isinstance(error, lium.LiumError):
        return _by_status(text, what, str(error.code or ""))
    if isinstance(error, ValueError) and "not in the current listing" in text:  # the SDK looks before it rents
        return CapacityError(f"{what}: the host is rented or offline by now")
    if isinstance(error, ValueError) and "SSH keys" in text:
        return UserError(f"{what}: no public SSH key beside the private one (`<key>.pub`): create it with ssh-keygen")
    return ControlPlaneError(f"{what}: Lium's answer cannot be read ({type(error).__name__}: {text})")


def refused_afresh(error: Exception) -> bool:
    """Whether a replayed rent was refused as if it were new: then the server keeps no answer for its key.

    The SDK calls every refusal unknown that is not the stored answer; the refusal itself is the cause.
    """
    from lium.sdk import exceptions as lium

    cause = error.__cause__
    return (
        isinstance(cause, lium.LiumError)
        and not isinstance(cause, lium.LiumServerError | lium.LiumRateLimitError)
        and cause.code not in AMBIGUOUS_CODES
    )


def _permission_remedy(error: Exception) -> str:
    """What a person can do about a 402 or 403."""
    from lium.sdk import exceptions as lium

    if isinstance(error, lium.LiumInsufficientBalanceError):
        return "the balance is too low; top the account up"
    if isinstance(error, lium.LiumBudgetExceededError):
        return "the API key's own budget is used up; raise it in the Lium dashboard"
    if isinstance(error, lium.LiumScopeError):
        return "the API key lacks a right; make one that may rent in the Lium dashboard"
    return "check the balance, the key's budget and its scopes"


def _by_status(text: str, what: str, code: str = "") -> TrainstackError:
    """The SDK gives plain errors the status in their text only; one without is the SDK's own refusal."""
    match = _STATUS.match(text)
    status, detail = (int(match[1]), match[2]) if match else (0, text)
    if status == 409 and (code == "volume_in_use" or "attached to pod" in detail):
        return UserError(f"{what}: {detail}: wait for that pod's end, or use another volume")
    if status == 409 or detail.startswith(("No node matches", "rent-by-spec returned no node")):
        return CapacityError(f"{what}: no machine fits now: {detail}")
    if status in (400, 402, 422):
        return UserError(f"{what}: Lium refuses the request: {detail}")
    return ControlPlaneError(f"{what}: {text}")
