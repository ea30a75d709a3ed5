"""The backend that is a bucket of S3, or of anything that speaks its language.

The state is swapped by a conditional write: `If-Match` with the ETag that was read, `If-None-Match: *` for the first
one. Whether the endpoint honours that is tried out and not believed, because some ignore what they do not know, and
then two attempts would overwrite each other. Where it does not, the state is read, compared, written and read again,
which is the best that can be done there, and a warning says so once.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from plugins.checkpoints.disk import Progress
from plugins.checkpoints.stores.backend import Change, Feed, Item, LostSwap
from plugins.checkpoints.stores.objects import ObjectStore
from plugins.checkpoints.stores.s3_client import NoConditions, S3Client, S3Place
from plugins.checkpoints.stores.s3_errors import s3_errors
from plugins.checkpoints.stores.s3_feed import FEED_PART_BYTES, S3Feed
from plugins.checkpoints.stores.s3_send import MIN_PART_BYTES, Arrived, Sender
from plugins.checkpoints.stores.stream import save_stream
from plugins.errors import StoreError, TornCheckpoint

log = logging.getLogger(__name__)

CHUNK_BYTES = 2**20
_DOWNLOAD_TRIES = 5
_NO_SUCH_TAG = '"00000000000000000000000000000000"'


def open_s3(place: S3Place) -> ObjectStore:
    """The store in a bucket. Nothing is asked yet."""
    return ObjectStore(S3Backend(S3Client(place)))


class S3Backend:
    """A `Backend` over a bucket and prefix.

    conditional: whether the endpoint honours conditions on writes; None: it is tried out before the first one.
    part_bytes: see `part_size`; S3 takes no parts under 5 MiB. settle_s: pause before a state is read again where there
    are no conditions.
    """

    def __init__(
        self,
        client: S3Client,
        *,
        conditional: bool | None = None,
        part_bytes: int = MIN_PART_BYTES,
        feed_part_bytes: int = FEED_PART_BYTES,
        settle_s: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client, self._feed_part_bytes = client, feed_part_bytes
        self._settle_s, self._sleep = settle_s, sleep
        self._arrived = Arrived()
        self._sender = Sender(client, self._arrived, part_bytes=part_bytes)
        self._lock = threading.Lock()
        self._conditional = conditional

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`, with the endpoint and region that were named."""
        return self._client.place.uri

    def check(self) -> None:
        """See `Backend.check`."""
        self._conditional = None
        self._has_conditions()

    def read(self, key: str) -> tuple[bytes, str] | None:
        """See `Backend.read`. The tag is the ETag."""
        return self._client.read(key)

    def list(self, prefix: str, *, unfinished: bool = False) -> Iterable[Item]:
        """See `Backend.list`."""
        yield from self._client.items(prefix)
        if unfinished:
            yield from (Item(key, 0) for key, _ in self._client.uploads(prefix))

    def download(self, key: str, target: Path | None, stop: threading.Event, progress: Progress | None = None) -> str:
        """See `Backend.download`. A connection that breaks is taken up where it broke."""
        return save_stream(self._chunks(key), target, stop, progress)

    def publish(self, change: Change, progress: Progress | None = None, *, feed: Feed | None = None) -> None:
        """See `Backend.publish`."""
        files = change.files
        if isinstance(feed, S3Feed):
            feed.settle(files)
            files = tuple(source for source in files if not feed.holds(source))
        self._sender.send(files, progress)
        for key, text in change.texts.items():
            self._client.put(key, text.encode())
        self._swap(change.state_key, change.state.encode(), change.tag)
        for name in change.drop:
            try:
                self._drop(name)
            except StoreError as error:
                log.warning("left behind: %s", error)

    def begin(self, progress: Progress | None = None) -> Feed | None:
        """See `Backend.begin`."""
        return S3Feed(self._client, self._arrived, progress, part_bytes=self._feed_part_bytes)

    def _swap(self, key: str, text: bytes, tag: str | None) -> None:
        if self._has_conditions():
            self._client.put(key, text, **({"IfMatch": tag} if tag else {"IfNoneMatch": "*"}))
            return
        with self._lock:
            now = self._client.read(key)
            if (now[1] if now else None) != tag:
                raise LostSwap(f"{self._client.place.base}/{key}: was changed since it was read")
            self._client.put(key, text)
            self._sleep(self._settle_s)
            now = self._client.read(key)
            if now is None or now[0] != text:
                raise LostSwap(f"{self._client.place.base}/{key}: was overwritten by another writer")

    def _drop(self, name: str) -> None:
        if not name.endswith("/"):
            self._client.remove([name])
            return
        for key, upload_id in self._client.uploads(name):
            self._client.abort(key, upload_id)
        self._client.remove([item.key for item in self._client.items(name)])

    def _has_conditions(self) -> bool:
        with self._lock:
            if self._conditional is None:
                self._conditional = self._probe()
                if not self._conditional:
                    log.warning(
                        "%s: this endpoint ignores conditions on writes (If-Match, If-None-Match), so an attempt that "
                        "was superseded is fenced off by reading the state before and after each write only",
                        self.uri,
                    )
            return self._conditional

    def _probe(self) -> bool:
        """Write, read, list and remove a probe; whether conditions on its writes are honoured. Raises StoreError."""
        key = f".probe-{secrets.token_hex(8)}"
        where = f"{self._client.place.base}/{key}"
        text = b"written to see whether this store can be written, and how\n"
        self._client.put(key, text)
        try:
            found = self._client.read(key)
            if found is None or found[0] != text:
                raise StoreError(f"{where}: does not give back what was written: is that an S3 endpoint?")
            if key not in [item.key for item in self._client.items(key)]:
                raise StoreError(f"{where}: was written and is not listed: is that an S3 endpoint?")
            list(self._client.uploads(key))
            return (
                self._refuses(key, IfNoneMatch="*")
                and self._refuses(key, IfMatch=_NO_SUCH_TAG)
                and self._takes(key, found[1])
            )
        finally:
            self._client.remove([key])

    def _refuses(self, key: str, **condition: str) -> bool:
        try:
            self._client.put(key, b"this must not be written\n", **condition)
        except LostSwap:
            return True
        except NoConditions:
            return False
        return False

    def _takes(self, key: str, tag: str) -> bool:
        text = b"this may be written\n"
        try:
            self._client.put(key, text, IfMatch=tag)
        except NoConditions:
            return False
        except LostSwap:  # by a retry of ours, perhaps, whose first try went well
            now = self._client.read(key)
            return now is not None and now[0] == text
        return True

    def _chunks(self, key: str) -> Iterator[bytes]:
        offset, size_bytes, failures, tag = 0, -1, 0, ""
        where = f"{self._client.place.base}/{key}"
        while offset != size_bytes:
            more = {"Range": f"bytes={offset}-", "IfMatch": tag} if offset else {}
            answer = self._client.get(key, **more)
            if answer is None:
                raise TornCheckpoint(f"{where}: is missing from the store")
            if offset and not str(answer.get("ContentRange", "")).startswith(f"bytes {offset}-"):
                raise StoreError(f"{where}: broke off, and the endpoint cannot go on from there: try again")
            size_bytes, tag = offset + int(answer["ContentLength"]), str(answer["ETag"])
            try:
                with s3_errors(where, self._client.endpoint, "read", "s3:GetObject"):
                    while chunk := answer["Body"].read(CHUNK_BYTES):
                        offset, failures = offset + len(chunk), 0
                        yield chunk
                if offset != size_bytes:
                    raise StoreError(f"{where}: ended after {offset} of {size_bytes} bytes: try again")
            except StoreError:
                failures += 1
                if failures == _DOWNLOAD_TRIES:
                    raise
                self._sleep(0.1 * 2**failures)
            finally:
                answer["Body"].close()
