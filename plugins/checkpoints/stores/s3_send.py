"""Files on their way to S3: in one piece when small, in parts when large, each hashed on the way.

One thread reads a file from its beginning to its end, because its SHA-256 must be that of the seal; the parts it cuts
are sent by others. So memory is at most (files + senders) parts. An upload that was cut leaves its parts at the
provider; the next try lists them, keeps those whose content is the same, and sends the rest.
"""

import base64
import hashlib
import threading
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from plugins.checkpoints.disk import Progress, disk_errors, in_parallel, read_chunks
from plugins.checkpoints.manifest import check_hash
from plugins.checkpoints.stores.backend import Source
from plugins.checkpoints.stores.s3_client import S3Client
from plugins.errors import StoreError, TornCheckpoint

MIN_PART_BYTES = 8 * 2**20
MAX_PARTS = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_MIB = 2**20
Parts = dict[int, dict[str, Any]]
"""Part number to what `complete_multipart_upload` wants of it."""


def part_size(size_bytes: int, least_bytes: int = MIN_PART_BYTES) -> int:
    """Bytes a part: as small as is allowed; where 10,000 of these do not hold the file, whole MiB that do."""
    needed = -(-size_bytes // MAX_PARTS)
    return least_bytes if needed <= least_bytes else -(-needed // _MIB) * _MIB


class Arrived:
    """What this process has sent itself: key to ETag, size and SHA-256, for objects that cannot say their hash."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, int, str]] = {}

    def note(self, key: str, etag: str, size_bytes: int, sha256: str) -> None:
        """Remember an object."""
        with self._lock:
            self._known[key] = (etag, size_bytes, sha256)

    def is_whole(self, source: Source, head: dict[str, Any] | None) -> bool:
        """Whether the object that `head` describes is this file, by size and hash."""
        if head is None or head["ContentLength"] != source.size_bytes:
            return False
        with self._lock:
            known = self._known.get(source.key)
        if known == (head["ETag"], source.size_bytes, source.sha256):
            return True
        return bool(head.get("Metadata", {}).get("sha256") == source.sha256)


class Sender:
    """Sends files. files: how many are read at once. senders: how many parts are on the wire at once."""

    def __init__(
        self, client: S3Client, arrived: Arrived, *, files: int = 4, senders: int = 8, part_bytes: int = MIN_PART_BYTES
    ) -> None:
        self._client, self._arrived = client, arrived
        self._files, self._senders, self._part_bytes = files, senders, part_bytes

    def send(self, sources: Iterable[Source], progress: Progress | None) -> None:
        """Send every file that is not there whole. Raises StoreError, TornCheckpoint; see `Backend.publish`."""
        slots = threading.BoundedSemaphore(self._senders)
        with ThreadPoolExecutor(self._senders, thread_name_prefix="s3-part") as pool:

            def one(source: Source, stop: threading.Event) -> None:
                _OneFile(self._client, self._arrived, source, pool, slots, stop, progress).send(self._part_bytes)

            in_parallel(one, sources, self._files)


class _OneFile:
    def __init__(
        self,
        client: S3Client,
        arrived: Arrived,
        source: Source,
        pool: ThreadPoolExecutor,
        slots: threading.BoundedSemaphore,
        stop: threading.Event,
        progress: Progress | None,
    ) -> None:
        self._client, self._arrived, self._source = client, arrived, source
        self._pool, self._slots, self._stop = pool, slots, stop
        self._progress: Progress = progress or (lambda _bytes: None)
        self._failed = threading.Event()

    def send(self, least_bytes: int) -> None:
        source = self._source
        if not source.path.is_file():
            raise TornCheckpoint(f"{source.path}: is missing from the sealed checkpoint")
        if self._is_there():
            self._progress(source.size_bytes)
            return
        size = part_size(source.size_bytes, least_bytes)
        if source.size_bytes <= size:
            self._send_whole()
        else:
            self._send_parts(size)

    def _is_there(self) -> bool:
        return self._arrived.is_whole(self._source, self._client.head(self._source.key))

    def _send_whole(self) -> None:
        source = self._source
        with disk_errors(source.path, "read"):
            content = bytearray()
            for chunk in read_chunks(source.path, self._stop):
                content += chunk
                if len(content) > source.size_bytes:
                    break
        self._check(hashlib.sha256(content).hexdigest())
        self._client.put(source.key, content, Metadata={"sha256": source.sha256})
        self._progress(len(content))

    def _send_parts(self, part_bytes: int) -> None:
        source, begun = self._source, self._begun()
        upload_id, there = begun or (begin_upload(self._client, source.key, source.sha256), {})
        digest = hashlib.sha256()
        parts: Parts = {}
        sending: list[Future[None]] = []
        try:
            with disk_errors(source.path, "read"):
                for number, part in enumerate(_cut(read_chunks(source.path, self._stop, _MIB), part_bytes), 1):
                    digest.update(part)
                    if is_same_part(there.get(number), part):
                        parts[number] = wanted_of(there[number], number)
                        self._progress(len(part))
                    elif self._has_slot():
                        sending.append(self._pool.submit(self._send_part, upload_id, number, part, parts))
                    else:
                        break
        finally:
            failed = [error for future in sending if (error := future.exception())]
        for error in failed:
            raise error
        self._check(digest.hexdigest(), upload_id)
        try:
            finish_upload(self._client, source.key, upload_id, parts)
        except StoreError:
            if not self._is_there():  # it may be that only the answer was lost
                raise
        # An upload that was begun by an earlier try carries the hash of that try: look whether it is this one.
        if begun and not self._is_there():
            self._client.remove([source.key])
            raise StoreError(f"{self._client.place.base}/{source.key}: an earlier upload got in the way: try again")

    def _send_part(self, upload_id: str, number: int, part: bytearray, parts: Parts) -> None:
        try:
            parts[number] = send_part(self._client, self._source.key, upload_id, number, part)
        except BaseException:  # whatever it was: the reader of the file must not wait for this part
            self._failed.set()
            raise
        finally:
            self._slots.release()
        self._progress(len(part))

    def _has_slot(self) -> bool:
        """Wait until a sender is free; False when a part of this file failed meanwhile."""
        while not self._failed.is_set():
            if self._stop.is_set():
                raise StoreError(f"{self._source.path}: sending was stopped, because another file failed")
            if self._slots.acquire(timeout=0.2):
                return True
        return False

    def _begun(self) -> tuple[str, Parts] | None:
        """The newest unfinished upload of this key with its parts; older ones are forgotten."""
        uploads = [one for key, one in self._client.uploads(self._source.key) if key == self._source.key]
        for old in uploads[1:]:
            self._client.abort(self._source.key, old)
        if not uploads:
            return None
        parts: Parts = {}
        more: dict[str, Any] = {}
        while True:
            page = self._client.multipart("list_parts", self._source.key, UploadId=uploads[0], **more)
            parts |= {part["PartNumber"]: part for part in page.get("Parts", [])}
            if not page.get("IsTruncated"):
                return uploads[0], parts
            more = {"PartNumberMarker": page["NextPartNumberMarker"]}

    def _check(self, digest: str, upload_id: str | None = None) -> None:
        if upload_id and digest != self._source.sha256:
            self._client.abort(self._source.key, upload_id)
        check_hash(self._source.path, self._source.sha256, digest)


def begin_upload(client: S3Client, key: str, sha256: str | None = None) -> str:
    """Begin an upload in parts; return its id."""
    metadata = {"Metadata": {"sha256": sha256}} if sha256 else {}
    answer = client.multipart("create_multipart_upload", key, **client.checksums, **metadata)
    return str(answer["UploadId"])


def send_part(client: S3Client, key: str, upload_id: str, number: int, content: bytes | bytearray) -> dict[str, Any]:
    """Send one part, with a checksum that the endpoint compares; return what finishing wants of it."""
    answer = client.multipart(
        "upload_part", key, UploadId=upload_id, PartNumber=number, Body=content, **client.checksums
    )
    return wanted_of(answer, number)


def finish_upload(client: S3Client, key: str, upload_id: str, parts: Parts) -> str:
    """Make an object of the parts; return its ETag."""
    wanted = [parts[number] for number in sorted(parts)]
    answer = client.multipart("complete_multipart_upload", key, UploadId=upload_id, MultipartUpload={"Parts": wanted})
    return str(answer["ETag"])


def wanted_of(answer: dict[str, Any], number: int) -> dict[str, Any]:
    """Number, ETag and checksum of a part that was sent or listed."""
    checksum = {"ChecksumCRC32": answer["ChecksumCRC32"]} if answer.get("ChecksumCRC32") else {}
    return {"PartNumber": number, "ETag": answer["ETag"], **checksum}


def is_same_part(listed: dict[str, Any] | None, content: bytes | bytearray) -> bool:
    """Whether a part that the endpoint has is this content. Its ETag is an MD5, but not where keys of a KMS encrypt."""
    if listed is None or listed.get("Size") != len(content):
        return False
    if checksum := listed.get("ChecksumCRC32"):
        return bool(checksum == base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode())
    return bool(listed["ETag"].strip('"') == hashlib.md5(content, usedforsecurity=False).hexdigest())


def _cut(chunks: Iterable[memoryview], part_bytes: int) -> Iterator[bytearray]:
    """Parts that are full but the last: a read may give less than was asked for, and nobody else keeps a part."""
    part = bytearray()
    for chunk in chunks:
        while chunk:
            room = part_bytes - len(part)
            part += chunk[:room]
            chunk = chunk[room:]
            if len(part) == part_bytes:
                yield part
                part = bytearray()
    if part:
        yield part
