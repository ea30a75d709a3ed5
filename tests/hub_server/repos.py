"""Repositories on the disk.

    <root>/repos/<owner>/<name>/
      repo.json           {"private", "created"}
      refs.json           {"branches": {name: commit}, "tags": {name: commit}}, replaced by one rename
      commits/<sha>.json  {"id", "parent", "title", "message", "date", "user", "files": {path: entry}}
      blobs/<git sha>     small files
    <root>/lfs/...        see `storage.py`

An entry is {"oid", "size"} or, for LFS, {"oid", "size", "lfs": sha256}. A process that dies leaves files that nothing
names, never half a commit.
"""

import json
import os
import re
import shutil
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.hub_server.names import GITATTRIBUTES, Answer, git_hash, owner_of, revision_not_found

Files = dict[str, dict[str, Any]]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    partial.write_bytes(content)
    os.replace(partial, path)  # noqa: PTH105


class Repo:
    """One repository; `lock` is held around changes."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.lock = folder, name, threading.RLock()

    @property
    def about(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "repo.json").read_text()))

    def refs(self) -> dict[str, dict[str, str]]:
        return dict(json.loads((self.folder / "refs.json").read_text()))

    def set_ref(self, kind: str, name: str, commit: str | None) -> None:
        """Move, make or (None) remove a branch or tag."""
        with self.lock:
            refs = self.refs()
            if commit is None:
                del refs[kind][name]
            else:
                refs[kind][name] = commit
            replace(self.folder / "refs.json", json.dumps(refs).encode())

    def commit_of(self, revision: str) -> dict[str, Any]:
        """The commit that a branch, tag, commit hash or its first seven or more characters names."""
        refs = self.refs()
        found = refs["branches"].get(revision) or refs["tags"].get(revision)
        if found is None and re.fullmatch(r"[0-9a-f]{7,40}", revision):
            found = next((path.stem for path in (self.folder / "commits").glob(f"{revision}*.json")), None)
        if found is None:
            raise revision_not_found(revision)
        return dict(json.loads((self.folder / "commits" / f"{found}.json").read_text()))

    def history(self, revision: str) -> list[dict[str, Any]]:
        """Commits of a revision, newest first."""
        commits = [self.commit_of(revision)]
        while commits[-1]["parent"]:
            commits.append(self.commit_of(commits[-1]["parent"]))
        return commits

    def store_blob(self, content: bytes) -> str:
        oid = git_hash("blob", content)
        if not (self.folder / "blobs" / oid).exists():
            replace(self.folder / "blobs" / oid, content)
        return oid

    def read(self, entry: dict[str, Any]) -> bytes:
        return (self.folder / "blobs" / entry["oid"]).read_bytes()

    def write_commit(
        self, branch: str, files: Files, title: str, message: str, user: str, parent: str | None
    ) -> dict[str, Any]:
        """Store a commit and move the branch to it."""
        commit = {"parent": parent, "title": title, "message": message, "user": user, "files": files}
        commit["date"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        commit["id"] = git_hash("commit", (json.dumps(commit) + uuid.uuid4().hex).encode())
        replace(self.folder / "commits" / f"{commit['id']}.json", json.dumps(commit).encode())
        self.set_ref("branches", branch, commit["id"])
        return commit


class Repos:
    """All repositories under a root."""

    def __init__(self, root: Path) -> None:
        self.root = root / "repos"
        self._open: dict[str, Repo] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Repo | None:
        with self._lock:
            folder = self.root / name
            if not (folder / "refs.json").exists():
                self._open.pop(name, None)
                return None
            return self._open.setdefault(name, Repo(folder, name))

    def create(self, name: str, private: bool) -> Repo:
        owner, short = owner_of(name), name.rpartition("/")[2]
        if not _NAME.fullmatch(short) or not _NAME.fullmatch(owner):
            raise Answer(400, f"Invalid repository name {name}")
        folder = self.root / name
        about = {"private": private, "created": datetime.now(UTC).isoformat().replace("+00:00", "Z")}
        replace(folder / "repo.json", json.dumps(about).encode())
        repo = Repo(folder, name)
        files = {
            ".gitattributes": {"oid": repo.store_blob(GITATTRIBUTES.encode()), "size": len(GITATTRIBUTES.encode())}
        }
        first = {"parent": None, "title": "initial commit", "message": "", "user": "system", "files": files}
        first |= {"date": about["created"], "id": git_hash("commit", uuid.uuid4().bytes)}
        replace(folder / "commits" / f"{first['id']}.json", json.dumps(first).encode())
        replace(folder / "refs.json", json.dumps({"branches": {"main": first["id"]}, "tags": {}}).encode())
        return repo

    def delete(self, name: str) -> None:
        with self._lock:
            self._open.pop(name, None)
            gone = self.root / f".deleted-{uuid.uuid4().hex}"
            (self.root / name).rename(gone)
            shutil.rmtree(gone)
