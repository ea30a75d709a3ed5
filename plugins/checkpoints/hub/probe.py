"""Whether a repository can be used as a store, found out by using it; and if not, why, in words."""

import secrets
import threading
from typing import Any

from plugins.checkpoints.disk import sha256_of
from plugins.checkpoints.hub.errors import TOKENS_PAGE, NoRepo
from plugins.checkpoints.hub.repo import HubRepo
from plugins.checkpoints.hub.writing import Draft, HubWriter
from plugins.errors import StoreError, UserError

PROBE = ".trainstack-probe-"


def check_usable(writer: HubWriter, prefix: str, *, public: bool = False) -> None:
    """Make repository and branch if need be, then write, read, list and remove a small file. Two commits.

    Raises UserError for what the user must change (token, rights, owner), StoreError when the Hub fails.
    """
    repo = writer.repo
    who = _who(repo)
    try:
        writer.ensure(public=public)
        _probe(writer, prefix)
    except (UserError, NoRepo) as error:
        raise UserError(_why(repo, who)) from error


def _who(repo: HubRepo) -> dict[str, Any]:
    if not repo.token:
        raise UserError(
            f"{repo.where}: no Hugging Face token: `hf auth login`, or set HF_TOKEN (made at {TOKENS_PAGE})"
        )
    try:
        return dict(repo.ask("ask whose token it is", repo.api.whoami))
    except NoRepo:  # any 401 that says nothing more
        raise UserError(
            f"{repo.where}: the Hub refused the token: make a new one at {TOKENS_PAGE} and set HF_TOKEN"
        ) from None


def _probe(writer: HubWriter, prefix: str) -> None:
    repo = writer.repo
    writer.check_pace(claim=True)
    path, text = f"{prefix}{PROBE}{secrets.token_hex(4)}", "written to see whether this store can be written\n"
    made = writer.commit(Draft("Check whether this store can be written", texts={path: text}), repo.head())
    if repo.download(path, None, threading.Event()) != sha256_of(text.encode()):
        raise StoreError(f"{repo.where}: gave back other bytes than were written")
    listed = [file.path for file in repo.files(prefix.rstrip("/"), made)]
    if path not in listed:
        raise StoreError(f"{repo.where}: does not list what was written")
    probes = tuple(name for name in listed if name.startswith(f"{prefix}{PROBE}"))
    writer.commit(Draft("Remove what the check wrote", drop=probes), made)


def _why(repo: HubRepo, who: dict[str, Any]) -> str:
    """What keeps this token from writing there, as far as the Hub tells."""
    token = (who.get("auth") or {}).get("accessToken") or {}
    role, user, owner = token.get("role"), str(who.get("name")), repo.place.owner
    owners = [user, *(str(org.get("name")) for org in who.get("orgs") or [])]
    if owner not in owners:
        return (
            f"{repo.where}: belongs to {owner!r}, and the token to {user!r} (with {', '.join(owners)}): write to a "
            f"repository of one of these, or use a token of {owner!r}"
        )
    if role == "read":
        return f"{repo.where}: the token of {user!r} may only read: make one with the right to write at {TOKENS_PAGE}"
    if role == "fineGrained":
        return (
            f"{repo.where}: the fine-grained token of {user!r} has no right to write there, or may not make the "
            f"repository: give it write access to {repo.place.repo} or to all of {owner!r} at {TOKENS_PAGE}"
        )
    return f"{repo.where}: the Hub does not let {user!r} write there: look at the rights in {owner!r}"
