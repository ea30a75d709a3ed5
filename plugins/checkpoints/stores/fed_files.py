"""Files that are written from beginning to end by whoever reads the originals: what is fed to a folder or a volume."""

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from plugins.checkpoints.disk import disk_errors, write_all
from plugins.errors import StoreError


class _File:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.fd = -1
        self.size_bytes = 0
        self.whole = False

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class FedFiles:
    """Several files at once, one thread a file. A file that is closed is never written to again, by any late thread.

    create: makes a new empty file and returns its descriptor; an old one gives way. sync: called before a file that was
    fed to its end is closed.
    """

    def __init__(self, create: Callable[[Path], int], sync: Callable[[int], None] = os.fsync) -> None:
        self._create, self._sync = create, sync
        self._lock = threading.Lock()
        self._files: dict[Path, _File] = {}
        self._closed = False

    def feed(self, path: Path, offset: int, chunk: memoryview) -> bool:
        """See `Upload.feed`; whether this ended the file. Raises StoreError."""
        with self._lock:
            file = self._files.setdefault(path, _File())
        with file.lock, disk_errors(path, "write"):
            if offset == 0 and (chunk or file.fd < 0):
                self._start(path, file)
            if file.fd < 0 or file.size_bytes != offset:
                raise StoreError(f"{path}: was fed out of order: abandon this upload")
            if chunk:
                write_all(file.fd, chunk)
                file.size_bytes += len(chunk)
                return False
            self._sync(file.fd)
            file.close()
            file.whole = True
            return True

    def size_bytes(self, path: Path) -> int | None:
        """Size of a file that was fed to its end; None for any other."""
        file = self._files.get(path)
        return file.size_bytes if file and file.whole else None

    def close(self) -> list[Path]:
        """Take nothing more; return every path that was begun. Never raises."""
        with self._lock:
            self._closed = True
            files = dict(self._files)
        for file in files.values():
            with file.lock, contextlib.suppress(OSError):
                file.close()
        return list(files)

    def _start(self, path: Path, file: _File) -> None:
        if self._closed:
            raise StoreError(f"{path}: this upload has ended: put the checkpoint")
        file.close()
        file.whole, file.size_bytes = False, 0
        file.fd = self._create(path)
