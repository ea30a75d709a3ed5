"""Seals and publishes checkpoints in the background while the trainer goes on.

One thread, one waiting place: when saving is faster than the store, the newest checkpoint replaces the one that
waits, so disk and memory stay bounded. A store that fails is tried again with growing pauses; training never waits
for it.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.retention import prune_local, prune_store
from plugins.checkpoints.seal import seal
from plugins.checkpoints.stores import CheckpointStore
from plugins.errors import Fenced, StoreError, TornCheckpoint, TrainstackError
from plugins.slime import layout

LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Origin:
    """Who writes the checkpoints, and from what."""

    run_id: str
    stage: str
    attempt: int
    token: int
    kind: layout.Kind
    export: bool
    parent: str | None = None
    lineage: dict[str, str] = field(default_factory=dict)


def seal_as(origin: Origin, save_dir: Path, iteration: int, *, parent: str | None = None) -> Manifest:
    """Seal an iteration in the name of `origin`; see `seal`."""
    return seal(
        save_dir,
        iteration,
        run_id=origin.run_id,
        stage=origin.stage,
        attempt=origin.attempt,
        token=origin.token,
        kind=origin.kind,
        parent=parent,
        lineage=origin.lineage,
        export=origin.export,
    )


class Publisher:
    """Background sealing and publishing for one attempt. `offer` iterations, then `finish`; `stop` drops what waits.

    `settle_s` is how long an offered checkpoint may stay incomplete: slime writes the tracker before the Hugging Face
    export and the dataset state (slime.md 2.3), so "not complete yet" is normal for a while.
    """

    def __init__(
        self,
        store: CheckpointStore,
        save_dir: Path,
        origin: Origin,
        *,
        keep: int,
        log: Callable[[str], None],
        settle_s: float = 600.0,
        first_pause_s: float = 1.0,
    ) -> None:
        self._store, self._save_dir, self._origin = store, save_dir, origin
        self._keep, self._log, self._settle_s, self._first_pause_s = keep, log, settle_s, first_pause_s
        self._changed = threading.Condition()
        self._waiting: int | None = None
        self._busy = False
        self._stopped = False
        self._parent = origin.parent
        self._offered: int | None = None
        self.sealed: int | None = None
        self.durable: Manifest | None = None
        self.uri: str | None = None
        self.warning: str | None = None
        self.fenced: str | None = None
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def offer(self, iteration: int) -> None:
        """Ask for an iteration to be sealed and published; a newer offer replaces one that still waits."""
        with self._changed:
            self._waiting = self._offered = iteration
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is left to be done; False when something is after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(self._at_rest, timeout=timeout_s)

    def finish(self, timeout_s: float) -> None:
        """Wait until the newest offer is durable. Raises Fenced, or StoreError with the last warning when it is not."""
        self.wait(timeout_s)
        if self.fenced:
            raise Fenced(self.fenced)
        durable = self.durable.iteration if self.durable else None
        if durable != self._offered:
            raise StoreError(self.warning or f"Checkpoint {self._offered} was not durable within {timeout_s:g} s.")

    def stop(self) -> None:
        """Take no more offers and drop the waiting one; returns at once."""
        with self._changed:
            self._stopped = True
            self._waiting = None
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._waiting is not None)
                if self._stopped:
                    return
                iteration, self._waiting, self._busy = self._waiting, None, True
            assert iteration is not None
            try:
                self._carry(iteration)
            except Fenced as error:
                self.fenced = str(error)
                self.stop()
            except TrainstackError as error:  # nothing that trying again could mend
                self._warn(f"Checkpoint {iteration} cannot be sealed: {error}")
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _carry(self, iteration: int) -> None:
        """Seal and publish one iteration, or give way to a newer one."""
        pause, since = self._first_pause_s, time.monotonic()
        while not self._given_way():
            try:
                manifest = seal_as(self._origin, self._save_dir, iteration, parent=self._parent)
                self.sealed = iteration
                self.uri = self._store.put(manifest, self._save_dir)
            except Fenced:
                raise
            except TornCheckpoint as error:
                if time.monotonic() - since > self._settle_s:
                    self._warn(f"Checkpoint {iteration} is not complete and was not sealed: {error}")
                    return
                self._nap(min(0.5, self._first_pause_s))
            except StoreError as error:
                self._warn(f"Checkpoint {iteration} is not durable yet, trying again in {pause:.0f} s: {error}")
                self._nap(pause)
                pause = min(LONGEST_PAUSE_S, pause * 2)
            else:
                self.durable, self._parent, self.warning = manifest, self.uri, None
                self._log(f"checkpoint {iteration} sealed and durable: {self.uri}")
                self._prune()
                return

    def _prune(self) -> None:
        assert self.durable is not None
        try:
            durable = {manifest.iteration for manifest in self._store.list(self._origin.run_id, self._origin.stage)}
            prune_local(self._save_dir, self._keep, durable)
            prune_store(self._store, self._origin.run_id, self._origin.stage, self._keep)
        except StoreError as error:
            self._warn(f"Old checkpoints were not removed: {error}")

    def _at_rest(self) -> bool:
        return self._stopped or (self._waiting is None and not self._busy)

    def _given_way(self) -> bool:
        with self._changed:
            return self._stopped or self._waiting is not None

    def _nap(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting is not None, timeout=seconds)

    def _warn(self, message: str) -> None:
        self.warning = message
        self._log(f"WARNING {message}")
