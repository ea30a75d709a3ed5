"""Who a token belongs to, and what it may do."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request

from tests.hub_server.names import Answer, owner_of


@dataclass(frozen=True)
class Token:
    """A user's token. `scopes` (of a fine-grained one) maps 'user', 'org' or 'user/repo' to the permissions there."""

    user: str
    role: str = "write"
    orgs: tuple[str, ...] = ()
    scopes: dict[str, list[str]] = field(default_factory=dict)

    def may(self, permission: str, repo: str) -> bool:
        """Whether it allows `repo.content.read` or `repo.write` on 'owner/name'."""
        owner = owner_of(repo)
        if owner not in (self.user, *self.orgs):
            return False
        if self.role == "fineGrained":
            return permission in self.scopes.get(repo, []) + self.scopes.get(owner, [])
        return permission == "repo.content.read" or self.role == "write"

    def whoami(self) -> dict[str, Any]:
        """The answer of `/api/whoami-v2`."""
        access: dict[str, Any] = {"displayName": "for tests", "role": self.role, "createdAt": "2024-01-01T00:00:00Z"}
        if self.role == "fineGrained":
            scoped = [
                {"entity": {"type": "model" if "/" in name else "user", "name": name}, "permissions": permissions}
                for name, permissions in self.scopes.items()
            ]
            access["fineGrained"] = {"global": [], "scoped": scoped}
        orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": "write"} for name in self.orgs]
        auth = {"type": "access_token", "accessToken": access}
        return {"type": "user", "id": f"id-{self.user}", "name": self.user, "fullname": self.user, "orgs": orgs} | {
            "isPro": False,
            "auth": auth,
        }


class Accounts:
    """The tokens that exist, kept in a file so that they outlive a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        known = json.loads(path.read_text()) if path.exists() else {}
        self.tokens = {secret: Token(**entry) for secret, entry in known.items()}

    def add(self, secret: str, token: Token) -> None:
        self.tokens[secret] = token
        self._path.write_text(json.dumps({name: asdict(entry) for name, entry in self.tokens.items()}))

    def caller(self, request: Request) -> Token | None:
        """Whose request it is, None for a stranger. A token that is not known is refused."""
        header = request.headers.get("authorization")
        if header is None:
            return None
        token = self.tokens.get(header.removeprefix("Bearer "))
        if token is None:
            raise Answer(401, "Invalid credentials in Authorization header")
        return token

    def writer(self, request: Request, repo: str) -> Token:
        """Whose request it is; refused without the right to write to the repository."""
        token = self.caller(request)
        if token is None:
            raise Answer(401, "Invalid username or password.")
        if not token.may("repo.write", repo):
            raise Answer(403, f"Forbidden: you must use a write token with rights on {owner_of(repo)}")
        return token
