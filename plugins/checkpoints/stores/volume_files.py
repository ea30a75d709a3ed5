"""Files on a slow mount: each written once from beginning to end, and never believed before its size was read back."""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from plugins.checkpoints.disk import Hook, Progress, create_file, disk_errors, hash_file, read_chunks
from plugins.checkpoints.stores.backend import LostSwap, Source
from plugins.checkpoints.stores.fed_files import FedFiles
from plugins.checkpoints.stores.stream import save_stream
from plugins.errors import StoreError, TornCheckpoint

SMALL_BYTES = 2**20
"""Up to here it costs less to read a file again than to keep a note of its hash beside it."""

_NO_FSYNC = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


class VolumeFiles:
    """Steps on a volume; `before(step, path)` is called first, and what it raises is the volume's failure."""

    def __init__(self, before: Hook, small_bytes: int = SMALL_BYTES) -> None:
        self.before = before
        self._small_bytes = small_bytes

    def make_folder(self, path: Path) -> None:
        """Make a folder and those above it. It may exist."""
        with disk_errors(path, "make the folder"):
            path.mkdir(parents=True, exist_ok=True)

    def read(self, path: Path) -> bytes | None:
        """A small file; None when there is none."""
        try:
            with disk_errors(path, "read"):
                return path.read_bytes()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return None
            raise

    def write(
        self,
        path: Path,
        chunks: Iterable[bytes | memoryview],
        progress: Progress | None = None,
        *,
        replace: bool = True,
    ) -> str:
        """Write a file under its final name; return its SHA-256 (hex).

        Raises LostSwap when it exists and must not be replaced, and what the iterator raises; half a file is removed.
        """
        self.make_folder(path.parent)
        with disk_errors(path, "write"):
            self.before("create", path)
            if replace:
                path.unlink(missing_ok=True)
        size_bytes = 0

        def announced() -> Iterator[bytes | memoryview]:
            nonlocal size_bytes
            for chunk in chunks:
                with disk_errors(path, "write"):
                    self.before("append", path)
                size_bytes += len(chunk)
                yield chunk

        try:
            digest = save_stream(announced(), path, threading.Event(), progress, sync=sync_if_possible)
            check_arrived(path, size_bytes)
        except BaseException as error:  # whatever ended it: half a file under its final name must not stay
            if isinstance(error.__cause__, FileExistsError):
                raise LostSwap(f"{path}: is there already") from error
            with contextlib.suppress(StoreError):
                self.remove(path)
            raise
        return digest

    def remove(self, path: Path) -> None:
        """Remove a file or a whole folder; return as well when there is none."""
        with disk_errors(path, "remove"):
            self.before("remove", path)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
                _note(path).unlink(missing_ok=True)

    def download(
        self, path: Path, target: Path | None, stop: threading.Event, progress: Progress | None, chunk_bytes: int
    ) -> str:
        """See `Backend.download`."""
        try:
            with disk_errors(path, "read"):
                return save_stream(read_chunks(path, stop, chunk_bytes), target, stop, progress)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError) and error.__cause__.filename == str(path):
                raise TornCheckpoint(f"{path}: is missing from the store") from error.__cause__
            raise

    def is_whole(self, path: Path, source: Source) -> bool:
        """Whether the file arrived whole earlier, as far as its size and the note of its hash can tell."""
        try:
            if path.stat().st_size != source.size_bytes:
                return False
            if source.size_bytes <= self._small_bytes:
                return hash_file(path, threading.Event())[1] == source.sha256
            return _note(path).read_text().split()[:1] == [source.sha256]
        except (OSError, ValueError, StoreError):
            return False

    def mark_whole(self, path: Path, source: Source) -> None:
        """Note the hash of a file that arrived, as `sha256sum -c` reads it."""
        if source.size_bytes > self._small_bytes:
            self.write(_note(path), [f"{source.sha256}  {path.name}\n".encode()])


class VolumeFeed:
    """A `Feed` into files of a volume: what comes is written at once, in order."""

    def __init__(self, files: VolumeFiles, path_of: Callable[[str], Path], progress: Progress | None) -> None:
        self._files, self._path_of, self._progress = files, path_of, progress
        self._fed = FedFiles(self._create, sync_if_possible)

    def feed(self, key: str, offset: int, chunk: memoryview) -> None:
        """See `Feed.feed`."""
        path = self._path_of(key)
        with disk_errors(path, "write"):
            self._files.before("append", path)
        if self._fed.feed(path, offset, chunk):
            check_arrived(path, self._fed.size_bytes(path) or 0)
        if self._progress and chunk:
            self._progress(len(chunk))

    def holds(self, key: str, size_bytes: int) -> bool:
        """Whether a file was fed to its end and has this size."""
        return self._fed.size_bytes(self._path_of(key)) == size_bytes

    def settle(self, sources: Iterable[Source]) -> None:
        """Nothing more comes. What is whole gets its note, now that its hash is known."""
        self._fed.close()
        for source in sources:
            if self.holds(source.key, source.size_bytes):
                self._files.mark_whole(self._path_of(source.key), source)

    def abandon(self) -> None:
        """See `Feed.abandon`."""
        for path in self._fed.close():
            with contextlib.suppress(StoreError):
                self._files.remove(path)

    def _create(self, path: Path) -> int:
        self._files.make_folder(path.parent)
        self._files.before("create", path)
        path.unlink(missing_ok=True)
        return create_file(path)


def check_arrived(path: Path, size_bytes: int) -> None:
    """Raise StoreError when the volume does not show as much as was written: some report a full bucket only so."""
    with disk_errors(path, "read back"):
        found = path.stat().st_size
    if found != size_bytes:
        raise StoreError(f"{path}: {size_bytes} bytes were written and {found} arrived: is the volume full?")


def sync_if_possible(fd: int) -> None:
    """fsync, where the mount knows what that is."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def is_note(name: str) -> bool:
    """Whether a file name is that of a note of a hash."""
    return name.startswith(".") and name.endswith(".sha256")


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")
