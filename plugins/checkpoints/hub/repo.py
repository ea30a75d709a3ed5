"""One branch of one model repository: what is there, and how it is read.

Reading is tried again a few times, with pauses. Everything raises StoreError or UserError of `errors.py`.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi, get_session, get_token, hf_hub_url
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
    paginate,
)

from plugins.checkpoints.disk import Progress
from plugins.checkpoints.hub.errors import Busy, Missing, NoBranch, Unanswered, hub_errors
from plugins.checkpoints.hub.library import prepare
from plugins.checkpoints.hub.pace import HOUR_S, Pace, pace_of
from plugins.checkpoints.hub.place import HubPlace, endpoint
from plugins.checkpoints.stores.stream import save_stream
from plugins.errors import StoreError

T = TypeVar("T")
PAUSES_S = (0.5, 1.0, 2.0)
LONGEST_WAIT_S = 10.0
CHUNK_BYTES = 2**20
PATHS_A_CALL = 500  # the Hub refuses more than a thousand
Commit = tuple[str, str, float]
"""Hash, message under the title, and when (seconds since the epoch)."""


class HubRepo:
    """Reads one branch. Safe to be used by several threads.

    token: None for what `huggingface_hub` finds: HF_TOKEN, or the file of `hf auth login`.
    hub_url: None for HF_ENDPOINT, or the public Hub.
    """

    def __init__(
        self,
        place: HubPlace,
        *,
        token: str | None = None,
        hub_url: str | None = None,
        pace: Pace | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        prepare()
        self.place, self.sleep = place, sleep
        self.endpoint = hub_url or endpoint()
        self.token = token or get_token()
        self.where = f"{place.repo}@{place.branch} on {self.endpoint}"
        self.api = HfApi(self.endpoint, token=self.token or False, library_name="trainstack")
        self.pace = pace or pace_of(self.endpoint, place.repo)
        self._headers = build_hf_headers(token=self.token or False, library_name="trainstack")

    def ask(self, doing: str, question: Callable[[], T]) -> T:
        """The answer to a question that changes nothing (or may be put twice), with a few tries."""
        for pause_s in (*PAUSES_S, None):
            try:
                with hub_errors(self.where, doing):
                    return question()
            except Busy as error:
                if pause_s is None or error.wait_s > LONGEST_WAIT_S:
                    raise
                self.sleep(max(pause_s, error.wait_s))
            except Unanswered:
                if pause_s is None:
                    raise
                self.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def head(self) -> str:
        """Hash of the newest commit. Raises NoRepo, NoBranch."""
        info = self.ask("look at the branch", lambda: self.api.repo_info(self.place.repo, revision=self.place.branch))
        if not info.sha:
            raise StoreError(f"{self.where}: the Hub names no commit for the branch")
        return info.sha

    def content(self, path: str, revision: str) -> bytes | None:
        """A small file, None when it is not there at that revision."""

        def get() -> bytes:
            answer = get_session().get(self._url(path, revision), headers=self._headers)
            hf_raise_for_status(answer)
            return answer.content

        try:
            return self.ask(f"read {path}", get)
        except Missing:
            return None

    def files(self, folder: str, revision: str) -> list[RepoFile]:
        """Every file under a folder ('' for all); none when there is no such folder."""

        def get() -> list[RepoFile]:
            found = self.api.list_repo_tree(self.place.repo, folder or None, recursive=True, revision=revision)
            return [entry for entry in found if isinstance(entry, RepoFile)]

        try:
            with hub_errors(self.where, "list files"):  # the library itself tries this again
                return get()
        except Missing:
            return []

    def existing(self, paths: Sequence[str], revision: str) -> list[RepoFile | RepoFolder]:
        """What of these paths is there."""
        parts = [list(paths[start : start + PATHS_A_CALL]) for start in range(0, len(paths), PATHS_A_CALL)]

        def get() -> list[RepoFile | RepoFolder]:
            return [one for part in parts for one in self.api.get_paths_info(self.place.repo, part, revision=revision)]

        return self.ask("look at files", get)

    def commits(self) -> Iterator[Commit]:
        """Commits of the branch, newest first, asked for page by page."""
        url = f"{self.endpoint}/api/models/{self.place.repo}/commits/{quote(self.place.branch, safe='')}"
        with hub_errors(self.where, "list commits"):
            for entry in paginate(url, params={}, headers=self._headers):
                yield str(entry["id"]), str(entry.get("message") or ""), _seconds(str(entry["date"]))

    def made_lately(self) -> list[float]:
        """When the commits of the last hour were made."""
        since = time.time() - HOUR_S
        try:
            return [at for _, _, at in takewhile(lambda commit: commit[2] > since, self.commits())]
        except NoBranch:
            return []

    def download(self, path: str, target: Path | None, stop: threading.Event, progress: Progress | None = None) -> str:
        """Write a file to `target` (None: nowhere); return the SHA-256 (hex) of what came. Raises Missing."""
        return save_stream(self._chunks(path), target, stop, progress)

    def _chunks(self, path: str) -> Iterable[bytes]:
        """The file; after a cut it goes on where it was cut, as long as something comes."""
        done, pauses = 0, iter(PAUSES_S)
        while True:
            before = done
            try:
                with hub_errors(self.where, f"download {path}"):
                    for chunk in self._stream(path, done):
                        done += len(chunk)
                        yield chunk
                return
            except Unanswered:
                pauses = iter(PAUSES_S) if done > before else pauses
                if (pause_s := next(pauses, None)) is None:
                    raise
                self.sleep(pause_s)

    def _stream(self, path: str, done: int) -> Iterator[bytes]:
        headers = {**self._headers, "Accept-Encoding": "identity"}
        if done:
            headers["Range"] = f"bytes={done}-"
        url = self._url(path, self.place.branch)
        with get_session().stream("GET", url, headers=headers) as answer:
            hf_raise_for_status(answer)
            whole = done and answer.status_code == 200  # the server knows no ranges
            size = answer.headers.get("content-length")
            came = 0
            for chunk in answer.iter_bytes(CHUNK_BYTES):
                skipped = max(0, done - came) if whole else 0
                came += len(chunk)
                if rest := chunk[skipped:]:
                    yield rest
            if size is not None and came != int(size):
                raise httpx2.ReadError(f"{came} bytes of {size} came")

    def _url(self, path: str, revision: str) -> str:
        return hf_hub_url(self.place.repo, path, revision=revision, endpoint=self.endpoint)

    def is_public(self) -> bool:
        """Whether anybody can read it. Raises NoRepo."""
        return self.ask("look at the repository", lambda: self.api.repo_info(self.place.repo)).private is False

    def branch_is_there(self) -> bool:
        """Whether the branch exists. Raises NoRepo."""
        try:
            self.head()
        except NoBranch:
            return False
        return True


def _seconds(date: str) -> float:
    return datetime.fromisoformat(date).timestamp()
