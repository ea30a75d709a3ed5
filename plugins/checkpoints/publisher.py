"""Seals what a trainer saves and sends it to every store, in the background, while the trainer goes on.

    offer(N) -> one sealing thread -> one uploader a store (uploader.py) -> durable

When saving is faster than sealing, the newest checkpoint replaces the one that waits, so disk and memory stay bounded.
The bytes of the one pass that hashes a checkpoint go into the first store as well, where that store can take them.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.milestones import MilestoneRule, milestones
from plugins.checkpoints.retention import prune_local, prune_store
from plugins.checkpoints.seal import Sink, seal
from plugins.checkpoints.stores import CheckpointStore, Upload, seen_from_afar
from plugins.checkpoints.throttle import Throttle
from plugins.checkpoints.uploader import LONGEST_PAUSE_S, Uploader, in_words
from plugins.errors import Fenced, StoreError, TornCheckpoint, TrainstackError
from plugins.slime import layout

FENCE_LOOK_S = 30.0


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


def seal_as(
    origin: Origin,
    save_dir: Path,
    iteration: int,
    *,
    parent: str | None = None,
    sink: Sink | None = None,
    metrics: dict[str, float] | None = None,
) -> Manifest:
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
        sink=sink,
        metrics=metrics,
    )


class _Feed:
    """Hands the bytes of the sealing pass to an upload. A store that fails here must not stop the sealing."""

    def __init__(self, upload: Upload) -> None:
        self._upload: Upload | None = upload
        self.failure: StoreError | None = None

    def __call__(self, path: str, offset: int, chunk: memoryview) -> None:
        if self.failure is None and self._upload is not None:
            try:
                self._upload.feed(path, offset, chunk)
            except StoreError as error:
                self.failure = error

    def fed(self) -> Upload | None:
        """The upload when it got every byte; otherwise it is abandoned."""
        upload, self._upload = self._upload, None
        if self.failure is not None and upload is not None:
            upload.abandon()
            return None
        return upload

    def drop(self) -> None:
        """The checkpoint was not sealed, so what was sent of it is worth nothing."""
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.abandon()


class Publisher:
    """Background sealing and publishing for one attempt. `offer` iterations, then `finish`; `stop` drops what waits.

    stores: nearest first. keep: newest checkpoints to keep, on the pod and in each store; there milestones besides.
    settle_s: how long an offered checkpoint may stay incomplete: slime writes the tracker before the Hugging Face
    export and the dataset state (slime.md 2.3), so "not complete yet" is normal for a while.
    metrics: figures of an iteration that go into its manifest. landed: called when an iteration became durable.
    needed: iterations whose local files somebody else still reads.
    """

    def __init__(
        self,
        stores: Sequence[CheckpointStore],
        save_dir: Path,
        origin: Origin,
        *,
        keep: int,
        log: Callable[[str], None],
        rule: MilestoneRule | None = None,
        settle_s: float = 600.0,
        first_pause_s: float = 1.0,
        longest_pause_s: float = LONGEST_PAUSE_S,
        throttle: Throttle | None = None,
        metrics: Callable[[int], dict[str, float]] | None = None,
        landed: Callable[[Manifest, str], None] | None = None,
        needed: Callable[[], set[int]] | None = None,
        fence_look_s: float = FENCE_LOOK_S,
    ) -> None:
        self._save_dir, self._origin, self._keep, self._log = save_dir, origin, keep, log
        self._rule, self._settle_s = rule or MilestoneRule(), settle_s
        self._throttle, self._metrics = throttle or Throttle(None), metrics or (lambda _iteration: {})
        self._tell, self._fence_look_s = landed or (lambda _manifest, _uri: None), fence_look_s
        self._needed = needed or set
        self._nap_s = min(0.5, first_pause_s)
        self._changed = threading.Condition()
        self._waiting: int | None = None
        self._sealing: int | None = None
        self._stopped = False
        self._pruning = threading.Lock()
        self._offered: int | None = None
        self._warning: str | None = None
        self._fenced: str | None = None
        self._milestones: list[Manifest] = []
        self.sealed: int | None = None
        """The newest iteration sealed by this attempt."""
        self.uploaders = [
            Uploader(
                store,
                save_dir,
                changed=self._changed,
                pace=self._throttle,
                landed=self._landed,
                log=log,
                first_pause_s=first_pause_s,
                longest_pause_s=longest_pause_s,
            )
            for store in stores
        ]
        for name, target in (("sealer", self._run), ("fence", self._watch_fence)):
            threading.Thread(target=target, name=name, daemon=True).start()

    @property
    def offered(self) -> int | None:
        """The newest iteration that was offered."""
        return self._offered

    @property
    def durable(self) -> Manifest | None:
        """The newest checkpoint that some store has."""
        found = [one.durable for one in self.uploaders if one.durable]
        return max(found, key=lambda manifest: manifest.iteration, default=None)

    @property
    def uri(self) -> str | None:
        """Where that checkpoint is: in the nearest store that has it."""
        newest = self.durable
        return next((one.uri for one in self.uploaders if newest and one.durable == newest), None)

    @property
    def warning(self) -> str | None:
        """What is wrong at the moment, of sealing or of the stores; None while all is well."""
        return "; ".join(text for text in [self._warning, *(one.warning for one in self.uploaders)] if text) or None

    @property
    def missed(self) -> list[str]:
        """Milestones that a store did not get, in words."""
        return [line for one in self.uploaders for line in one.missed]

    @property
    def fenced(self) -> str | None:
        """Why this attempt must stop writing, or None."""
        return self._fenced or next((one.fenced for one in self.uploaders if one.fenced), None)

    @property
    def on_its_way(self) -> list[str]:
        """What is being sent now, a line a store: 's3: checkpoint 19, 40 %'."""
        lines = []
        for one in self.uploaders:
            if (busy := one.busy) is not None:
                percent = 100 * min(1.0, one.sent_bytes / max(1, busy.size_bytes))
                lines.append(f"{one.kind}: checkpoint {busy.iteration}, {percent:.0f} %")
        return lines

    def offer(self, iteration: int) -> None:
        """Ask for an iteration to be sealed and published; a newer offer replaces one that still waits."""
        with self._changed:
            self._waiting = self._offered = iteration
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is left to be done in any store; False when something is after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(self._at_rest, timeout=timeout_s)

    def finish(self, timeout_s: float, *, anywhere: bool = False) -> None:
        """Wait until every store has the newest offer; with `anywhere` until one has it.

        A store that has not got it when the time is over is only a warning, as long as another one has it that can be
        read without this pod (or, with `anywhere`, any other one).
        Raises Fenced, or StoreError with the last warning when no such store has it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._at_rest() or (anywhere and self._is_durable(True)), timeout=timeout_s)
        if self.fenced:
            raise Fenced(self.fenced)
        if not self._is_durable(anywhere):
            last_word = f" Last: {self.warning}" if self.warning else ""
            raise StoreError(f"Checkpoint {self._offered} was not durable in time; it goes with the pod.{last_word}")

    def stop(self) -> None:
        """Take no more offers and drop what waits; returns at once."""
        with self._changed:
            self._stopped = True
            self._waiting = None
            self._changed.notify_all()
        for one in self.uploaders:
            one.stop()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._waiting is not None)
                if self._stopped:
                    return
                iteration, self._waiting = self._waiting, None
                self._sealing = iteration
            assert iteration is not None
            try:
                self._seal(iteration)
            except Fenced as error:
                self._fence(str(error))
            except Exception as error:  # a sealer that dies would lose every later checkpoint
                self._warn(f"Checkpoint {iteration} cannot be sealed: {in_words(error)}")
            finally:
                with self._changed:
                    self._sealing = None
                    self._changed.notify_all()

    def _seal(self, iteration: int) -> None:
        """Seal one iteration as soon as it is complete and give it to the stores, or give way to a newer one."""
        since = time.monotonic()
        while not self._given_way():
            feed = None
            try:
                layout.check_complete(
                    self._save_dir, iteration, kind=self._origin.kind, export=self._origin.export
                )  # before a store is bothered: "not yet" is normal
                feed = self._begin_feed(iteration)
                manifest = seal_as(
                    self._origin,
                    self._save_dir,
                    iteration,
                    parent=self.uri or self._origin.parent,
                    sink=feed,
                    metrics=self._metrics(iteration),
                )
            except TornCheckpoint as error:
                if feed is not None:
                    feed.drop()
                if time.monotonic() - since > self._settle_s:
                    self._warn(f"Checkpoint {iteration} is not complete and was not sealed: {error}")
                    return
                self._nap()
            except BaseException:  # whatever it was: what was fed must not stay
                if feed is not None:
                    feed.drop()
                raise
            else:
                self._hand_over(manifest, feed.fed() if feed is not None else None)
                self._warning, self.sealed = None, iteration
                return

    def _hand_over(self, manifest: Manifest, fed: Upload | None) -> None:
        """Give a sealed checkpoint to every store; `fed` is the first one's."""
        known = [*self._milestones, manifest]
        marked = milestones(known, self._rule)
        self._milestones = [one for one in known if one.iteration in marked]
        for one in self.uploaders:
            one.offer(manifest, fed if one is self.uploaders[0] else None, milestone=manifest.iteration in marked)

    def _begin_feed(self, iteration: int) -> _Feed | None:
        """Let the first store have the bytes while they are hashed, where that delays neither sealing nor others."""
        first = self.uploaders[0]
        near = len(self.uploaders) == 1 or first.kind in ("folder", "volume")
        with self._changed:
            idle = first.at_rest
        if not (near and idle) or self._throttle.bytes_per_s is not None:
            return None
        origin = self._origin
        try:
            upload = first.store.begin(origin.run_id, origin.stage, iteration, origin.token, first.progress)
        except Fenced:
            raise
        except StoreError:
            return None  # the uploader meets the same trouble, and says it
        return _Feed(upload) if upload is not None else None

    def _landed(self, uploader: Uploader, manifest: Manifest) -> None:
        assert uploader.uri is not None
        self._tell(manifest, uploader.uri)
        self._prune(uploader.store)

    def _prune(self, store: CheckpointStore) -> None:
        run_id, stage = self._origin.run_id, self._origin.stage
        with self._pruning:
            try:
                held = store.list(run_id, stage)
                kept = set(milestones(held, self._rule))
                needed = {iteration for one in self.uploaders for iteration in one.holds} | self._needed()
                prune_local(self._save_dir, self._keep, {manifest.iteration for manifest in held} - needed)
                prune_store(store, run_id, stage, self._keep, milestones=kept)
            except Fenced:
                raise
            except StoreError as error:
                self._warn(f"Old checkpoints were not removed: {error}")

    def _watch_fence(self) -> None:
        """Ask the stores now and then whether a newer attempt has taken over: a writer that waits must know it too."""
        origin = self._origin
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._stopped, timeout=self._fence_look_s):
                    return
            for one in self.uploaders:
                try:
                    one.store.claim(origin.run_id, origin.stage, origin.token)
                except Fenced as error:
                    self._fence(str(error))
                    return
                except TrainstackError:
                    continue  # a store that does not answer says nothing about other attempts

    def _fence(self, why: str) -> None:
        self._fenced = why
        self.stop()

    def _is_durable(self, anywhere: bool) -> bool:
        if self._offered is None:
            return True
        having = [one for one in self.uploaders if one.durable and one.durable.iteration == self._offered]
        return any(anywhere or seen_from_afar(one.store.uri) for one in having)

    def _at_rest(self) -> bool:
        idle = self._waiting is None and self._sealing is None
        return self._stopped or (idle and all(one.at_rest for one in self.uploaders))

    def _given_way(self) -> bool:
        with self._changed:
            return self._stopped or self._waiting is not None

    def _nap(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting is not None, timeout=self._nap_s)

    def _warn(self, message: str) -> None:
        self._warning = message
        self._log(f"WARNING {message}")
