"""Every change that is made to a checkpoint folder, one small step at a time, and the errors of disks in plain words.

A torn checkpoint comes from a process that died between two steps, so each step is announced to a hook first: tests
pass one that dies, or runs out of space, at the k-th. What the steps add up to is the business of the callers.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from plugins.errors import StoreError, TornCheckpoint

T = TypeVar("T")
R = TypeVar("R")
Hook = Callable[[str, Path], None]
Progress = Callable[[int], None]

CHUNK_BYTES = 4 * 2**20
WORKERS = 4
PARTIAL = ".partial"
MODEST = 10

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free space there or keep fewer checkpoints",
    errno.EDQUOT: "the quota is used up: free space there or keep fewer checkpoints",
    errno.EACCES: "check owner and rights of the path",
    errno.EPERM: "check owner and rights of the path",
    errno.EROFS: "the file system is read-only: mount it writable or name another folder",
    errno.ENOENT: "it is not there: is the disk mounted, was something removed by hand?",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away or name another folder",
    errno.EEXIST: "a file stands where a folder is needed: move it away or name another folder",
    errno.EIO: "the disk itself failed: look at the system log",
}


@contextlib.contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError into a StoreError that names the path, what was being done, and what to do about it."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "look at the disk and try again")
        raise StoreError(f"{path}: cannot {doing} ({error.strerror or error}): {remedy}") from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """As `disk_errors`, around reading a file of a checkpoint: one that is not there is a TornCheckpoint."""
    with disk_errors(path, "read"):
        try:
            yield
        except FileNotFoundError as error:
            raise TornCheckpoint(f"{path}: is missing from the checkpoint") from error


def be_modest() -> None:
    """Let whoever else needs a core have it first: hashing and sending must not slow the training down.

    Linux gives each thread a priority of its own; elsewhere, and where it is refused, nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), MODEST)


def in_parallel(work: Callable[[T, threading.Event], R], items: Iterable[T], workers: int = WORKERS) -> list[R]:
    """Results of `work(item, stop)` in the order of the items. At the first error `stop` is set, and the error raised.

    `work` must look at `stop` between chunks, so that Ctrl-C does not wait for a file of many gigabytes.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(workers, "checkpoint", initializer=be_modest) as pool:
        futures = [pool.submit(work, item, stop) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for failed in (future for future in done if future.exception()):
                failed.result()
            return [future.result() for future in futures]
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def read_chunks(path: Path, stop: threading.Event, chunk_bytes: int = CHUNK_BYTES) -> Iterator[memoryview]:
    """The content of a file through one buffer: a chunk is valid until the next one is asked for. Raises OSError."""
    view = memoryview(bytearray(chunk_bytes))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(view):
            if stop.is_set():
                raise StoreError(f"{path}: reading was stopped, because another file failed or the run is ending")
            yield view[:count]


def hash_file(
    path: Path, stop: threading.Event, each: Callable[[int, memoryview], None] | None = None
) -> tuple[int, str]:
    """Size in bytes and SHA-256 (hex) of a file of a checkpoint; `each` gets the offset and every chunk on the way.

    Raises:
        TornCheckpoint: there is no such file.
        StoreError: it cannot be read.
    """
    digest, offset = hashlib.sha256(), 0
    with reading(path):
        for chunk in read_chunks(path, stop):
            digest.update(chunk)
            if each:
                each(offset, chunk)
            offset += len(chunk)
    return offset, digest.hexdigest()


def create_file(path: Path) -> int:
    """A new file that others may read and nobody else may write, whatever the umask; its descriptor. Raises OSError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)


def write_all(fd: int, chunk: memoryview) -> None:
    """Write all of a chunk at the end of what was written. Raises OSError."""
    while chunk:
        chunk = chunk[os.write(fd, chunk) :]


def sha256_of(data: bytes) -> str:
    """SHA-256 of a small content, in hex."""
    return hashlib.sha256(data).hexdigest()


class Disk:
    """Changes to folders. Each is durable (fsync) when its method returns, and raises StoreError when it fails.

    Args:
        before: called with the name of the step and the path it changes, before the step. It may be called from
            several threads. What it raises is treated as the disk's own failure.
        chunk_bytes: memory for each file that is being copied.
    """

    def __init__(self, before: Hook | None = None, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._before: Hook = before or (lambda _step, _path: None)
        self._chunk_bytes = chunk_bytes

    def make_folder(self, path: Path) -> None:
        """Make a folder, and those above it. It may exist."""
        with disk_errors(path, "make the folder"):
            self._before("make_folder", path)
            for missing in reversed([folder for folder in path.parents if not folder.exists()]):
                _make(missing)
            _make(path)

    def write(self, path: Path, text: str) -> None:
        """Replace a small file at once: a reader finds the old content or the new, also after a crash."""
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        with disk_errors(path, "write"):
            try:
                self._before("write", partial)
                with os.fdopen(create_file(partial), "w") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                self._before("rename", path)
                partial.replace(path)
                _sync_folder(path.parent)
            except BaseException:  # also when it is interrupted: nobody else removes half a file
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise

    def copy(self, source: Path, target: Path, stop: threading.Event, progress: Progress | None = None) -> str:
        """Copy a file to a new place with bounded memory; return the SHA-256 (hex) of the bytes that were copied."""
        digest = hashlib.sha256()
        with disk_errors(target, f"copy {source} there"):
            self._before("create", target)
            with os.fdopen(create_file(target), "wb", buffering=0) as file:
                for chunk in read_chunks(source, stop, self._chunk_bytes):
                    self._before("append", target)
                    digest.update(chunk)
                    write_all(file.fileno(), chunk)
                    if progress:
                        progress(len(chunk))
                self._before("fsync", target)
                os.fsync(file.fileno())
        return digest.hexdigest()

    def move(self, source: Path, target: Path) -> None:
        """Rename a file or folder within one file system. A folder must not stand at the target."""
        with disk_errors(target, f"move {source} there"):
            self._before("move", target)
            source.rename(target)
            _sync_folder(target.parent)

    def remove(self, path: Path) -> None:
        """Remove a file or a whole folder; return as well when there is none."""
        with disk_errors(path, "remove"):
            self._before("remove", path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def sync(self, folder: Path) -> None:
        """Make the names in a folder, and in the folders under it, durable."""
        with disk_errors(folder, "sync"):
            self._before("sync", folder)
            for where, _, _ in os.walk(folder):
                _sync_folder(Path(where))


def _make(folder: Path) -> None:
    """One folder; `parents=True` of `mkdir` would leave the mode of those above to the umask."""
    existed = folder.exists()
    folder.mkdir(mode=0o755, exist_ok=True)
    if not existed:
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
