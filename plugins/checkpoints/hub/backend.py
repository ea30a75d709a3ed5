"""The Hub as a `Backend`: a change is one commit, and its parent is the compare-and-swap.

Files are sent ahead as LFS objects, which the Hub keeps by their hash, so a try that died costs only the file it was
at. Then one commit adds them with manifest and state and removes what is dropped; a reader sees all of it or none.

A commit that only removes something (retention, after every save) would halve how often we may save. When half of the
hour's commits are used, such a change waits here and goes with the next commit of the same stage. Until then only this
process sees it; if the process dies, the checkpoint is simply still there and the next retention removes it.

Removing files keeps them in the history, where they count as storage. `HubWriter.squash_history` ends that, but it
makes every older revision unreadable, so it is the user's decision and never ours.
"""

import builtins
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from plugins.checkpoints.disk import Progress, sha256_of
from plugins.checkpoints.hub.errors import Missing, Moved, NoBranch
from plugins.checkpoints.hub.probe import check_usable
from plugins.checkpoints.hub.repo import HubRepo
from plugins.checkpoints.hub.sealed_file import SealedFile
from plugins.checkpoints.hub.writing import Draft, HubWriter
from plugins.checkpoints.stores.backend import Change, Feed, Item, LostSwap
from plugins.errors import StoreError, TornCheckpoint

GITATTRIBUTES = ".gitattributes"  # the Hub's own
MOVES = 8
"""How often other commits to the branch may come between before a change is given up."""


@dataclass(frozen=True)
class _Waiting:
    """A change that waits for the next commit: on which state it was made, what the state shall be, what goes."""

    base: str
    state: str
    drop: tuple[str, ...]

    @property
    def tag(self) -> str:
        return sha256_of(self.state.encode())


class HubBackend:
    """See the module and `Backend`. Keys lie under the prefix of the place; a tag is the SHA-256 of the content."""

    def __init__(self, repo: HubRepo) -> None:
        self.repo, self.writer = repo, HubWriter(repo)
        prefix = repo.place.prefix
        self._prefix = f"{prefix}/" if prefix else ""
        self._lock = threading.Lock()
        self._waiting: dict[str, _Waiting] = {}

    @property
    def uri(self) -> str:
        """`hub://user/repo[@branch][/prefix]`."""
        return self.repo.place.uri

    def check(self) -> None:
        """See `Backend.check`. Makes the repository, private, and the branch if need be. Two commits."""
        check_usable(self.writer, self._prefix)

    def read(self, key: str) -> tuple[bytes, str] | None:
        """See `Backend.read`."""
        found = self._read(key, self.repo.place.branch)
        with self._lock:
            waiting = self._waiting.get(key)
            if waiting is None:
                return found
            if found is None or found[1] != waiting.base:
                del self._waiting[key]  # somebody else changed the state: what waited was never to be
                return found
            return waiting.state.encode(), waiting.tag

    def list(self, prefix: str, *, unfinished: bool = False) -> Iterable[Item]:
        """See `Backend.list`. The Hub keeps no list of what was sent and never committed."""
        try:
            revision = self.repo.head()
        except NoBranch:
            return []
        start, hidden = len(self._prefix), self._hidden()
        found = self.repo.files((self._prefix + prefix).rstrip("/"), revision)
        items = (Item(file.path[start:], file.size) for file in found if file.path != GITATTRIBUTES)
        return [one for one in items if not any(_covers(drop, one.key) for drop in hidden)]

    def download(self, key: str, target: Path | None, stop: threading.Event, progress: Progress | None = None) -> str:
        """See `Backend.download`. A connection that was cut goes on where it was cut."""
        try:
            return self.repo.download(self._prefix + key, target, stop, progress)
        except Missing as error:
            raise TornCheckpoint(f"{self.uri}/{key}: is not in the store") from error

    def begin(self, progress: Progress | None = None) -> Feed | None:
        """None: the Hub wants the hash of a file before its first byte."""
        return None

    def publish(self, change: Change, progress: Progress | None = None, *, feed: Feed | None = None) -> None:
        """See `Backend.publish`. Raises StoreError, with the time when it goes on, when the hour has no commit left."""
        if self._let_wait(change):
            return
        self._carry_out(self._with_waiting(change), progress)
        with self._lock:
            self._waiting.pop(change.state_key, None)

    def _carry_out(self, change: Change, progress: Progress | None) -> None:
        self.writer.check_pace(claim=not change.files)
        files = {
            self._prefix + one.key: SealedFile(one.path, one.size_bytes, one.sha256, progress) for one in change.files
        }
        texts = {**change.texts, change.state_key: change.state}
        draft = Draft(
            title=change.title,
            files=files,
            texts={self._prefix + key: text for key, text in texts.items()},
            drop=tuple(self._prefix + key for key in change.drop),
        )
        parent = self._parent(change)
        sent = self.writer.send(files) if files else []
        for _ in range(MOVES):
            try:
                self.writer.commit(draft, parent, sent)
                return
            except Moved:
                parent = self._parent(change)
        raise StoreError(f"{self.repo.where}: others committed {MOVES} times in a row: who writes there?")

    def _parent(self, change: Change) -> str:
        """The newest commit, if the state there is the one of the change's tag. Raises LostSwap."""
        try:
            head = self.repo.head()
        except NoBranch:
            self.writer.ensure()
            head = self.repo.head()
        found = self._read(change.state_key, head)
        if (found[1] if found else None) != change.tag:
            with self._lock:
                self._waiting.pop(change.state_key, None)
            raise LostSwap(f"{self.uri}/{change.state_key}: somebody else changed it")
        return head

    def _read(self, key: str, revision: str) -> tuple[bytes, str] | None:
        try:
            content = self.repo.content(self._prefix + key, revision)
        except NoBranch:
            return None
        return None if content is None else (content, sha256_of(content))

    def _let_wait(self, change: Change) -> bool:
        """Keep a change that only removes something for the next commit, if the hour is half used."""
        only_removes = bool(change.drop) and not change.files and not change.texts and change.tag is not None
        if not only_removes or not self.repo.pace.is_busy:
            return False
        change = self._with_waiting(change)
        with self._lock:
            self._waiting[change.state_key] = _Waiting(str(change.tag), change.state, change.drop)
        return True

    def _with_waiting(self, change: Change) -> Change:
        """The change made on the state that is really there, together with what waited."""
        with self._lock:
            waiting = self._waiting.get(change.state_key)
        if waiting is None or change.tag != waiting.tag:
            return change
        drop = (key for key in (*waiting.drop, *change.drop) if not any(_covers(key, one.key) for one in change.files))
        return replace(change, tag=waiting.base, drop=tuple(drop))

    def _hidden(self) -> "builtins.list[str]":
        with self._lock:
            return [key for waiting in self._waiting.values() for key in waiting.drop]


def _covers(dropped: str, key: str) -> bool:
    return key == dropped or (dropped.endswith("/") and key.startswith(dropped))
