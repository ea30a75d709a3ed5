"""Exceptions of `huggingface_hub` and its HTTP client, turned into ours with words of our own.

Theirs are not shown: their texts hold signed addresses of object stores. What the Hub itself says is shown in one short
line, without addresses and without anything that looks like a token.
"""

import contextlib
import re
from collections.abc import Iterator

import httpx2
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from plugins.checkpoints.hub.library import AskedToWait, wait_s
from plugins.errors import StoreError, TrainstackError, UserError

TOKENS_PAGE = "https://huggingface.co/settings/tokens"
_SECRET = re.compile(r"(hf_|eyJ|Bearer )[A-Za-z0-9_.-]+|https?://\S+")
_FULL = ("storage", "quota", "limit", "payment", "plan", "billing")
_LINE_CHARS = 200


class Moved(StoreError):
    """The branch is not at the commit that was given as the parent: somebody else committed."""


class Missing(StoreError):
    """There is no such file."""


class NoRepo(StoreError):
    """There is no such repository, or the token may not see it: the Hub does not tell the two apart."""


class NoBranch(StoreError):
    """The repository has no such branch."""


class Unanswered(StoreError):
    """Nothing came back: the call may have been carried out or not."""


class Busy(StoreError):
    """The Hub asked to wait. `wait_s`: for how many seconds."""

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@contextlib.contextmanager
def hub_errors(where: str, doing: str) -> Iterator[None]:
    """Convert what is raised inside. `where` names the repository, `doing` the step: 'read the list of files'."""
    try:
        yield
    except TrainstackError:
        raise
    except Exception as error:  # the library wraps: RuntimeError from HfHubHTTPError, or from what our file raised
        known = next((one for one in _chain(error) if isinstance(one, TrainstackError)), None)
        if known is not None:
            raise known from error
        raise _converted(error, where, doing) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = 0
    while error is not None and seen < 10:
        yield error
        error, seen = error.__cause__, seen + 1


def _converted(error: Exception, where: str, doing: str) -> TrainstackError:
    could_not = f"{where}: could not {doing}"
    for one in _chain(error):
        if isinstance(one, LocalTokenNotFoundError):
            return UserError(f"{could_not}: no token: `hf auth login`, or set HF_TOKEN (made at {TOKENS_PAGE})")
        if isinstance(one, OfflineModeIsEnabled):
            return UserError(f"{could_not}: HF_HUB_OFFLINE is set: unset it")
        if isinstance(one, HfHubHTTPError):
            return _of_answer(one, could_not)
        if isinstance(one, AskedToWait):
            return Busy(f"{could_not}: the Hub asks to wait {one.wait_s:.0f} s", one.wait_s)
        closed = isinstance(one, RuntimeError) and "has been closed" in str(one)  # by the library, in another thread
        if isinstance(one, httpx2.TransportError) or closed:
            return Unanswered(f"{could_not}: the Hub did not answer ({type(one).__name__}): try again later")
    return StoreError(
        f"{could_not}: {type(error).__name__}: {_shown(str(error))}: the Hub answered in a way that is not known here; "
        "try again, and look whether huggingface_hub is up to date"
    )


def _of_answer(error: HfHubHTTPError, could_not: str) -> TrainstackError:
    status = error.response.status_code
    said = _shown(error.server_message or "")
    words = f" ({said})" if said else ""
    if isinstance(error, EntryNotFoundError):
        return Missing(f"{could_not}: there is no such file")
    if isinstance(error, RevisionNotFoundError):
        return NoBranch(f"{could_not}: there is no such branch")
    if status == 401 and "credentials" in said.lower():
        return UserError(f"{could_not}: the token was refused: make a new one at {TOKENS_PAGE} and set HF_TOKEN")
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return NoRepo(
            f"{could_not}: there is no such repository, or the token may not see it: look at its name and at the "
            "rights of the token"
        )
    if status == 412:
        return Moved(f"{could_not}: somebody else committed meanwhile")
    if status == 429:
        asked = wait_s(error.response.headers)
        return Busy(f"{could_not}: the Hub asks to wait {asked:.0f} s{words}", asked)
    if status in (402, 403, 413, 507) and any(word in said.lower() for word in _FULL):
        return StoreError(
            f"{could_not}: the Hub takes no more data{words}: free storage there or keep fewer checkpoints"
        )
    if status == 403:
        return UserError(f"{could_not}: forbidden{words}: the token needs the right to write to this repository")
    if status >= 500 or status == 408:
        return Unanswered(f"{could_not}: the Hub failed with {status}{words}: try again later")
    return StoreError(f"{could_not}: the Hub refused with {status}{words}")


def _shown(text: str) -> str:
    line = next(iter(text.strip().splitlines()), "")
    return _SECRET.sub("...", line)[:_LINE_CHARS].rstrip(". ")
