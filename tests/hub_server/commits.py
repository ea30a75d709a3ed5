"""A commit: lines of JSON with a header, files, LFS pointers and deletions, applied at once or not at all."""

import base64
import json
from typing import Any

from tests.hub_server.names import Answer, git_hash, is_lfs, pointer
from tests.hub_server.repos import Files, Repo
from tests.hub_server.storage import Storage

GITATTRIBUTES = ".gitattributes"


def apply(repo: Repo, storage: Storage, branch: str, body: bytes, user: str, threshold: int) -> dict[str, Any]:
    """Make the commit that the lines of `body` describe; return it. Answers 412 when the parent is not the newest."""
    lines = [json.loads(line) for line in body.splitlines() if line.strip()]
    header = next((line["value"] for line in lines if line["key"] == "header"), None)
    if header is None or not header.get("summary"):
        raise Answer(400, "A commit needs a header with a summary")
    with repo.lock:
        if branch not in repo.refs()["branches"]:
            raise Answer(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = repo.commit_of(branch)
        wanted = header.get("parentCommit")
        if wanted is not None and wanted != head["id"]:
            raise Answer(412, "A commit has happened since. Please refresh and try again.")
        files = {path: dict(entry) for path, entry in head["files"].items()}
        for line in lines:
            _apply_line(repo, storage, files, line["key"], line["value"], threshold)
        return repo.write_commit(
            branch, files, header["summary"], header.get("description") or "", user, parent=head["id"]
        )


def _apply_line(repo: Repo, storage: Storage, files: Files, key: str, value: dict[str, Any], threshold: int) -> None:
    if key == "header":
        return
    path = value.get("path", "")
    if not path or {"", ".", ".."} & set(path.rstrip("/").split("/")):
        raise Answer(400, f"Invalid path {path!r}")
    if key == "file":
        content = base64.b64decode(value["content"])
        if len(content) > threshold:
            raise Answer(400, f"{path} is larger than {threshold} bytes and must be stored with LFS")
        files[path] = {"oid": repo.store_blob(content), "size": len(content)}
    elif key == "lfsFile":
        _add_lfs(repo, storage, files, path, value)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Answer(404, "A file with this name doesn't exist", "EntryNotFound")
    elif key == "deletedFolder":
        inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
        if not inside:
            raise Answer(404, "A file with this name doesn't exist", "EntryNotFound")
        for name in inside:
            del files[name]
    else:
        raise Answer(400, f"Unknown operation {key}")


def _add_lfs(repo: Repo, storage: Storage, files: Files, path: str, value: dict[str, Any]) -> None:
    size = storage.size(repo.name, value["oid"])
    if size is None or value.get("size", size) != size:
        raise Answer(400, f"LFS pointer pointed to a file that does not exist: {path} ({value['oid']})")
    content = pointer(value["oid"], size)
    files[path] = {"oid": git_hash("blob", content), "size": size, "lfs": value["oid"]}
    attributes = repo.read(files[GITATTRIBUTES]).decode() if GITATTRIBUTES in files else ""
    if not is_lfs(path, 1, b"", attributes, 1):  # its name alone would not make it LFS: the Hub adds a line
        attributes += f"{path} filter=lfs diff=lfs merge=lfs -text\n"
        files[GITATTRIBUTES] = {"oid": repo.store_blob(attributes.encode()), "size": len(attributes.encode())}
