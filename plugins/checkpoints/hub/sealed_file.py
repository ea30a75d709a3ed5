"""A file on its way to the Hub, that `huggingface_hub` reads like any other.

It is hashed again while it is read, and its last bytes are not given when it is no longer what was sealed: the upload
then ends early, so the Hub never has wrong bytes under the promised hash.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import BinaryIO, cast

from huggingface_hub import CommitOperationAdd
from huggingface_hub.lfs import UploadInfo

from plugins.checkpoints.disk import Progress, reading
from plugins.checkpoints.manifest import check_hash
from plugins.errors import TornCheckpoint

SAMPLE_BYTES = 512
"""How much of the beginning the Hub wants to see to tell text from binary."""


class SealedFile(io.BufferedIOBase):
    """Reads `path`; `progress` gets the number of bytes at their first reading (a retry reads some again).

    Opened when it is first read and closed at its end, so any number of them may exist. Not for several threads.
    """

    def __init__(self, path: Path, size_bytes: int, sha256: str, progress: Progress | None = None) -> None:
        super().__init__()
        self.path, self.size_bytes, self.sha256 = path, size_bytes, sha256
        self._progress = progress
        self._file: io.FileIO | None = None
        self._at = 0
        self._told_bytes = 0
        self._hashed_bytes = 0
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Offset in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset; nothing is read."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size_bytes}[whence]
        self._at = max(0, min(start + offset, self.size_bytes))
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes from here.

        Raises:
            TornCheckpoint: the file is gone or shorter, or all was read and it is not what was sealed.
            StoreError: it cannot be read.
        """
        left = self.size_bytes - self._at
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted == 0:
            return b""
        chunk = self._read_here(wanted)
        self._hash(chunk)
        self._at += len(chunk)
        if self._at == self.size_bytes:
            self._release()
        self._tell(self._at)
        return chunk

    def count_rest(self) -> None:
        """Tell `progress` of the bytes that were never read, because the Hub had them."""
        self._tell(self.size_bytes)

    def close(self) -> None:
        """Release the file."""
        self._release()
        super().close()

    def _read_here(self, wanted: int) -> bytes:
        with reading(self.path):
            if self._file is None:
                self._file = self.path.open("rb", buffering=0)
            self._file.seek(self._at)
            chunk = self._file.read(wanted)
        if not chunk:
            raise TornCheckpoint(f"{self.path}: has {self._at} bytes, {self.size_bytes} were sealed")
        return chunk

    def _hash(self, chunk: bytes) -> None:
        """A pass begins at 0. Parts that are read again count once; nobody reads with gaps."""
        if self._at == 0:
            self._hashed_bytes, self._digest = 0, hashlib.sha256()
        assert self._at <= self._hashed_bytes, "read with a gap"
        fresh = chunk[self._hashed_bytes - self._at :]
        self._digest.update(fresh)
        self._hashed_bytes += len(fresh)
        if fresh and self._hashed_bytes == self.size_bytes:
            check_hash(self.path, self.sha256, self._digest.hexdigest())

    def _tell(self, upto_bytes: int) -> None:
        more, self._told_bytes = upto_bytes - self._told_bytes, max(self._told_bytes, upto_bytes)
        if more > 0 and self._progress:
            self._progress(more)

    def _release(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def addition(path_in_repo: str, file: SealedFile) -> CommitOperationAdd:
    """The operation that adds a file. Its hash is known, so it is not read for that: the constructor would.

    Raises TornCheckpoint when the file is gone or has another size.
    """
    with reading(file.path), file.path.open("rb") as opened:
        sample = opened.read(SAMPLE_BYTES)
        size_bytes = os.fstat(opened.fileno()).st_size
    if size_bytes != file.size_bytes:
        raise TornCheckpoint(f"{file.path}: has {size_bytes} bytes, {file.size_bytes} were sealed")
    operation = CommitOperationAdd(path_in_repo, b"")
    operation.path_or_fileobj = cast(BinaryIO, file)
    operation.upload_info = UploadInfo(size=size_bytes, sample=sample, sha256=bytes.fromhex(file.sha256))
    return operation
