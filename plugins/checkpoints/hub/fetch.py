"""A model or a data set of the Hub, read at one commit and brought to this machine file by file.

    <folder>/model-00001-of-00002.safetensors            whole: has the hash that the Hub names for it
             .model-00002-of-00002.safetensors.partial   on its way; the next try, of another process too, goes on there

`snapshot_download` of huggingface_hub begins every file anew after a kill (its partial files have random names), and
cannot be stopped or watched while it runs; on a rented machine both cost money.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import HfApi, get_session, get_token, hf_hub_url
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from plugins.checkpoints.disk import PARTIAL, Progress, disk_errors, in_parallel, read_chunks
from plugins.checkpoints.hub.errors import Busy, Unanswered
from plugins.checkpoints.hub.library import prepare
from plugins.checkpoints.hub.place import endpoint
from plugins.checkpoints.hub.refusals import reading_errors
from plugins.errors import StoreError, UserError

T = TypeVar("T")
Kind = Literal["model", "dataset"]
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0)
"""Pauses between tries while nothing comes; what came is kept, and the pauses begin anew after every byte."""
CHUNK_BYTES = 2**18  # what a cut may lose
WORKERS = 8
SLICE_S = 0.2
SPARE_BYTES = 2**30
"""What must stay free on the disk besides the files."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class HubFile:
    """A file at a commit. sha256 (hex) of large ones, else None; blob: git's hash of its content, of small ones."""

    path: str
    size_bytes: int
    sha256: str | None
    blob: str


