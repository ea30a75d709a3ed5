"""The backend that is a Lium volume: object storage that looks like a folder, slow, on one pod at a time.

Such a mount takes whole files in one go and little else (lium.md: "object-store backed, slow for random I/O, one pod at
a time"). So every file is written once, from its beginning to its end, under its final name: no renames, no locks, no
writes at offsets, and an fsync is worth what the mount makes of it.

    /mnt/run-1/sft/state.7.json  state.8.json     the state: the newest that is whole counts, the one before stays
    /mnt/run-1/sft/iter_0000019.a2/iter_0000019/common.pt
    /mnt/run-1/sft/iter_0000019.a2/iter_0000019/.common.pt.sha256      written after it: it arrived whole
"""

import builtins
import contextlib
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from plugins.checkpoints.disk import Hook, Progress, disk_errors, in_parallel, read_chunks
from plugins.checkpoints.manifest import check_hash
from plugins.checkpoints.stores.backend import STATE, Change, Feed, Item, LostSwap, Source
from plugins.checkpoints.stores.objects import ObjectStore
from plugins.checkpoints.stores.volume_files import VolumeFeed, VolumeFiles, is_note
from plugins.errors import StoreError, TornCheckpoint

log = logging.getLogger(__name__)

DEFAULT = Path("/mnt")
CHUNK_BYTES = 16 * 2**20
WORKERS = 2
_NUMBERED = re.compile(r"state\.([0-9]+)\.json")
_SETTLE_S = 1.0


def open_volume(path: Path) -> ObjectStore:
    """The store on a volume that is mounted at or above `path`."""
    return ObjectStore(VolumeBackend(path), workers=WORKERS)


