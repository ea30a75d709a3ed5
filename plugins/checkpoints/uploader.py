"""One store's part of publishing: the newest sealed checkpoint goes there, however long the store takes.

One thread and one waiting place a store, so a store that is slow or down delays nobody else and costs no memory: while
it is busy, the newest checkpoint replaces the one that waits. What is on its way is finished all the same; otherwise a
trainer that saves faster than the store takes would never have anything durable. A milestone that had to give way waits
for its turn, a few of them at the most.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from plugins.checkpoints.disk import Progress
from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.stores import CheckpointStore, Upload
from plugins.errors import Fenced, StoreError, TornCheckpoint, TrainstackError

LONGEST_PAUSE_S = 60.0
MOST_MILESTONES = 4  # that may wait besides the newest: they stay on the pod's disk until they are stored


class Uploader:
    """Carries sealed checkpoints of one attempt into one store, in the background.

    changed: the condition that all uploaders of an attempt share; it is notified at every change of state.
    pace: called with bytes as they are sent; it may sleep.
    landed: called after a checkpoint became durable, outside any lock.
    """

    def __init__(
        self,
        store: CheckpointStore,
        save_dir: Path,
        *,
        changed: threading.Condition,
        pace: Progress,
        landed: Callable[["Uploader", Manifest], None],
        log: Callable[[str], None],
        first_pause_s: float,
    ) -> None:
        self.store, self._save_dir, self._changed = store, save_dir, changed
        self._pace, self._landed, self._log, self._first_pause_s = pace, landed, log, first_pause_s
        self._waiting: tuple[Manifest, Upload | None] | None = None
        self._milestones: list[Manifest] = []
        self._is_milestone: dict[int, bool] = {}
        self._stopped = False
        self.busy: Manifest | None = None
        self.durable: Manifest | None = None
        self.uri: str | None = None
        self.warning: str | None = None
        self.fenced: str | None = None
        self.sent_bytes = 0
        self._thread = threading.Thread(target=self._run, name=f"uploader {self.kind}", daemon=True)
        self._thread.start()

    @property
    def kind(self) -> str:
        """The store's scheme: folder, volume, s3, hub."""
        return self.store.uri.partition(":")[0]

    def offer(self, manifest: Manifest, upload: Upload | None = None, *, milestone: bool = False) -> None:
        """Take a sealed checkpoint, with the upload that was fed while it was sealed if there was one."""
        with self._changed:
            replaced, self._waiting = self._waiting, (manifest, upload)
            self._is_milestone[manifest.iteration] = milestone
            if replaced:
                self._put_off(replaced[0])
            self._changed.notify_all()
        if replaced and replaced[1]:
            replaced[1].abandon()

    def _put_off(self, manifest: Manifest) -> None:
        """Keep a milestone that gives way for later; when too many wait, the oldest is given up, and that is said."""
        if not self._is_milestone.get(manifest.iteration) or self._stopped:
            return
        self._milestones.append(manifest)
        if len(self._milestones) > MOST_MILESTONES:
            lost = self._milestones.pop(0)
            self._log(
                f"WARNING milestone {lost.iteration} is not in {self.store.uri}: it does not keep up, and "
                f"{MOST_MILESTONES} more wait"
            )

    def _next(self) -> tuple[Manifest, Upload | None]:
        """The newest, or else a milestone that was put off."""
        if self._waiting is not None:
            found, self._waiting = self._waiting, None
            return found
        return self._milestones.pop(), None

    @property
    def at_rest(self) -> bool:
        """Whether nothing waits and nothing is on its way. Ask under the shared condition."""
        return self._stopped or (self._waiting is None and self.busy is None and not self._milestones)

    @property
    def holds(self) -> set[int]:
        """Iterations whose local files are still needed."""
        waiting = self._waiting
        return {one.iteration for one in (waiting[0] if waiting else None, self.busy, *self._milestones) if one}

    def stop(self) -> None:
        """Take nothing more and drop what waits; returns at once."""
        with self._changed:
            self._stopped = True
            dropped, self._waiting = self._waiting, None
            self._changed.notify_all()
        if dropped and dropped[1]:
            dropped[1].abandon()

    def progress(self, sent_bytes: int) -> None:
        """Count bytes of the checkpoint that is on its way, and keep to the bandwidth limit."""
        with self._changed:
            self.sent_bytes += sent_bytes
        self._pace(sent_bytes)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._waiting is not None or bool(self._milestones))
                if self._stopped:
                    return
                manifest, upload = self._next()
                self.busy = manifest
                self.sent_bytes = self.sent_bytes if upload else 0
            landed = False
            try:
                landed = self._carry(manifest, upload)
                if landed:
                    self._landed(self, manifest)
            except Fenced as error:
                self.fenced = str(error)
                self.stop()
            except Exception as error:  # an uploader that dies would lose every later checkpoint
                name = "" if isinstance(error, TrainstackError) else f"{type(error).__name__}: "
                self._warn(f"Checkpoint {manifest.iteration} cannot be stored in {self.store.uri}: {name}{error}")
            finally:
                with self._changed:
                    self.busy = None
                    self._changed.notify_all()

    def _carry(self, manifest: Manifest, upload: Upload | None) -> bool:
        """Store one checkpoint, or give way to a newer one; whether it is durable."""
        pause_s, since = self._first_pause_s, time.monotonic()
        while True:
            try:
                self.uri = self._send(manifest, upload)
            except TornCheckpoint as error:
                self._warn(f"Checkpoint {manifest.iteration} was changed after it was sealed: {error}")
                return False
            except Fenced:
                raise
            except StoreError as error:
                self._warn(
                    f"Checkpoint {manifest.iteration} is not durable yet in {self.store.uri}, trying again in "
                    f"{pause_s:.0f} s: {error}"
                )
                if self._gives_way(pause_s):
                    with self._changed:
                        self._put_off(manifest)
                    return False
                upload, pause_s = None, min(LONGEST_PAUSE_S, pause_s * 2)
            else:
                newer = self.durable is not None and self.durable.iteration > manifest.iteration
                self.durable, self.warning = self.durable if newer else manifest, None
                took = f" after {time.monotonic() - since:.0f} s" if pause_s > self._first_pause_s else ""
                self._log(f"checkpoint {manifest.iteration} sealed and durable{took}: {self.uri}")
                return True

    def _send(self, manifest: Manifest, upload: Upload | None) -> str:
        if upload is None:
            with self._changed:
                self.sent_bytes = 0
            return self.store.put(manifest, self._save_dir, self.progress)
        try:
            return upload.publish(manifest, self._save_dir)
        except BaseException:
            upload.abandon()
            raise

    def _gives_way(self, pause_s: float) -> bool:
        """Wait before the next try; True when a newer checkpoint waits or all is to stop."""
        with self._changed:
            return self._changed.wait_for(lambda: self._stopped or self._waiting is not None, timeout=pause_s)

    def _warn(self, message: str) -> None:
        self.warning = message
        self._log(f"WARNING {message}")