class HubSource:
    """Reads one repository. Safe to be used by several threads.

    token: None for what `huggingface_hub` finds; hub_url: None for HF_ENDPOINT, or the public Hub.
    Every method raises UserError for what the user must change (no such repository, revision or file, no right to read
    it), StoreError when the Hub did not answer in time.
    """

    def __init__(
        self,
        kind: Kind,
        repo: str,
        *,
        token: str | None = None,
        hub_url: str | None = None,
        pauses_s: Sequence[float] = PAUSES_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        prepare()
        self.kind, self.repo = kind, repo
        self._endpoint = hub_url or endpoint()
        self._token = token or get_token()
        self._api = HfApi(self._endpoint, token=self._token or False, library_name="trainstack")
        self._headers = build_hf_headers(token=self._token or False, library_name="trainstack")
        self._pauses_s, self._sleep = pauses_s, sleep
        self.where = f"{kind} {repo} on {self._endpoint}"

    def commit(self, revision: str | None = None) -> tuple[str, int | None]:
        """The commit (hex) that a branch, tag or commit names now, and the number of parameters if the Hub knows it."""

        def look() -> tuple[str, int | None]:
            info: Any = self._api.repo_info(self.repo, revision=revision, repo_type=self.kind)
            if not info.sha:
                raise StoreError(f"{self.where}: the Hub names no commit for {revision or 'it'}")
            counted = getattr(info, "safetensors", None)
            return str(info.sha), counted.total if counted else None

        return self._ask(f"find {revision or 'its newest commit'}", look)

    def files(self, commit: str, paths: Sequence[str] | None = None) -> dict[str, HubFile]:
        """Files by path: those of `paths` that are there, or (None) all in the top folder."""

        def listed() -> dict[str, HubFile]:
            found: Iterable[Any] = (
                self._api.list_repo_tree(self.repo, revision=commit, repo_type=self.kind)
                if paths is None
                else self._api.get_paths_info(self.repo, list(paths), revision=commit, repo_type=self.kind)
            )
            return {one.path: _described(one) for one in found if isinstance(one, RepoFile)}

        return self._ask("list its files", listed)

    def content(self, path: str, commit: str) -> bytes:
        """A small file."""

        def get() -> bytes:
            answer = get_session().get(self._url(path, commit), headers=self._headers)
            hf_raise_for_status(answer)
            return answer.content

        return self._ask(f"read {path}", get)

    def fetch(
        self,
        files: Sequence[HubFile],
        commit: str,
        folder: Path,
        *,
        stop: threading.Event | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Bring files into a folder and verify each; what is there already is taken as it is, also from a killed try.

        stop: set it to end the download. progress: gets bytes as they come (those that were there too), from several
        threads. Raises UserError as well when the disk is too small.
        """
        told = progress or (lambda _bytes: None)
        left = 0
        for file in files:
            target = folder / file.path
            here = target if target.exists() else _partial(target)
            left += file.size_bytes - (here.stat().st_size if here.exists() else 0)
        with disk_errors(folder, "make the folder"):
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
        if left > 0 and left + SPARE_BYTES > free:
            raise UserError(
                f"{folder}: {self.repo} needs {left / 1e9:.1f} GB more there and {free / 1e9:.1f} GB are free: free "
                "space there, or rent a pod with a larger disk (pod.min_disk_gb)"
            )
        outer = stop or threading.Event()

        def one(file: HubFile, inner: threading.Event) -> None:
            self._fetch(file, commit, folder / file.path, lambda: outer.is_set() or inner.is_set(), told)

        in_parallel(one, files, WORKERS)

    def _fetch(self, file: HubFile, commit: str, target: Path, stopped: Callable[[], bool], progress: Progress) -> None:
        if target.exists() and target.stat().st_size == file.size_bytes:
            progress(file.size_bytes)  # it has its name because it was verified
            return
        with disk_errors(target, "make the folder"):
            target.parent.mkdir(parents=True, exist_ok=True)
        for last in (False, True):
            if self._came(file, commit, target, stopped, progress):
                return
            if last:
                raise StoreError(f"{self.where}: {file.path} came twice with another content than the Hub names")

    def _came(self, file: HubFile, commit: str, target: Path, stopped: Callable[[], bool], progress: Progress) -> bool:
        """Bring the file to its place; False, and nothing is left, when it is not what the Hub promised."""
        partial, digest = _partial(target), _digest_of(file)
        with _full_disk(partial), disk_errors(partial, "write"), partial.open("ab", buffering=0) as out:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two writers would mix their bytes
            if partial.stat().st_size > file.size_bytes:
                out.truncate(0)
            for piece in read_chunks(partial, threading.Event()):
                digest.update(piece)
                progress(len(piece))
            done = partial.stat().st_size
            for chunk in self._rest(file, commit, done, stopped):
                if stopped():
                    raise StoreError(f"{self.where}: the download was stopped; {done} bytes of {file.path} are kept")
                out.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(len(chunk))
            if done == file.size_bytes and digest.hexdigest() == (file.sha256 or file.blob):
                os.fsync(out.fileno())
                partial.replace(target)
                return True
            partial.unlink()
            progress(-done)
            return False

    def _rest(self, file: HubFile, commit: str, done: int, stopped: Callable[[], bool]) -> Iterator[bytes]:
        """The file from an offset on; after a cut it goes on, patiently as long as something comes."""
        pauses = iter(self._pauses_s)
        while done < file.size_bytes:
            before = done
            try:
                with self._errors(f"download {file.path}"):
                    for chunk in self._stream(file.path, commit, done):
                        done += len(chunk)
                        yield chunk
                if done < file.size_bytes:
                    raise Unanswered(f"{self.where}: {file.path} ended after {done} of {file.size_bytes} bytes")
            except (Unanswered, Busy) as error:
                pauses = iter(self._pauses_s) if done > before else pauses
                if (pause_s := next(pauses, None)) is None:
                    raise
                self._pause(pause_s, error, stopped)

    def _pause(self, pause_s: float, error: StoreError, stopped: Callable[[], bool] = lambda: False) -> None:
        """Wait, as long as the Hub asked for at least, with an ear for the end. Raises the error when it comes."""
        left_s = max(pause_s, error.wait_s) if isinstance(error, Busy) else pause_s
        while left_s > 0:
            if stopped():
                raise error
            self._sleep(min(left_s, SLICE_S))
            left_s -= SLICE_S

    def _stream(self, path: str, commit: str, done: int) -> Iterator[bytes]:
        headers = {**self._headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
        with get_session().stream("GET", self._url(path, commit), headers=headers) as answer:
            if answer.status_code == 416:
                return  # there is no more than what came
            hf_raise_for_status(answer)
            skip = done if answer.status_code == 200 else 0  # the server knows no ranges
            for chunk in answer.iter_bytes(CHUNK_BYTES):
                rest, skip = chunk[skip:], max(0, skip - len(chunk))
                if rest:
                    yield rest

    def _url(self, path: str, commit: str) -> str:
        return hf_hub_url(self.repo, path, repo_type=self.kind, revision=commit, endpoint=self._endpoint)

    def _ask(self, doing: str, question: Callable[[], T]) -> T:
        for pause_s in (*self._pauses_s, None):
            try:
                with self._errors(doing):
                    return question()
            except (Unanswered, Busy) as error:
                if pause_s is None:
                    raise
                self._pause(pause_s, error)
        raise AssertionError("the last try returns or raises")

    def _errors(self, doing: str) -> AbstractContextManager[None]:
        return reading_errors(
            self.where, doing, host=str(urlsplit(self._endpoint).hostname), has_token=bool(self._token)
        )


def _described(one: RepoFile) -> HubFile:
    return HubFile(one.path, one.size, one.lfs.sha256 if one.lfs else None, one.blob_id)


def _digest_of(file: HubFile) -> Any:
    """SHA-256 of a large file; of a small one git's own hash, which begins with its length."""
    if file.sha256 is not None:
        return hashlib.sha256()
    return hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}{PARTIAL}")


@contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    """A disk that is full stays full on this pod: the user must rent a larger one."""
    try:
        yield
    except StoreError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL:
            raise UserError(f"{path}: the disk is full: free space, or rent a larger one (pod.min_disk_gb)") from error
        raise
