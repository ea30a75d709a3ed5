"""What a pod shows at the gateway: a token that names the pod and that only the holder of our key can have made.

Nothing is stored: another process with the same key file reads the tokens that this one minted, so an adopted pod goes
on. Whether a pod is still served is not the token's matter (see `standing.py`).

    ts1.<base64url of name NUL id>.<base64url of HMAC-SHA256>
"""

import base64
import binascii
import hmac
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from plugins.errors import UserError

KEY_BYTES = 32
VERSION = "ts1"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


@dataclass(frozen=True)
class Pass:
    """Whose token it is: the pod's name (also the name of its queue and worker) and Lium's id of it."""

    pod: str
    pod_id: str


def mint(key: bytes, pod: str, pod_id: str) -> str:
    """The token of one pod. Raises UserError for a name that cannot stand in a URL."""
    if not NAME.fullmatch(pod):
        raise UserError(f"Pod name {pod!r} cannot have a token: letters, digits, '-' and '_' only, at most 128.")
    claim = _text(f"{pod}\0{pod_id}".encode())
    return f"{VERSION}.{claim}.{_text(_seal(key, claim))}"


def read(key: bytes, token: str) -> Pass | None:
    """Whose token it is; None for one that we did not mint."""
    version, _, rest = token.partition(".")
    claim, _, seal = rest.partition(".")
    if version != VERSION or not token.isascii():
        return None
    if not hmac.compare_digest(_text(_seal(key, claim)).encode(), seal.encode()):
        return None
    try:
        pod, _, pod_id = base64.urlsafe_b64decode(claim + "=" * (-len(claim) % 4)).decode().partition("\0")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return Pass(pod, pod_id)


def auth_string(pod: str, token: str) -> str:
    """What the pod gets as PREFECT_API_AUTH_STRING."""
    return f"{pod}:{token}"


def bearer_of(key: bytes, auth: str) -> Pass | None:
    """Whose `auth_string` it is; None when the token is not ours or names another pod."""
    pod, _, token = auth.partition(":")
    found = read(key, token)
    return found if found is not None and found.pod == pod else None


def basic(auth: str) -> str:
    """An `auth_string` as the value of an Authorization header."""
    return "Basic " + base64.b64encode(auth.encode()).decode()


def from_basic(header: str) -> str:
    """The `auth_string` in an Authorization header; empty when it holds none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def load_key(path: Path) -> bytes:
    """The key in that file, made at the first call (mode 0600). Raises UserError when it is no key or others can read.

    Two processes that make it at the same moment get the same key: the file appears whole, and once.
    """
    try:
        if not path.exists():
            _make_key(path)
        mode, key = path.stat().st_mode & 0o077, path.read_bytes()
    except OSError as error:
        raise UserError(f"The gateway's key file {path} cannot be used: {error}") from error
    if mode:
        raise UserError(f"Others can read the gateway's key file {path}: chmod 600 it, or delete it to get a new key.")
    if len(key) != KEY_BYTES:
        raise UserError(
            f"{path} is not a key of the gateway ({len(key)} bytes, not {KEY_BYTES}): delete it to get one."
        )
    return key


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    staged = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        with suppress(FileExistsError):
            os.link(staged, path)
    finally:
        staged.unlink()


def _seal(key: bytes, claim: str) -> bytes:
    return hmac.digest(key, f"{VERSION}.{claim}".encode(), "sha256")


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
