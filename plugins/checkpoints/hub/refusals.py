"""What the Hub says to somebody who only wants to read, in words about reading and about a recipe's secrets.

`errors.py` speaks to who writes to a repository of their own; here it is somebody else's, perhaps behind a gate.
"""

import contextlib
from collections.abc import Iterator

import httpx2
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from plugins.checkpoints.hub.errors import TOKENS_PAGE, hub_errors
from plugins.errors import UserError


@contextlib.contextmanager
def reading_errors(where: str, doing: str, *, host: str, has_token: bool) -> Iterator[None]:
    """As `hub_errors`, but what is refused is a UserError. host: of the Hub; has_token: whether one was sent.

    A refusal by another host is one of the object store, to a signed address that grew old: worth another try.
    """
    with hub_errors(where, doing):
        try:
            yield
        except HfHubHTTPError as error:
            if error.response.url.host != host:
                raise httpx2.ReadError(f"the object store answered {error.response.status_code}") from error
            if (words := _refusal(error, has_token)) is not None:
                raise UserError(f"{where}: could not {doing}: {words}") from error
            raise


def _refusal(error: HfHubHTTPError, has_token: bool) -> str | None:
    status, said = error.response.status_code, (error.server_message or "").lower()
    if isinstance(error, GatedRepoError):
        return (
            "it is gated: ask for access on its page with the account that the token belongs to, and name HF_TOKEN in "
            "the recipe's `secrets`"
        )
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision: name a branch, tag or commit of the repository after '@'"
    if isinstance(error, EntryNotFoundError):
        return "there is no such file in the repository"
    if status == 401 and "credentials" in said:
        return f"the token was refused: make a new one at {TOKENS_PAGE} and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        why = "this token may not see it" if has_token else "it is private and HF_TOKEN is not set here"
        return f"there is no such repository, or {why}: look at its name, and name HF_TOKEN in the `secrets`"
    return "the token may not read it: give it the right to read this repository" if status == 403 else None
