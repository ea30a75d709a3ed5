"""SFTP of a pod: paths mean what they mean inside the pod, in namespace mode as in plain mode."""

import os
import posixpath
from typing import Any

import asyncssh

from plugins.lium.emulator.pod_files import PodFiles


class PodSFTP(asyncssh.SFTPServer):
    """asyncssh's server with the pod's own path rules; relative paths start in the pod's home.

    What asyncssh does itself goes through `map_path`, which follows links; the operations on a link itself stand here.
    """

    def __init__(self, chan: Any, files: PodFiles, home: str) -> None:
        super().__init__(chan)
        self._files = files
        self._home = home

    def _inside(self, path: bytes) -> str:
        return posixpath.normpath(posixpath.join(self._home, os.fsdecode(path)))

    def _link(self, path: bytes) -> bytes:
        return os.fsencode(self._files.resolve(self._inside(path), follow_last=False))

    def map_path(self, path: bytes) -> bytes:
        """Host path of what a pod path leads to."""
        return os.fsencode(self._files.resolve(self._inside(path), follow_last=True))

    def realpath(self, path: bytes) -> bytes:
        """The absolute path as the pod sees it; links in it are left, which every client accepts."""
        return os.fsencode(self._inside(path))

    def lstat(self, path: bytes) -> Any:
        """Attributes of the path itself."""
        return os.lstat(self._link(path))

    def remove(self, path: bytes) -> None:
        """Remove a file or a link."""
        os.remove(self._link(path))  # noqa: PTH107 - bytes

    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        """Rename; as in SFTP version 3, not over something that exists."""
        if os.path.lexists(self._link(newpath)):
            raise asyncssh.SFTPFailure("File already exists")
        os.rename(self._link(oldpath), self._link(newpath))  # noqa: PTH104 - bytes

    def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        """Rename over what is there."""
        os.replace(self._link(oldpath), self._link(newpath))  # noqa: PTH105 - bytes

    def readlink(self, path: bytes) -> bytes:
        """The text of a link, unchanged."""
        return os.readlink(self._link(path))  # noqa: PTH115 - bytes

    def symlink(self, oldpath: bytes, newpath: bytes) -> None:
        """Make a link whose text means what it says inside the pod."""
        os.symlink(oldpath, self._link(newpath))  # noqa: PTH211 - bytes

    def exit(self) -> None:
        """Send the exit status that OpenSSH's scp waits for; asyncssh sends none for SFTP."""
        self.channel.exit(0)
