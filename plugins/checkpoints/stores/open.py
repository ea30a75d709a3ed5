"""From a URI in a recipe to a store."""

import re
from pathlib import Path

from plugins.checkpoints.stores import CheckpointStore
from plugins.checkpoints.stores.folder import FolderStore
from plugins.errors import UserError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.DOTALL)


def open_store(uri: str) -> CheckpointStore:
    """The store of `folder:/abs/path` or of a plain path ('~' is the home folder). Nothing is read or written yet.

    Raises UserError for anything else, naming what exists.
    """
    match = _SCHEME.fullmatch(uri.strip())
    scheme, rest = (match[1], match[2]) if match else ("", uri.strip())
    if scheme not in ("", "folder"):
        raise UserError(f"store {uri!r}: there is no store {scheme!r}; write folder:/absolute/path or a plain path")
    path = Path(rest).expanduser() if rest.startswith("~") else Path(rest)
    host = rest.startswith("//") and not rest.startswith("///")  # folder://host/x names a machine, not a folder
    if not rest or host or (scheme and not path.is_absolute()):
        raise UserError(f"store {uri!r}: names no absolute path; write folder:/absolute/path or a plain path")
    return FolderStore(path)
