"""Sealing, sending and pushing of one attempt's checkpoints, put together from the recipe."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.milestones import MilestoneRule, milestones
from plugins.checkpoints.publisher import Publisher
from plugins.checkpoints.stores.several import SeveralStores
from plugins.checkpoints.throttle import Throttle
from plugins.checkpoints.uploader import in_words
from plugins.errors import StoreError, TornCheckpoint
from tasks.stage_attempt import Stage
from tasks.stage_contract import Milestone

MBIT_BYTES = 1_000_000 / 8
PUSH_PAUSES_S = (5.0, 15.0, 60.0, 300.0)


@contextmanager
def publishing(stage: Stage, stores: SeveralStores) -> Iterator[Publisher]:
    """The publisher of this attempt; it stops, and drops what still waits, at the end."""
    own = stage.order.recipe.checkpoint
    rule = rule_of(stage)
    pusher = Pusher(stage, stores, rule) if stage.order.recipe.milestones.push_to else None
    publisher = Publisher(
        stores.members,
        stage.save_dir,
        stage.origin(_parent(stage, stores)),
        keep=own.keep,
        log=stage.log,
        rule=rule,
        throttle=Throttle(own.max_upload_mbit_s * MBIT_BYTES if own.max_upload_mbit_s else None),
        metrics=lambda iteration: stage.progress.at(iteration, stage.order.save_interval),
        landed=pusher.landed if pusher else None,
        needed=pusher.needed if pusher else None,
    )
    stage.publisher, stage.pusher = publisher, pusher
    try:
        yield publisher
    finally:
        publisher.stop()
        if pusher:
            pusher.stop()


def rule_of(stage: Stage) -> MilestoneRule:
    """The recipe's rule, with the last iteration of this stage."""
    own = stage.order.recipe.milestones
    return MilestoneRule(own.interval, own.best, stage.expected_last if own.at_end else None)


def _parent(stage: Stage, stores: SeveralStores) -> str | None:
    if stage.restored is not None:
        return stores.uri_of(stage.restored)
    return stage.order.init.uri if stage.order.init else None


class Pusher:
    """Pushes milestones to the Hub in the background. A push that fails is a warning; the store has the checkpoint."""

    def __init__(self, stage: Stage, stores: SeveralStores, rule: MilestoneRule) -> None:
        self._stage, self._stores, self._rule = stage, stores, rule
        self._changed = threading.Condition()
        self._waiting: dict[int, tuple[Manifest, str, str]] = {}
        self._busy: int | None = None
        self._stopped = False
        self.done: list[Milestone] = []
        self.missed: list[str] = []
        threading.Thread(target=self._run, name="pusher", daemon=True).start()

    def landed(self, manifest: Manifest, uri: str) -> None:
        """A checkpoint is durable: push it if it is a milestone."""
        try:
            held = self._stores.list(manifest.run_id, manifest.stage)
        except StoreError:
            held = []
        others = [one for one in held if one.iteration != manifest.iteration]
        reason = milestones([manifest, *others], self._rule).get(manifest.iteration)
        with self._changed:
            known = {*(one.iteration for one in self.done), *self._waiting, self._busy}
            if reason is None or manifest.iteration in known:
                return
            self._waiting[manifest.iteration] = (manifest, uri, reason)
            self._changed.notify_all()

    def needed(self) -> set[int]:
        """Iterations whose local files a push still reads."""
        with self._changed:
            return {*self._waiting, *([] if self._busy is None else [self._busy])}

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing waits and nothing is being pushed; False when something is after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(self._at_rest, timeout=timeout_s)

    @property
    def warning(self) -> str | None:
        """The newest milestone that was not pushed; None while all were."""
        return self.missed[-1] if self.missed else None

    def stop(self) -> None:
        """Push nothing more; what waits or is being pushed counts as missed. Returns at once."""
        with self._changed:
            self._stopped = True
            left = [*([] if self._busy is None else [self._busy]), *self._waiting]
            self.missed += [f"milestone {number} was not pushed: there was no time" for number in left]
            self._waiting.clear()
            self._changed.notify_all()

    def _at_rest(self) -> bool:
        return self._stopped or (not self._waiting and self._busy is None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or bool(self._waiting))
                if self._stopped:
                    return
                self._busy = min(self._waiting)  # in order: the newest stays on top of the branch
                manifest, uri, reason = self._waiting.pop(self._busy)
            try:
                self._push_patiently(manifest, uri, reason)
            except Exception as error:  # a pusher that dies would push no later milestone
                if not self._stopped:  # else it is named already
                    self.missed.append(f"milestone {manifest.iteration} ({reason}) was not pushed: {in_words(error)}")
                    self._stage.log(f"WARNING {self.warning}")
            finally:
                with self._changed:
                    self._busy = None
                    self._changed.notify_all()

    def _push_patiently(self, manifest: Manifest, uri: str, reason: str) -> None:
        """Push, again after growing pauses when the Hub fails. Raises what cannot be mended, or the last failure."""
        for pause_s in PUSH_PAUSES_S:
            try:
                self._push(manifest, uri, reason)
                return
            except StoreError as error:
                if isinstance(error, TornCheckpoint):
                    raise
                self._stage.log(f"WARNING milestone {manifest.iteration}: {error}; trying again in {pause_s:.0f} s")
            with self._changed:
                if self._changed.wait_for(lambda: self._stopped, timeout=pause_s):
                    return
        self._push(manifest, uri, reason)

    def _push(self, manifest: Manifest, uri: str, reason: str) -> None:
        from tasks.push_files import push_sealed  # the Hub's library is loaded only where it is used

        stage, own = self._stage, self._stage.order.recipe.milestones
        assert own.push_to is not None
        pushed = push_sealed(
            stage.save_dir,
            manifest,
            own.push_to.replace("{stage}", manifest.stage),
            source_uri=uri,
            reason=reason,
            base_model=stage.order.recipe.model.hf_checkpoint,
            public=own.public,
            whole=own.whole,
            rollouts=stage.attempt_dir / "rollouts" if own.rollouts else None,
        )
        self.done.append(
            Milestone(iteration=manifest.iteration, reason=reason, url=pushed.url, revision=pushed.revision)
        )
        stage.log(f"milestone {manifest.iteration} ({reason}) pushed: {pushed.url} at {pushed.revision}")
