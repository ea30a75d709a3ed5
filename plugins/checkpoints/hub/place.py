"""Where on the Hub: `hub://user/repo[@branch][/prefix]`."""

import os
import re
from dataclasses import dataclass

from plugins.errors import UserError

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_BRANCH = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_])?"
_PREFIX = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*)"
_URI = re.compile(rf"hub://({_NAME})/({_NAME})(?:@({_BRANCH}))?((?:/{_PREFIX})*)/?")
MAIN = "main"
PUBLIC_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class HubPlace:
    """One branch of one model repository, and a folder in it ('' for its root)."""

    repo: str
    branch: str = MAIN
    prefix: str = ""

    @property
    def owner(self) -> str:
        """The user or organisation."""
        return self.repo.partition("/")[0]

    @property
    def uri(self) -> str:
        """`hub://user/repo@branch/prefix`; the branch is left out when it is main."""
        branch = "" if self.branch == MAIN else f"@{self.branch}"
        return f"hub://{self.repo}{branch}" + (f"/{self.prefix}" if self.prefix else "")

    @classmethod
    def of(cls, uri: str) -> "HubPlace":
        """Read a URI. Raises UserError that says how one is written."""
        match = _URI.fullmatch(uri.strip())
        if match is None or ".." in uri or "--" in f"{match[1]}{match[2]}" or match[2].endswith(".git"):
            raise UserError(
                f"{uri.strip()!r}: is no place on the Hub; write hub://user/repo, hub://user/repo@branch or "
                "hub://user/repo@branch/folder, with letters, digits, '.', '_' and '-' in each name"
            )
        return cls(f"{match[1]}/{match[2]}", match[3] or MAIN, match[4].strip("/"))


def endpoint() -> str:
    """Address of the Hub in use, without '/' at the end: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or PUBLIC_HUB).rstrip("/")
