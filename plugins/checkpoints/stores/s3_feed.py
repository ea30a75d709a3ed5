"""What is fed to S3 while it is sealed: one upload in parts for each large file, one object for each small one.

How large a file becomes is not known, so its parts have one size that holds 312 GiB; a file beyond that is left to
`publish`. Memory is one part for each file under way. The thread that feeds a part also sends it: sealing goes as fast
as the network, and the trainer waits for neither.
"""

import contextlib
import hashlib
import threading
from collections.abc import Iterable

from plugins.checkpoints.disk import Progress
from plugins.checkpoints.stores.backend import Source
from plugins.checkpoints.stores.s3_client import S3Client
from plugins.checkpoints.stores.s3_send import MAX_PARTS, Arrived, Parts, begin_upload, finish_upload, send_part
from plugins.errors import StoreError

FEED_PART_BYTES = 32 * 2**20


class _Fed:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.size_bytes = 0
        self.buffer = bytearray()
        self.upload_id: str | None = None
        self.parts: Parts = {}
        self.etag: str | None = None
        self.begun = self.left_out = False


class S3Feed:
    """See `Feed`."""

    def __init__(
        self,
        client: S3Client,
        arrived: Arrived,
        progress: Progress | None,
        *,
        part_bytes: int = FEED_PART_BYTES,
        max_parts: int = MAX_PARTS,
    ) -> None:
        self._client, self._arrived, self._progress = client, arrived, progress
        self._part_bytes, self._max_parts = part_bytes, max_parts
        self._lock = threading.Lock()
        self._files: dict[str, _Fed] = {}
        self._closed = False

    def feed(self, key: str, offset: int, chunk: memoryview) -> None:
        """See `Feed.feed`. An object that is whole carries its hash if it was sent in one piece."""
        with self._lock:
            file = self._files.setdefault(key, _Fed())
        with file.lock:
            if self._closed:
                raise StoreError(f"{self._client.place.base}/{key}: this upload has ended: put the checkpoint")
            if offset == 0 and (chunk or not file.begun):
                self._forget(key, file)
                file.begun = True
            if not file.begun or file.size_bytes != offset:
                raise StoreError(f"{self._client.place.base}/{key}: was fed out of order: abandon this upload")
            if chunk:
                self._take(key, file, chunk)
            else:
                self._end(key, file)
        if self._progress and chunk:
            self._progress(len(chunk))

    def settle(self, sources: Iterable[Source]) -> None:
        """Nothing more comes: forget what is unfinished, and note the hashes of what is whole."""
        self._close()
        for source in sources:
            file = self._files.get(source.key)
            if file and file.etag and file.size_bytes == source.size_bytes:
                self._arrived.note(source.key, file.etag, source.size_bytes, source.sha256)

    def holds(self, source: Source) -> bool:
        """Whether this file was fed to its end and has its size."""
        file = self._files.get(source.key)
        return bool(file and file.etag and file.size_bytes == source.size_bytes)

    def abandon(self) -> None:
        """See `Feed.abandon`."""
        self._close()
        whole = [key for key, file in self._files.items() if file.etag]
        with contextlib.suppress(StoreError):
            self._client.remove(whole)
        self._files = {}

    def _take(self, key: str, file: _Fed, chunk: memoryview) -> None:
        file.size_bytes += len(chunk)
        while chunk and not file.left_out:
            room = self._part_bytes - len(file.buffer)
            file.buffer += chunk[:room]
            chunk = chunk[room:]
            if len(file.buffer) == self._part_bytes:
                self._send(key, file)

    def _send(self, key: str, file: _Fed) -> None:
        if len(file.parts) == self._max_parts:
            size_bytes = file.size_bytes
            self._forget(key, file)
            file.begun = file.left_out = True
            file.size_bytes = size_bytes
            return
        file.upload_id = file.upload_id or begin_upload(self._client, key)
        number = len(file.parts) + 1
        file.parts[number] = send_part(self._client, key, file.upload_id, number, file.buffer)
        file.buffer = bytearray()

    def _end(self, key: str, file: _Fed) -> None:
        file.begun = False
        if file.left_out:
            return
        if file.upload_id is None:
            sha256 = hashlib.sha256(file.buffer).hexdigest()
            file.etag = self._client.put(key, file.buffer, Metadata={"sha256": sha256})
        else:
            if file.buffer:
                self._send(key, file)
            if file.upload_id:
                file.etag = finish_upload(self._client, key, file.upload_id, file.parts)
                file.upload_id = None
        file.buffer = bytearray()

    def _forget(self, key: str, file: _Fed) -> None:
        if file.upload_id:
            with contextlib.suppress(StoreError):  # it stays as a leftover, which the next attempt removes
                self._client.abort(key, file.upload_id)
        file.size_bytes, file.buffer, file.upload_id, file.parts, file.etag = 0, bytearray(), None, {}, None
        file.left_out = False

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            files = dict(self._files)
        for key, file in files.items():
            with file.lock:
                if file.etag is None:
                    self._forget(key, file)
