"""The Hugging Face Hub: a token, whether the Hub takes it, and whether it may write.

One question, put without `huggingface_hub`: its client knows no time limit and leaves files behind.
"""

import os
from pathlib import Path
from typing import Any

import httpx

from tasks.prerequisites.finding import ANSWER_S, CONNECT_S, Finding, shown

TOKEN, WRITE = "Hub token", "Hub write right"
PAGE = "https://huggingface.co/settings/tokens"
WRITING = "repo.write"


def find_token() -> tuple[str, str] | None:
    """The token that `huggingface_hub` would use and the place that named it; None when there is none."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if value := os.environ.get(name, "").strip():
            return value, name
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
    folder = Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()
    file = Path(os.environ.get("HF_TOKEN_PATH") or folder / "token").expanduser()
    value = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return (value, str(file)) if value else None


def look() -> list[Finding]:
    """Whether there is a token, the Hub takes it, and it may write."""
    found = find_token()
    if found is None:
        return [
            _no(TOKEN, "none", f"`hf auth login`, or set HF_TOKEN (made at {PAGE})"),
            _no(WRITE, "not tried: no token", f"first the {TOKEN}"),
        ]
    token, place = found
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        answer = httpx.get(
            f"{url}/api/whoami-v2",
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
        )
        who: dict[str, Any] = answer.json() if answer.is_success else {}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return _refused(place, f"{shown(url)} does not answer ({type(error).__name__})", "look at the network")
    if not answer.is_success:
        remedy = f"make a new token at {PAGE} and put it where the old one is ({place})"
        return _refused(place, f"refused by {shown(url)} ({answer.status_code})", remedy)
    accepted = Finding(TOKEN, True, f"{place}; {who.get('name', '?')} at {shown(url)}", needed_for="hub")
    return [accepted, _write_right(who)]


def _write_right(who: dict[str, Any]) -> Finding:
    """Classic tokens have one role for everything; fine-grained ones have rights for each owner or repository."""
    token = (who.get("auth") or {}).get("accessToken") or {}
    role = str(token.get("role", "unknown"))
    if role != "fineGrained":
        remedy = f"make a token with the role 'write' at {PAGE}"
        return Finding(WRITE, role in ("write", "admin"), f"role {role}", remedy, needed_for="hub")
    scoped = (token.get("fineGrained") or {}).get("scoped") or []
    names = sorted({_name(part) for part in scoped if WRITING in (part.get("permissions") or [])})
    remedy = f"give the token write access to repositories of the owner it shall write to, at {PAGE}"
    words = f"to {', '.join(names)}" if names else "a fine-grained token that may not write"
    return Finding(WRITE, bool(names), words, remedy, needed_for="hub")


def _name(part: dict[str, Any]) -> str:
    return str((part.get("entity") or {}).get("name") or "?")


def _refused(place: str, words: str, remedy: str) -> list[Finding]:
    return [_no(TOKEN, f"{place}; {words}", remedy), _no(WRITE, "not tried: see the token", f"first the {TOKEN}")]


def _no(what: str, found: str, remedy: str) -> Finding:
    return Finding(what, False, found, remedy, needed_for="hub")
