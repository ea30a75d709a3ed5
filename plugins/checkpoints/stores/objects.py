"""Checkpoints in object storage: a `CheckpointStore` over any `Backend`.

What is visible is what the state of the stage names, and the state is changed by a swap only, so nobody needs a lock:
data goes to a place that no other writer has, and the swap that makes it visible fails when a newer attempt has claimed
the stage meanwhile. What dead writers left behind is removed at the next `put` of a newer attempt.
"""

import builtins
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from plugins.checkpoints.disk import Disk, Progress, in_parallel
from plugins.checkpoints.landing import Only, land
from plugins.checkpoints.manifest import FileEntry, Manifest, check_sizes, living
from plugins.checkpoints.stores import Upload
from plugins.checkpoints.stores.backend import Backend, Feed
from plugins.checkpoints.stores.fed import FedUpload
from plugins.checkpoints.stores.places import Places, Work
from plugins.checkpoints.stores.plans import first_time, free_places, once_more, place_name, removal
from plugins.checkpoints.stores.stage import Plan, Stage
from plugins.checkpoints.stores.state import Broken, Entry, State
from plugins.errors import StoreError, TornCheckpoint

_REASON_CHARS = 500


class ObjectStore:
    """See the module. Several processes may use the same stage; what they publish is whole, the largest token wins.

    workers: files that are read at once. sleep: pauses after a lost swap; for tests.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        disk: Disk | None = None,
        workers: int = 8,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._backend = backend
        self._disk = disk or Disk()
        self._workers = workers
        self._sleep = sleep
        self._places = Places()

    @property
    def uri(self) -> str:
        """The backend's."""
        return self._backend.uri

    def uri_of(self, manifest: Manifest) -> str:
        """URI of the iteration; its place in the store has the writer's token behind that name."""
        place, mark, query = self.uri.partition("?")
        return f"{place}/{manifest.run_id}/{manifest.stage}/{manifest.name}{mark}{query}"

    def check(self) -> None:
        """See `Backend.check`."""
        self._backend.check()

    def claim(self, run_id: str, stage: str, token: int) -> None:
        """See `CheckpointStore.claim`."""
        self._claim(self._stage(run_id, stage), token)

    def put(self, manifest: Manifest, save_dir: Path, progress: Progress | None = None) -> str:
        """See `CheckpointStore.put`. After a failure, what arrived whole is not sent again."""
        return self.publish(manifest, save_dir, progress)

    def begin(
        self, run_id: str, stage: str, iteration: int, token: int, progress: Progress | None = None
    ) -> Upload | None:
        """See `CheckpointStore.begin`. None as well when something of the iteration is there: `put` can use it."""
        where = self._stage(run_id, stage)
        state = self._claim(where, token)
        if state.at(iteration):
            return None
        key = self._places.take(free_places(where, state, iteration, token))
        place = key.removeprefix(where.prefix)
        try:
            feed = None if where.sizes(place, unfinished=True) else self._backend.begin(progress)
        except BaseException:  # whatever ended it: a place that stays taken is never removed
            self._places.leave([key])
            raise
        if feed is None:
            self._places.leave([key])
            return None
        ended = lambda: self._places.leave([key], given_up=[key])  # noqa: E731
        return FedUpload(self, where, place, iteration, token, feed, progress, ended)

    def publish(
        self,
        manifest: Manifest,
        save_dir: Path,
        progress: Progress | None = None,
        *,
        feed: Feed | None = None,
        fed_place: str | None = None,
    ) -> str:
        """`put`, with what `feed` has sent to `fed_place` already."""
        stage = self._stage(manifest.run_id, manifest.stage)
        self._claim(stage, manifest.token)  # before data moves: whoever is superseded by this stops now
        found: builtins.list[Entry] = []
        with self._work() as work:

            def plan(state: State, there: bool) -> Plan | None:
                claimed = state.claimed_by(manifest.token, stage.where)
                if held := self._held(stage, state, manifest):
                    if progress and not work.taken and not found:
                        progress(manifest.size_bytes)
                    found.append(held)
                    return once_more(stage, claimed, held, manifest, changed=claimed != state or not there)
                check_sizes(save_dir, manifest)
                fed = [stage.prefix + fed_place] if fed_place and fed_place not in state.places else []
                place = work.take(itertools.chain(fed, free_places(stage, state, manifest.iteration, manifest.token)))
                return first_time(stage, claimed, place.removeprefix(stage.prefix), manifest, save_dir, work)

            title = f"publish iteration {manifest.iteration} of attempt {manifest.attempt}"
            stage.change(title, plan, progress, feed)
        return self.uri_of(manifest)

    def latest(self, run_id: str, stage: str) -> Manifest | None:
        """See `CheckpointStore.latest`: the newest on the run's line that has all its files."""
        where = self._stage(run_id, stage)
        found = where.manifests(where.read()[0])
        line = living([manifest for manifest, _ in found])
        return next((one for one, entry in found if one in line and where.is_whole(one, entry.place)), None)

    def list(self, run_id: str, stage: str) -> "builtins.list[Manifest]":
        """See `CheckpointStore.list`. What the state names; the whole places when the state is lost or damaged."""
        where = self._stage(run_id, stage)
        return [manifest for manifest, _ in where.manifests(where.read()[0])]

    def get(
        self, manifest: Manifest, save_dir: Path, progress: Progress | None = None, *, only: Only | None = None
    ) -> None:
        """See `CheckpointStore.get`."""
        stage, place = self._place_of(manifest)
        stage.check_whole(manifest, place, only)  # costs little, and saves fetching gigabytes of a torn checkpoint

        def fetch(entry: FileEntry, target: Path, stop: threading.Event) -> str:
            return self._backend.download(f"{stage.prefix}{place}/{entry.path}", target, stop, progress)

        land(manifest, save_dir, fetch, disk=self._disk, workers=self._workers, only=only)

    def verify(self, manifest: Manifest, progress: Progress | None = None) -> None:
        """See `CheckpointStore.verify`."""
        stage, place = self._place_of(manifest)
        stage.check_whole(manifest, place)

        def compare(entry: FileEntry, stop: threading.Event) -> None:
            digest = self._backend.download(f"{stage.prefix}{place}/{entry.path}", None, stop, progress)
            if digest != entry.sha256:
                raise TornCheckpoint(
                    f"{stage.where}/{place}/{entry.path}: is not what was sealed (hash {digest[:12]}..): set it aside"
                )

        in_parallel(compare, manifest.files, self._workers)

    def set_aside(self, manifest: Manifest, reason: str) -> None:
        """See `CheckpointStore.set_aside`: the place gets a `broken.json` and moves from the index to the broken."""
        stage = self._stage(manifest.run_id, manifest.stage)

        def plan(state: State, _there: bool) -> Plan | None:
            entry = stage.find(state, manifest)
            if entry is None:
                return None
            broken = Broken(
                iteration=entry.iteration,
                token=entry.token,
                place=entry.place,
                reason=reason[:_REASON_CHARS],
                at=datetime.now(UTC).isoformat(),
            )
            rest = state.without(entry).model_copy(update={"broken": (*state.broken, broken)})
            return Plan(rest, texts={f"{entry.place}/broken.json": broken.model_dump_json(indent=1) + "\n"})

        stage.change(f"set aside iteration {manifest.iteration}", plan)

    def delete(self, manifest: Manifest) -> None:
        """See `CheckpointStore.delete`: out of the index first, then the data."""
        stage = self._stage(manifest.run_id, manifest.stage)
        place = place_name(manifest.iteration, manifest.token)
        with self._work() as work:

            def plan(state: State, _there: bool) -> Plan | None:
                nonlocal place
                entry = stage.find(state, manifest)
                place = entry.place if entry else place
                if entry is None and place in state.places:
                    return None
                left = stage.sizes(place, unfinished=True)  # an earlier delete may have died before the data was gone
                gone = work.remove([stage.prefix + place]) if entry or left else []
                rest = state.without(entry) if entry else state
                return Plan(rest, drop=removal(place, left) if gone else ()) if entry or gone else None

            state = stage.change(f"delete iteration {manifest.iteration}", plan)
            if work.removed and place not in state.places and (left := stage.sizes(place).get(place)):
                raise StoreError(f"{stage.where}/{place}: is not listed, but {len(left)} files stay: delete it again")

    def _stage(self, run_id: str, stage: str) -> Stage:
        return Stage(self._backend, run_id, stage, sleep=self._sleep)

    def _claim(self, stage: Stage, token: int) -> State:
        def plan(state: State, there: bool) -> Plan | None:
            claimed = state.claimed_by(token, stage.where)
            return None if claimed == state and there else Plan(claimed)

        return stage.change(f"claim for token {token}", plan)

    def _place_of(self, manifest: Manifest) -> tuple[Stage, str]:
        stage = self._stage(manifest.run_id, manifest.stage)
        entry = stage.find(stage.read()[0], manifest)
        if entry is None:
            raise TornCheckpoint(f"{self.uri_of(manifest)}: is not in the store any more")
        return stage, entry.place

    def _held(self, stage: Stage, state: State, manifest: Manifest) -> Entry | None:
        entry = stage.find(state, manifest)
        return entry if entry and stage.is_whole(manifest, entry.place) else None

    @contextlib.contextmanager
    def _work(self) -> Iterator[Work]:
        work = Work(self._places)
        try:
            yield work
        finally:
            work.end()
