"""Bytes that arrive in pieces from far away: written to a new file, hashed on the way, with bounded memory."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from plugins.checkpoints.disk import Progress, create_file, disk_errors, write_all
from plugins.errors import StoreError


def save_stream(
    chunks: Iterable[bytes | memoryview],
    target: Path | None,
    stop: threading.Event,
    progress: Progress | None = None,
    *,
    sync: Callable[[int], None] = os.fsync,
) -> str:
    """Write `chunks` to the new file `target` (None: nowhere); return the SHA-256 (hex) of all that came.

    `sync` gets the file descriptor at the end. Raises StoreError when the disk fails or `stop` is set, and
    whatever the iterator raises; a file that was begun is left for the caller to remove.
    """
    if target is None:
        return _through(chunks, None, stop, progress)
    with disk_errors(target, "create"):
        fd = create_file(target)
    try:
        digest = _through(chunks, (fd, target), stop, progress)
        with disk_errors(target, "write"):
            sync(fd)
    except BaseException:  # whatever ended it, also Ctrl-C: the descriptor is ours
        os.close(fd)
        raise
    with disk_errors(target, "write"):
        os.close(fd)  # where the disk is far away, it says only now that it is full
    return digest


def _through(
    chunks: Iterable[bytes | memoryview],
    file: tuple[int, Path] | None,
    stop: threading.Event,
    progress: Progress | None,
) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        if stop.is_set():
            raise StoreError("a transfer was stopped, because another file failed or the run is ending")
        digest.update(chunk)
        if file:
            with disk_errors(file[1], "write"):
                write_all(file[0], memoryview(chunk))
        if progress:
            progress(len(chunk))
    return digest.hexdigest()
