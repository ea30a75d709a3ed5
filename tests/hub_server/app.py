"""The routes of the Hub's API, matched on the raw path: names of branches and files come quoted, '/' as %2F."""

import asyncio
import base64
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tests.hub_server import commits, pages
from tests.hub_server.accounts import Accounts, Token
from tests.hub_server.faults import CONTROL, Faults
from tests.hub_server.names import Answer, is_lfs, named, of_kind, repo_not_found
from tests.hub_server.repos import Repo, Repos
from tests.hub_server.storage import Storage

REPO = "(?P<repo>[^/]+/[^/]+)"
REV = "(?P<rev>[^/]+)"
Handler = Callable[..., Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes and counts that tests make small."""

    regular_bytes: int = 10 * 2**20
    multipart_over: int = 5 * 2**30
    part_bytes: int = 5 * 2**30
    page: int = 1000


class Hub:
    """The Hub, an ASGI application."""

    def __init__(self, root: Path, port: int, limits: Limits) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.url, self.base = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self.limits, self.faults = limits, Faults()
        self.accounts, self.repos = Accounts(root / "tokens.json"), Repos(root)
        self.storage = Storage(root, multipart_over=limits.multipart_over, part_bytes=limits.part_bytes)
        self.commits: dict[str, list[float]] = {}
        self.commits_per_hour: int | None = None
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = [
            (method, re.compile(pattern), handler) for method, pattern, handler in self._table()
        ]

    def _table(self) -> list[tuple[str, str, Handler]]:
        api = f"/api/models/{REPO}"
        return [
            ("GET", "/api/whoami-v2", self.whoami),
            ("POST", "/api/validate-yaml", self.validate_yaml),
            ("POST", "/api/repos/create", self.create),
            ("DELETE", "/api/repos/delete", self.delete),
            ("GET", f"{api}(/revision/{REV})?", self.info),
            ("GET", f"{api}/tree/{REV}(/(?P<path>.*))?", self.tree),
            ("POST", f"{api}/paths-info/{REV}", self.paths_info),
            ("GET", f"{api}/commits/{REV}", self.history),
            ("GET", f"{api}/refs", self.refs),
            ("POST", f"{api}/preupload/{REV}", self.preupload),
            ("POST", f"{api}/commit/{REV}", self.commit),
            ("POST", f"{api}/branch/{REV}", self.make_branch),
            ("DELETE", f"{api}/branch/{REV}", self.remove_branch),
            ("POST", f"{api}/tag/{REV}", self.make_tag),
            ("DELETE", f"{api}/tag/{REV}", self.remove_tag),
            ("POST", f"{api}/super-squash/{REV}", self.squash),
            ("POST", f"/{REPO}\\.git/info/lfs/objects/batch", self.lfs_batch),
            ("POST", f"/{REPO}\\.git/info/lfs/verify", self.lfs_verify),
            ("GET", f"/{REPO}/resolve/{REV}/(?P<path>.+)", self.resolve),
            ("PUT", "/_storage/(?P<path>.+)", self.storage.put),
            ("POST", "/_storage/(?P<path>.+)", self.storage.complete),
            ("GET", "/_storage/(?P<path>.+)", self.stored),
            ("POST", f"{CONTROL}/(?P<what>[a-z]+)", self.control),
            ("GET", f"{CONTROL}/state", self.state),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except Answer as error:
            answer = error.response()
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        raw = of_kind(request.scope["raw_path"].decode().partition("?")[0])
        method = "GET" if request.method == "HEAD" else request.method
        for wanted, pattern, handler in self._routes:
            if wanted == method and (match := pattern.fullmatch(raw)):
                found = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                return await handler(request, **found)
        raise Answer(404, "Sorry, we can't find the page you are looking for.")

    # who, and repositories

    async def whoami(self, request: Request) -> Response:
        token = self.accounts.caller(request)
        if token is None:
            raise Answer(401, "Invalid username or password.")
        return JSONResponse(token.whoami())

    async def validate_yaml(self, request: Request) -> Response:
        content = str((await _json(request)).get("content", ""))
        match = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        if match is None:
            missing = [{"message": "empty or missing yaml metadata in repo card"}]
            return JSONResponse({"errors": [], "warnings": missing})
        try:
            yaml.safe_load(match[1])
        except yaml.YAMLError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return JSONResponse({"errors": [], "warnings": []})

    async def create(self, request: Request) -> Response:
        token, body = self.accounts.caller(request), await _json(request)
        if token is None:
            raise Answer(401, "Invalid username or password.")
        owner = body.get("organization") or token.user
        name = named(f"{owner}/{body['name']}", body)
        if owner not in (token.user, *token.orgs) or not token.may("repo.write", name):
            raise Answer(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if self.repos.get(name):
            url = f"{self.url}/{name}"
            return JSONResponse({"error": "You already created this model repo", "url": url}, 409)
        self.repos.create(name, private=body.get("visibility") == "private" or bool(body.get("private")))
        return JSONResponse({"url": f"{self.url}/{name}", "name": name})

    async def delete(self, request: Request) -> Response:
        body = await _json(request)
        token = self.accounts.caller(request)
        name = named(f"{body.get('organization') or (token.user if token else '')}/{body['name']}", body)
        self.accounts.writer(request, name)
        if self.repos.get(name) is None:
            raise repo_not_found(anonymous=False)
        self.repos.delete(name)
        self.storage.forget(name)
        self.commits.pop(name, None)
        return JSONResponse({})

    async def info(self, request: Request, repo: str, rev: str = "main") -> Response:
        return pages.info(self._read(request, repo), rev, blobs=bool(request.query_params.get("blobs")))

    # reading

    async def tree(self, request: Request, repo: str, rev: str, path: str = "") -> Response:
        return pages.tree(request, self._read(request, repo), rev, path, self.limits.page)

    async def paths_info(self, request: Request, repo: str, rev: str) -> Response:
        form = parse_qs((await request.body()).decode())
        return pages.paths_info(self._read(request, repo), rev, form.get("paths", []))

    async def history(self, request: Request, repo: str, rev: str) -> Response:
        return pages.commits(request, self._read(request, repo), rev, min(self.limits.page, 50))

    async def refs(self, request: Request, repo: str) -> Response:
        return pages.refs(self._read(request, repo))

    async def resolve(self, request: Request, repo: str, rev: str, path: str) -> Response:
        return pages.file(request, self._read(request, repo), self.storage, rev, path, self.base)

    async def stored(self, request: Request, path: str) -> Response:
        return FileResponse(self.storage.get(request, path), headers={"Accept-Ranges": "bytes"})

    # writing

    async def preupload(self, request: Request, repo: str, rev: str) -> Response:
        found, _ = self._write(request, repo)
        head = found.commit_of(rev)["files"]
        attributes = found.read(head[".gitattributes"]).decode() if ".gitattributes" in head else ""
        answer = []
        for file in (await _json(request))["files"]:
            sample = base64.b64decode(file.get("sample", ""))
            lfs = is_lfs(file["path"], file["size"], sample, attributes, self.limits.regular_bytes)
            there = head.get(file["path"], {})
            oid = there.get("lfs", there.get("oid"))
            mode = "lfs" if lfs else "regular"
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return JSONResponse({"files": answer})

    async def commit(self, request: Request, repo: str, rev: str) -> Response:
        found, token = self._write(request, repo)
        times = self.commits.setdefault(repo, [])
        recent = [at for at in times if at > time.time() - 3600]
        if self.commits_per_hour is not None and len(recent) >= self.commits_per_hour:
            message = f"You have exceeded the rate limit for repository commits ({self.commits_per_hour} per hour)."
            raise Answer(429, message, headers={"Retry-After": "1"})
        body = await request.body()
        limit = self.limits.regular_bytes
        made = await asyncio.to_thread(commits.apply, found, self.storage, rev, body, token.user, limit)
        times.append(time.time())
        url = f"{self.url}/{repo}/commit/{made['id']}"
        return JSONResponse({"success": True, "commitOid": made["id"], "commitUrl": url, "hookOutput": ""})

    async def make_branch(self, request: Request, repo: str, rev: str) -> Response:
        found, _ = self._write(request, repo)
        if rev.startswith("refs/"):
            raise Answer(400, f"Invalid reference for a branch: {rev}")
        start = found.commit_of((await _json(request)).get("startingPoint", "main"))
        with found.lock:
            if rev in found.refs()["branches"]:
                raise Answer(409, "Reference already exists")
            found.set_ref("branches", rev, start["id"])
        return JSONResponse({})

    async def remove_branch(self, request: Request, repo: str, rev: str) -> Response:
        found, _ = self._write(request, repo)
        if rev == "main" or rev not in found.refs()["branches"]:
            raise Answer(403 if rev == "main" else 404, f"Cannot delete branch {rev}", "RevisionNotFound")
        found.set_ref("branches", rev, None)
        return JSONResponse({})

    async def make_tag(self, request: Request, repo: str, rev: str) -> Response:
        found, _ = self._write(request, repo)
        name = (await _json(request))["tag"]
        if name in found.refs()["tags"]:
            raise Answer(409, "Tag reference exists already")
        found.set_ref("tags", name, found.commit_of(rev)["id"])
        return JSONResponse({})

    async def remove_tag(self, request: Request, repo: str, rev: str) -> Response:
        found, _ = self._write(request, repo)
        if rev not in found.refs()["tags"]:
            raise Answer(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        found.set_ref("tags", rev, None)
        return JSONResponse({})

    async def squash(self, request: Request, repo: str, rev: str) -> Response:
        found, token = self._write(request, repo)
        with found.lock:
            head = found.commit_of(rev)
            title = (await _json(request)).get("message") or "Super-squash"
            found.write_commit(rev, head["files"], title, "", token.user, parent=None)
        return JSONResponse({})

    async def lfs_batch(self, request: Request, repo: str) -> Response:
        self._write(request, repo)
        body = await _json(request)
        if body.get("hash_algo") != "sha256" or body.get("operation") != "upload":
            raise Answer(422, "Only uploads with SHA-256 are known")
        objects = self.storage.batch(body["objects"], repo, self.base, self.url)
        parts = any("chunk_size" in str(item) for item in objects)
        return JSONResponse({"transfer": "multipart" if parts else "basic", "objects": objects})

    async def lfs_verify(self, request: Request, repo: str) -> Response:
        self._write(request, repo)
        body = await _json(request)
        if self.storage.size(repo, body["oid"]) != body["size"]:
            raise Answer(404, "LFS object not found")
        return JSONResponse({})

    # the tests' side

    async def control(self, request: Request, what: str) -> Response:
        body = await _json(request)
        if what == "faults":
            self.faults.order(body)
        elif what == "clear":
            self.faults.clear()
        elif what == "tokens":
            scopes, orgs = body.get("scopes", {}), tuple(body.get("orgs", ()))
            self.accounts.add(body["token"], Token(body["user"], body.get("role", "write"), orgs, scopes))
        elif what == "rate":
            self.commits_per_hour = body["commits_per_hour"]
        else:
            raise Answer(404, f"There is no control {what}")
        return JSONResponse({})

    async def state(self, request: Request) -> Response:
        counts = {repo: len(times) for repo, times in self.commits.items()}
        received = self.storage.received_bytes
        return JSONResponse({"commits": counts, "received_bytes": received, "calls": self.faults.calls})

    def _read(self, request: Request, name: str) -> Repo:
        token, repo = self.accounts.caller(request), self.repos.get(name)
        allowed = repo and (not repo.about["private"] or (token and token.may("repo.content.read", name)))
        if repo is None or not allowed:
            raise repo_not_found(anonymous=token is None)
        return repo

    def _write(self, request: Request, name: str) -> tuple[Repo, Token]:
        return self._read(request, name), self.accounts.writer(request, name)


async def _json(request: Request) -> dict[str, Any]:
    return pages.body_of(await request.body())
