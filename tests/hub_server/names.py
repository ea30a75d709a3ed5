"""What the Hub answers: errors with the headers that the library reads, git hashes, and which file becomes LFS."""

import fnmatch
import hashlib
import json
from typing import Any

from starlette.responses import JSONResponse

_LFS = "*.7z *.arrow *.bin *.bz2 *.ckpt *.gz *.h5 *.joblib *.model *.msgpack *.npy *.npz *.onnx *.parquet *.pb *.pickle"
_LFS += " *.pkl *.pt *.pth *.rar *.safetensors *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*"
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LFS.split(" "))
POINTER_BYTES = 134


DATASETS = "datasets/"


def named(name: str, body: dict[str, Any]) -> str:
    """Our name of a repository 'owner/name': a data set may have the name of a model and is another one."""
    return f"{DATASETS}{name}" if body.get("type") == "dataset" else name


def owner_of(repo: str) -> str:
    """The user or organisation."""
    return repo.removeprefix(DATASETS).partition("/")[0]


def of_kind(raw_path: str) -> str:
    """The path of a data set's call as that of a model with our name for it."""
    for prefix, ours in (("/api/datasets/", "/api/models/datasets%2F"), ("/datasets/", "/datasets%2F")):
        if raw_path.startswith(prefix):
            return ours + raw_path.removeprefix(prefix)
    return raw_path


class Answer(Exception):
    """Ends a request with an error: `X-Error-Code` is what `huggingface_hub` tells its exceptions apart by."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}

    def response(self) -> JSONResponse:
        headers = {"X-Error-Message": self.message, **self.headers}
        if self.code:
            headers["X-Error-Code"] = self.code
        return JSONResponse({"error": self.message}, self.status, headers)


def repo_not_found(anonymous: bool) -> Answer:
    """The Hub answers 401 to strangers, so that nobody can find out which private repositories exist."""
    return Answer(401 if anonymous else 404, "Repository not found", "RepoNotFound")


def revision_not_found(revision: str) -> Answer:
    return Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(path: str) -> Answer:
    return Answer(404, f"{path} does not exist", "EntryNotFound")


def git_hash(kind: str, content: bytes) -> str:
    """SHA-1 that git gives to an object of this kind."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The small file that git keeps in place of an LFS object."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def tree_hash(entries: dict[str, Any]) -> str:
    return git_hash("tree", json.dumps(entries, sort_keys=True).encode())


def is_lfs(path: str, size: int, sample: bytes, gitattributes: str, threshold: int) -> bool:
    """Whether the Hub wants this file as LFS: by its name, its size, or because it is not text."""
    name = path.rpartition("/")[2]
    patterns = (line.split()[0] for line in gitattributes.splitlines() if "filter=lfs" in line)
    matches = any(fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(path, pattern) for pattern in patterns)
    return size > 0 and (matches or size > threshold or b"\0" in sample)
