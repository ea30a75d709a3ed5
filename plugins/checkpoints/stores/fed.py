"""A checkpoint that goes into an object store while it is sealed: the `Upload` of `ObjectStore`."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from plugins.checkpoints.disk import Progress
from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.stores.backend import Feed
from plugins.checkpoints.stores.stage import Stage
from plugins.errors import Fenced, StoreError, TornCheckpoint

if TYPE_CHECKING:
    from plugins.checkpoints.stores.objects import ObjectStore


class FedUpload:
    """See `Upload`. The bytes go to the place of this writer, where nobody looks before the state names it."""

    def __init__(
        self,
        store: "ObjectStore",
        stage: Stage,
        place: str,
        iteration: int,
        token: int,
        feed: Feed,
        progress: Progress | None,
        ended: Callable[[], None],
    ) -> None:
        """ended: called once, when nothing is written to the place any more."""
        self._left = ended
        self._store, self._stage, self._place, self._feed = store, stage, place, feed
        self._of, self._progress = (stage.run_id, stage.stage, iteration, token), progress
        self._lock = threading.Lock()
        self._uri: str | None = None
        self._ended = False
        self._keep = False

    def feed(self, path: str, offset: int, chunk: memoryview) -> None:
        """See `Upload.feed`."""
        if self._ended:
            raise StoreError(f"{self._stage.where}/{self._place}: this upload has ended")
        self._feed.feed(f"{self._stage.prefix}{self._place}/{path}", offset, chunk)

    def publish(self, manifest: Manifest, save_dir: Path) -> str:
        """See `Upload.publish`."""
        with self._lock:
            if self._uri:
                return self._uri
            if self._ended:
                raise StoreError(f"{self._stage.where}/{self._place}: this upload was abandoned: put the checkpoint")
            if self._of != (manifest.run_id, manifest.stage, manifest.iteration, manifest.token):
                raise StoreError(f"{self._stage.where}/{self._place}: was begun for another checkpoint: put this one")
            try:
                self._uri = self._store.publish(
                    manifest, save_dir, self._progress, feed=self._feed, fed_place=self._place
                )
            except (Fenced, TornCheckpoint):
                raise
            except StoreError:
                self._keep = True  # whether it became visible is not known; the next `put` uses what is there
                raise
            self._end()
            return self._uri

    def abandon(self) -> None:
        """See `Upload.abandon`. After a publish that failed for the store's sake the data stays for the next `put`."""
        with self._lock:
            if not self._ended:
                self._end()

    def _end(self) -> None:
        self._ended = True
        with contextlib.suppress(StoreError):
            if not self._keep and self._place not in self._stage.read()[0].places:
                self._feed.abandon()
        self._left()