class VolumeBackend:
    """A `Backend` over a folder of a mounted volume.

    chunk_bytes: memory for each file under way. workers: files at once. before: see `Disk`; for tests.
    """

    def __init__(
        self,
        root: Path,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        workers: int = WORKERS,
        before: Hook | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.root = root.absolute()
        self._chunk_bytes, self._workers, self._sleep = chunk_bytes, workers, sleep
        self._files = VolumeFiles(before or (lambda _step, _path: None))
        self._turn = threading.Lock()  # uploads and retention of one process must not see each other's half a state

    @property
    def uri(self) -> str:
        """`volume:` and the absolute path."""
        return f"volume:{self.root}"

    def check(self) -> None:
        """See `Backend.check`. Warns when the folder lies on the pod's own disk, which goes with the pod."""
        remedy = "is the volume attached? Name it in the recipe's `pod.volume`, and its mount point (/mnt) in the store"
        if not self.root.is_dir() and self.root.parent != Path("/") and self.root.parent.is_dir():
            self._files.make_folder(self.root)
        if not self.root.is_dir():
            raise StoreError(f"{self.uri}: there is no such folder: {remedy}")
        probe = self.root / f".probe-{secrets.token_hex(4)}"
        text = b"written to see whether this volume can be written\n"
        try:
            self._files.write(probe, [text])
            with disk_errors(probe, "read"):
                if probe.read_bytes() != text or probe.name not in os.listdir(self.root):  # noqa: PTH208
                    raise StoreError(f"{probe}: does not give back what was written: detach the volume and look at it")
        finally:
            with contextlib.suppress(StoreError):
                self._files.remove(probe)
        with contextlib.suppress(OSError):
            if self.root.stat().st_dev == Path("/").stat().st_dev:
                log.warning(
                    "%s: no volume is mounted there, so what it holds ends with this machine: %s", self.uri, remedy
                )

    def read(self, key: str) -> tuple[bytes, str] | None:
        """See `Backend.read`. A state that was cut short, or still is being written, is passed over."""
        path = self._path(key)
        if path.name != STATE:
            text = self._files.read(path)
            return None if text is None else (text, "1")
        for patient in (True, False):
            with self._turn:
                found = self._states(path)
            if found and not _is_object(found[0][1]) and patient:
                self._sleep(_SETTLE_S)  # a torn newest: its writer died, or is not through yet
            else:
                break
        whole = [text for _, text in found if _is_object(text)]
        return ((whole or [found[0][1]])[0], _tag(found)) if found else None

    def list(self, prefix: str, *, unfinished: bool = False) -> Iterable[Item]:
        """See `Backend.list`. A file that is being written is like any other: whole by its size, or not."""
        return list(self._walk(self._path(prefix)))

    def download(self, key: str, target: Path | None, stop: threading.Event, progress: Progress | None = None) -> str:
        """See `Backend.download`."""
        return self._files.download(self._path(key), target, stop, progress, self._chunk_bytes)

    def publish(self, change: Change, progress: Progress | None = None, *, feed: Feed | None = None) -> None:
        """See `Backend.publish`."""
        if isinstance(feed, VolumeFeed):
            feed.settle(change.files)

        def send(source: Source, stop: threading.Event) -> None:
            fed = isinstance(feed, VolumeFeed) and feed.holds(source.key, source.size_bytes)
            self._send(source, stop, progress, fed=fed)

        in_parallel(send, change.files, self._workers)
        for key, text in change.texts.items():
            self._files.write(self._path(key), [text.encode()])
        with self._turn:
            self._swap(self._path(change.state_key), change.state.encode(), change.tag)
        for name in change.drop:
            try:
                self._files.remove(self._path(name))
            except StoreError as error:
                log.warning("left behind: %s", error)

    def begin(self, progress: Progress | None = None) -> Feed | None:
        """See `Backend.begin`."""
        return VolumeFeed(self._files, self._path, progress)

    def _send(self, source: Source, stop: threading.Event, progress: Progress | None, *, fed: bool) -> None:
        target = self._path(source.key)
        if fed or self._files.is_whole(target, source):
            if progress and not fed:
                progress(source.size_bytes)
            return
        if not source.path.exists():
            raise TornCheckpoint(f"{source.path}: is missing from the sealed checkpoint")
        with disk_errors(source.path, "read"):
            digest = self._files.write(target, read_chunks(source.path, stop, self._chunk_bytes), progress)
        if digest != source.sha256:
            self._files.remove(target)
        check_hash(source.path, source.sha256, digest)
        self._files.mark_whole(target, source)

    def _swap(self, path: Path, text: bytes, tag: str | None) -> None:
        """A new number is the swap: making a file that must not exist yet is all that a volume can do at once."""
        found = self._states(path)
        if _tag(found) != (tag or "0"):
            raise LostSwap(f"{path}: is at {_tag(found)} and was at {tag or 0} when it was read")
        mine = found[0][0] + 1 if found else 1
        try:
            self._files.write(_numbered(path, mine), [text], replace=False)
        except StoreError as error:
            if self._newest(path) > mine:
                raise LostSwap(f"{path}: somebody took number {mine} for a torn one") from error
            raise
        if self._newest(path) != mine:  # on the newer one, or beside it? Only reading it again can tell
            raise LostSwap(f"{path}: a newer one than number {mine} is there")
        kept = next((number for number, old in found if _is_object(old)), None)
        for number in self._numbers(path.parent):
            if number < mine and number != kept:
                with contextlib.suppress(StoreError):
                    self._files.remove(_numbered(path, number))

    def _states(self, path: Path) -> "builtins.list[tuple[int, bytes]]":
        """Number and content of every state there, newest first."""
        numbers = self._numbers(path.parent)
        texts = ((number, self._files.read(_numbered(path, number))) for number in numbers)
        return [(number, text) for number, text in texts if text is not None]

    def _newest(self, path: Path) -> int:
        return max(self._numbers(path.parent), default=0)

    def _walk(self, folder: Path) -> Iterator[Item]:
        with disk_errors(folder, "list"):
            for where, _, names in os.walk(folder, onerror=_raise):
                for path in (Path(where) / name for name in names if not is_note(name)):
                    with contextlib.suppress(FileNotFoundError):  # removed while we look
                        yield Item(path.relative_to(self.root).as_posix(), path.stat().st_size)

    def _path(self, key: str) -> Path:
        assert ".." not in key.split("/")
        return self.root / key

    def _numbers(self, folder: Path) -> "builtins.list[int]":
        with disk_errors(folder, "list"):
            names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208
        return sorted((int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name))), reverse=True)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"state.{number}.json")


def _tag(states: list[tuple[int, bytes]]) -> str:
    """Number of the newest state, and whether it was whole: one that was not may be when somebody looks again."""
    if not states:
        return "0"
    return f"{states[0][0]}" + ("" if _is_object(states[0][1]) else " torn")


def _is_object(text: bytes) -> bool:
    """Whether a state arrived whole: no part of a JSON object is one."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
