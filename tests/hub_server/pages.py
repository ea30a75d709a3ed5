"""Repositories that are read: what is known of one, its trees page by page, its commits, its files."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response

from tests.hub_server.names import POINTER_BYTES, Answer, entry_not_found, owner_of, tree_hash
from tests.hub_server.repos import Repo
from tests.hub_server.storage import Storage


def info(repo: Repo, revision: str, *, blobs: bool) -> JSONResponse:
    commit, about = repo.commit_of(revision), repo.about
    siblings = []
    for path, entry in commit["files"].items():
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            sibling |= {"size": entry["size"], "blobId": entry["oid"]}
            if "lfs" in entry:
                sibling["lfs"] = {"size": entry["size"], "sha256": entry["lfs"], "pointerSize": POINTER_BYTES}
        siblings.append(sibling)
    owner = owner_of(repo.name)
    found = {"_id": repo.name, "id": repo.name, "modelId": repo.name, "author": owner, "sha": commit["id"]}
    found |= {"lastModified": commit["date"], "createdAt": about["created"], "private": about["private"]}
    return JSONResponse(found | {"gated": False, "disabled": False, "tags": [], "siblings": siblings})


def tree(request: Request, repo: Repo, revision: str, folder: str, page: int) -> Response:
    """Entries of a folder, sorted, `page` at a time; the next page stands in the `Link` header."""
    files = repo.commit_of(revision)["files"]
    prefix = folder.rstrip("/") + "/" if folder else ""
    inside = {path: entry for path, entry in files.items() if path.startswith(prefix)}
    if prefix and not inside:
        raise entry_not_found(folder)
    recursive = request.query_params.get("recursive", "false").lower() == "true"
    entries = _entries(inside, prefix, recursive)
    start = int(request.query_params.get("cursor", "0"))
    headers = {}
    if start + page < len(entries):
        following = request.url.include_query_params(cursor=start + page)
        headers["Link"] = f'<{following}>; rel="next"'
    return JSONResponse(entries[start : start + page], headers=headers)


def _entries(inside: dict[str, dict[str, Any]], prefix: str, recursive: bool) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path, entry in inside.items():
        names = path[len(prefix) :].split("/")
        for depth in range(1, len(names)):
            if depth == 1 or recursive:
                folder = prefix + "/".join(names[:depth])
                found[folder] = {"type": "directory", "oid": tree_hash({folder: 1}), "size": 0, "path": folder}
        if len(names) == 1 or recursive:
            found[path] = file_entry(path, entry)
    return [found[path] for path in sorted(found)]


def file_entry(path: str, entry: dict[str, Any]) -> dict[str, Any]:
    described = {"type": "file", "oid": entry["oid"], "size": entry["size"], "path": path}
    if "lfs" in entry:
        described["lfs"] = {"oid": entry["lfs"], "size": entry["size"], "pointerSize": POINTER_BYTES}
    return described


def paths_info(repo: Repo, revision: str, paths: list[str]) -> JSONResponse:
    files = repo.commit_of(revision)["files"]
    found = [file_entry(path, files[path]) for path in paths if path in files]
    for path in paths:
        if any(name.startswith(path.rstrip("/") + "/") for name in files):
            found.append({"type": "directory", "oid": tree_hash({path: 1}), "size": 0, "path": path})
    return JSONResponse(found)


def commits(request: Request, repo: Repo, revision: str, page: int) -> JSONResponse:
    history = repo.history(revision)
    start = int(request.query_params.get("p", "0")) * page
    headers = {}
    if start + page < len(history):
        following = request.url.include_query_params(p=start // page + 1)
        headers["Link"] = f'<{following}>; rel="next"'
    listed = [
        {key: commit[key] for key in ("id", "title", "message", "date")} | {"authors": [{"user": commit["user"]}]}
        for commit in history[start : start + page]
    ]
    return JSONResponse(listed, headers=headers)


def refs(repo: Repo) -> JSONResponse:
    found = repo.refs()
    kinds = {"branches": "heads", "tags": "tags"}
    answer = {
        kind: [{"name": name, "ref": f"refs/{ref}/{name}", "targetCommit": oid} for name, oid in found[kind].items()]
        for kind, ref in kinds.items()
    }
    return JSONResponse(answer | {"converts": []})


def file(request: Request, repo: Repo, storage: Storage, revision: str, path: str, base: str) -> Response:
    """A file: small ones here, with ranges; LFS objects by a redirect to the store, with the facts in its headers."""
    commit = repo.commit_of(revision)
    entry = commit["files"].get(path)
    if entry is None:
        raise entry_not_found(path)
    headers = {"X-Repo-Commit": commit["id"], "Accept-Ranges": "bytes"}
    if "lfs" in entry:
        headers |= {"X-Linked-Size": str(entry["size"]), "X-Linked-Etag": f'"{entry["lfs"]}"'}
        return RedirectResponse(storage.address(base, f"object/{repo.name}/{entry['lfs']}"), 302, headers)
    headers["ETag"] = f'"{entry["oid"]}"'
    return FileResponse(repo.folder / "blobs" / entry["oid"], headers=headers)


def body_of(content: bytes) -> dict[str, Any]:
    """The JSON object of a request."""
    try:
        return dict(json.loads(content or b"{}"))
    except (ValueError, TypeError):
        raise Answer(400, "Body is no JSON object") from None
