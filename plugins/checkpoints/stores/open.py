"""From a URI in a recipe to a store. What a store needs is imported when it is opened.

    folder:/absolute/path, or a plain path      a folder of this machine, or of a disk with locks and renames
    volume:/mnt, volume:/mnt/some/folder        the Lium volume of the pod (recipe: `pod.volume`)
    s3://bucket/prefix                          S3, or what speaks like it: ?endpoint=http://host:port&region=...
    hub://user/repo@branch/prefix               a model repository on the Hugging Face Hub; see `hub.py`

A URI never holds credentials: it is written into recipes, manifests and logs. Each provider's own library finds them.
"""

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from plugins.checkpoints.stores import CheckpointStore
from plugins.checkpoints.stores.folder import FolderStore
from plugins.errors import UserError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.DOTALL)
_SECRET = re.compile(r"key|secret|token|passw|credential|signature|auth", re.IGNORECASE)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_ENDPOINT = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?(/[^?#]*)?")
_KNOWN = "folder:/absolute/path, volume:/mnt, s3://bucket/prefix, hub:... or a plain path"


def open_store(uri: str) -> CheckpointStore:
    """The store that a URI names; '~' in a plain path is the home folder. Nothing is read or written yet.

    Raises UserError for anything else, naming what exists, and for a URI that holds credentials.
    """
    text = uri.strip()
    match = _SCHEME.fullmatch(text)
    scheme, rest = (match[1], match[2]) if match else ("", text)
    if scheme not in ("", "folder", "volume"):
        _refuse_credentials(text)
    if scheme in ("", "folder"):
        return FolderStore(_path(uri, scheme, rest))
    if scheme == "volume":
        from plugins.checkpoints.stores.volume import DEFAULT, open_volume

        return open_volume(_path(uri, scheme, rest or str(DEFAULT)))
    if scheme == "s3":
        return _open_s3(text)
    if scheme == "hub":
        from plugins.checkpoints.stores.hub import open_hub

        return open_hub(text)
    raise UserError(f"store {uri!r}: there is no store {scheme!r}; write {_KNOWN}")


def _path(uri: str, scheme: str, rest: str) -> Path:
    path = Path(rest).expanduser() if rest.startswith("~") else Path(rest)
    host = rest.startswith("//") and not rest.startswith("///")  # folder://host/x names a machine, not a folder
    if not rest or host or (scheme and not path.is_absolute()):
        raise UserError(f"store {uri!r}: names no absolute path; write {_KNOWN}")
    return path


def _open_s3(uri: str) -> CheckpointStore:
    from plugins.checkpoints.stores.s3 import open_s3
    from plugins.checkpoints.stores.s3_client import S3Place

    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = parts.path.removeprefix("/").rstrip("/")
    if not uri.startswith("s3://") or not _BUCKET.fullmatch(parts.netloc) or parts.fragment:
        raise UserError(f"store {uri!r}: names no bucket; write s3://bucket/prefix")
    if {"", ".", ".."} & set(prefix.split("/")) and prefix:
        raise UserError(f"store {uri!r}: a prefix has no empty part and no '.' or '..'")
    if unknown := set(options) - {"endpoint", "region"}:
        raise UserError(f"store {uri!r}: has no option {', '.join(sorted(unknown))}; there are endpoint and region")
    endpoint = options.get("endpoint")
    if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
        raise UserError(f"store {uri!r}: its endpoint is no URL; write ?endpoint=http://host:port")
    return open_s3(S3Place(parts.netloc, prefix, endpoint, options.get("region")))


def _refuse_credentials(uri: str) -> None:
    """Raise UserError, without the URI in it, when it holds something that looks like a credential."""
    parts = urlsplit(uri)
    options = parse_qsl(parts.query, keep_blank_values=True)
    users = ["@" in parts.netloc, *("@" in urlsplit(value).netloc for _, value in options)]
    if any(users) or any(_SECRET.search(name) for name, _ in options):
        raise UserError(
            f"store {parts.scheme}: its URI holds credentials, which would end in logs and manifests: leave them out, "
            "and set the provider's variables (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or HF_TOKEN)"
        )
