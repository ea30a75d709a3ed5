"""One store's part of publishing: the newest sealed checkpoint goes there, however long the store takes.

One thread and one waiting place a store, so a store that is slow or down delays nobody else and costs no memory: while
it is busy, the newest checkpoint replaces the one that waits. What is on its way is finished all the same; otherwise a
trainer that saves faster than the store takes would never have anything durable. A milestone that had to give way waits
for its turn, a few of them at the most.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plugins.checkpoints.disk import Progress
from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.stores import CheckpointStore, Upload
from plugins.errors import Fenced, StoreError, TornCheckpoint, TrainstackError

LONGEST_PAUSE_S = 60.0
MOST_MILESTONES = 4  # that may wait besides the newest: they stay on the pod's disk until they are stored


@dataclass(frozen=True)
class _Job:
    """A sealed checkpoint on its way. upload: what was fed to the store while it was sealed."""

    manifest: Manifest
    upload: Upload | None = None
    milestone: bool = False

    def drop(self) -> None:
        """What was fed of it is not wanted any more."""
        if self.upload:
            self.upload.abandon()


def in_words(error: Exception) -> str:
    """An error for a warning: our own speak for themselves, others need their name."""
    return str(error) if isinstance(error, TrainstackError) else f"{type(error).__name__}: {error}"


class Uploader:
    """Carries sealed checkpoints of one attempt into one store, in the background.

    changed: the condition that all uploaders of an attempt share; it is notified at every change of state.
    pace: called with bytes as they are sent; it may sleep.
    landed: called after a checkpoint became durable, outside any lock. first_pause_s, longest_pause_s: between tries.
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
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        self.store, self._save_dir, self._changed = store, save_dir, changed
        self._pace, self._landed, self._log, self._first_pause_s = pace, landed, log, first_pause_s
        self._longest_pause_s = longest_pause_s
        self._waiting: _Job | None = None
        self._put_off: list[_Job] = []
        self._stopped = False
        self._busy: _Job | None = None
        self._busy_stored = False  # it is durable, and what follows from that is being done
        self.missed: list[str] = []
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
            replaced, self._waiting = self._waiting, _Job(manifest, upload, milestone)
            if replaced:
                self._give_way(replaced)
            self._changed.notify_all()
        if replaced:
            replaced.drop()

    def _give_way(self, job: _Job) -> None:
        """Keep a milestone for later; when too many wait, the oldest is given up, and that is said."""
        if not job.milestone or self._stopped:
            return
        self._put_off.append(_Job(job.manifest, milestone=True))
        if len(self._put_off) > MOST_MILESTONES:
            lost = self._put_off.pop(0).manifest
            self.missed.append(
                f"milestone {lost.iteration} is not in {self.store.uri}: it does not keep up, and {MOST_MILESTONES} "
                "later ones wait"
            )
            self._log(f"WARNING {self.missed[-1]}")

    def _next(self) -> _Job:
        """The newest, or else a milestone that was put off."""
        if self._waiting is None:
            return self._put_off.pop()
        found, self._waiting = self._waiting, None
        return found

    @property
    def busy(self) -> Manifest | None:
        """What is on its way now."""
        job = self._busy
        return job.manifest if job else None

    @property
    def at_rest(self) -> bool:
        """Whether nothing waits and nothing is on its way. Ask under the shared condition."""
        return self._stopped or (self._waiting is None and self._busy is None and not self._put_off)

    @property
    def holds(self) -> set[int]:
        """Iterations whose local files are still needed."""
        return {job.manifest.iteration for job in (*self._put_off, self._waiting, self._busy) if job is not None}

    def stop(self) -> None:
        """Take nothing more and drop what waits; returns at once."""
        with self._changed:
            self._stopped = True
            dropped, self._waiting = self._waiting, None
            unstored = None if self._busy_stored else self._busy
            jobs = [job for job in (*self._put_off, dropped, unstored) if job is not None]
            left = sorted({job.manifest.iteration for job in jobs if job.milestone})
            self._put_off.clear()
            self.missed += [f"milestone {number} is not in {self.store.uri}: there was no time" for number in left]
            self._changed.notify_all()
        if dropped:
            dropped.drop()

    def progress(self, sent_bytes: int) -> None:
        """Count bytes of the checkpoint that is on its way, and keep to the bandwidth limit."""
        with self._changed:
            self.sent_bytes += sent_bytes
        self._pace(sent_bytes)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._waiting is not None or bool(self._put_off))
                if self._stopped:
                    return
                job = self._next()
                self._busy, self._busy_stored = job, False
            try:
                if self._carry(job):
                    self._landed(self, job.manifest)
            except Fenced as error:
                self.fenced = str(error)
                self.stop()
            except Exception as error:  # an uploader that dies would lose every later checkpoint
                self._warn(
                    f"Checkpoint {job.manifest.iteration} cannot be stored in {self.store.uri}: {in_words(error)}"
                )
            finally:
                with self._changed:
                    self._busy = None
                    self._changed.notify_all()

    def _carry(self, job: _Job) -> bool:
        """Store one checkpoint, or give way to a newer one; whether it is durable."""
        manifest, upload = job.manifest, job.upload
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
                with self._changed:
                    if self._changed.wait_for(lambda: self._stopped or self._waiting is not None, timeout=pause_s):
                        self._give_way(job)
                        return False
                upload, pause_s = None, min(self._longest_pause_s, pause_s * 2)
            else:
                self._busy_stored = True
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
        except BaseException:  # whatever it was: the next try reads the files
            upload.abandon()
            raise

    def _warn(self, message: str) -> None:
        self.warning = message
        self._log(f"WARNING {message}")
