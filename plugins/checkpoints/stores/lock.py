"""One writer at a time in a folder, among all processes of this machine; the kernel frees the lock of a dead one."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from plugins.checkpoints.disk import disk_errors
from plugins.errors import StoreError

_POLL_S = 0.02


@contextlib.contextmanager
def folder_lock(folder: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock of a folder that exists. Raises StoreError when it is not free within `timeout_s` seconds."""
    path = folder / ".lock"
    with disk_errors(path, "open the lock"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        deadline = time.monotonic() + timeout_s
        while not try_lock(fd, path):
            if time.monotonic() > deadline:
                raise StoreError(f"{path}: another process has held the store for {timeout_s:g} s: try again later")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)


def try_lock(fd: int, path: Path) -> bool:
    """Take the lock of an open file or folder if it is free. Closing `fd` gives it back."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise StoreError(f"{path}: this file system has no locks: put the store on another one") from error
        raise StoreError(f"{path}: cannot be locked ({error.strerror})") from error
    return True
