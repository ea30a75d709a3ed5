"""One stage of one run in an object store: its state, its places, and the one way to change them.

    <run_id>/<stage>/
      state.json                     see `state.py`; changed by a swap only
      iter_0000019.a2/               a place: iteration 19 as the attempt with token 2 sent it
        iter_0000019/common.pt ..., rollout/..., hf/19/...      as in the save dir
        manifest.json                written after the files; `manifest.<hash>.json` when the same bytes came again
        broken.json                  set aside, and why

A place has one writer, because its name holds the writer's token, and it counts only when the state names it. When the
state is lost or damaged, the places that are whole are what there is. `objects.py` decides what is changed and when.
"""

import builtins
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from plugins.checkpoints.disk import Progress, sha256_of
from plugins.checkpoints.manifest import Manifest, check_names
from plugins.checkpoints.stores.backend import STATE, Backend, Change, Feed, LostSwap, Source
from plugins.checkpoints.stores.state import MANIFEST_FILE, Broken, Entry, Place, State
from plugins.errors import StoreError, TornCheckpoint

log = logging.getLogger(__name__)

TRIES = 12
_LONGEST_PAUSE_S = 2.0
Sizes = dict[str, dict[str, int]]
"""Place to path in it to size in bytes."""


@dataclass(frozen=True)
class Plan:
    """A new state and what belongs to it; see `Change`. Keys are relative to the stage."""

    state: State
    files: tuple[Source, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    drop: tuple[str, ...] = ()


class Stage:
    """A stage in a backend. Every method may raise StoreError."""

    def __init__(
        self, backend: Backend, run_id: str, stage: str, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        check_names(run_id, stage)
        self.run_id, self.stage = run_id, stage
        self.prefix = f"{run_id}/{stage}/"
        self.where = f"{backend.uri.partition('?')[0]}/{run_id}/{stage}"
        self._backend, self._sleep = backend, sleep

    def read(self) -> tuple[State, str | None, bool]:
        """State, its tag, and whether it is really there: a lost or damaged one is made from the places."""
        found = self._backend.read(self.prefix + STATE)
        if found is None:
            return self._rebuilt(), None, False
        try:
            return State.from_json(found[0], f"{self.where}/{STATE}"), found[1], True
        except TornCheckpoint as error:
            log.warning("%s: what is listed now are the places that are whole", error)
            return self._rebuilt(), found[1], False

    def change(
        self,
        title: str,
        plan: Callable[[State, bool], Plan | None],
        progress: Progress | None = None,
        feed: Feed | None = None,
    ) -> State:
        """Carry out what `plan(state, there)` says, again with the newer state as long as others change it.

        A plan must see what was done already: of a swap that went well, the answer may be lost. Returns the state as it
        then is; a plan of None changes nothing. Raises what `plan` raises, and StoreError.
        """
        for attempt in range(TRIES):
            state, tag, there = self.read()
            wanted = plan(state, there)
            if wanted is None:
                return state
            try:
                self._backend.publish(self._change(title, wanted, tag), progress, feed=feed)
            except LostSwap:
                progress = None  # all files were counted
                self._sleep(random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, 0.02 * 2**attempt))  # noqa: S311
            else:
                return wanted.state
        raise StoreError(f"{self.where}: {STATE} was changed by others {TRIES} times in a row: who writes there?")

    def manifests(self, state: State) -> "builtins.list[tuple[Manifest, Entry]]":
        """What the state names and can be read, newest first; the rest is left out with a warning."""
        found = ((self.manifest(entry), entry) for entry in state.checkpoints)
        return [(manifest, entry) for manifest, entry in found if manifest]

    def manifest(self, entry: Entry) -> Manifest | None:
        """The manifest of an entry, or None when it is missing, damaged or another one."""
        where = f"{self.where}/{entry.place}/{entry.file}"
        found = self._backend.read(f"{self.prefix}{entry.place}/{entry.file}")
        if found is None or sha256_of(found[0]) != entry.manifest:
            log.warning("%s is left out: %s", where, "is damaged" if found else "is missing")
            return None
        return self._parsed(found[0], where, entry.iteration)

    def find(self, state: State, manifest: Manifest) -> Entry | None:
        """The entry that holds this iteration with these bytes, or None."""
        entry = state.at(manifest.iteration)
        if entry is None or entry.manifest == manifest.digest():
            return entry
        other = self.manifest(entry)
        return entry if other and other.files == manifest.files else None

    def sizes(self, place: str = "", *, unfinished: bool = False) -> Sizes:
        """What lies in every place, or in the one named. With `unfinished` also places with begun uploads only."""
        prefix = f"{self.prefix}{place}/" if place else self.prefix
        found: Sizes = {}
        for item in self._backend.list(prefix, unfinished=unfinished):
            name, _, path = item.key.removeprefix(self.prefix).partition("/")
            if path and Place.of(name):
                found.setdefault(name, {})[path] = item.size_bytes
        return found

    def check_whole(self, manifest: Manifest, place: str, wanted: Callable[[str], bool] | None = None) -> None:
        """Raise TornCheckpoint when a file is missing in a place or has another size than was sealed."""
        sizes = self.sizes(place).get(place, {})
        for entry in manifest.files:
            if (wanted is None or wanted(entry.path)) and sizes.get(entry.path) != entry.size_bytes:
                has = f"has {sizes[entry.path]} bytes" if entry.path in sizes else "is missing"
                raise TornCheckpoint(
                    f"{self.where}/{place}/{entry.path}: {has}, {entry.size_bytes} bytes were sealed in iteration "
                    f"{manifest.iteration}"
                )

    def is_whole(self, manifest: Manifest, place: str) -> bool:
        """Whether every file is there with its size; hashes are for `get` and `verify`."""
        try:
            self.check_whole(manifest, place)
        except TornCheckpoint:
            return False
        return True

    def _change(self, title: str, plan: Plan, tag: str | None) -> Change:
        return Change(
            title=f"{self.prefix[:-1]}: {title}",
            state_key=self.prefix + STATE,
            state=plan.state.to_json(),
            tag=tag,
            files=tuple(Source(self.prefix + one.key, one.path, one.size_bytes, one.sha256) for one in plan.files),
            texts={self.prefix + key: text for key, text in plan.texts.items()},
            drop=tuple(self.prefix + key for key in plan.drop),
        )

    def _parsed(self, text: bytes, where: str, iteration: int) -> Manifest | None:
        try:
            manifest = Manifest.from_json(text, where)
        except TornCheckpoint as error:
            log.warning("%s is left out: %s", where, error)
            return None
        if (manifest.run_id, manifest.stage, manifest.iteration) != (self.run_id, self.stage, iteration):
            log.warning("%s is left out: it is of %s/%s", where, manifest.run_id, manifest.stage)
            return None
        return manifest

    def _rebuilt(self) -> State:
        """The state that the places tell of. A claim is never smaller than the token of any place."""
        sizes = self.sizes()
        places = _places(sizes)
        state = State(token=max((place.token for place in places), default=0))
        best: dict[int, tuple[Manifest, Entry]] = {}
        for place in places:
            files = sizes[place.name]
            names = [name for name in files if MANIFEST_FILE.fullmatch(name)]
            whole = [one for name in names if (one := self._whole(place, name, files))]
            for manifest, entry in whole:
                known = best.get(place.iteration)
                if known is None or _age(manifest) > _age(known[0]):
                    best[place.iteration] = manifest, entry
            if names and not whole:  # without a manifest it is a leftover; with one it may be worth a look
                state = _with_broken(state, place, "was not whole, or set aside, when the state was lost")
        for _, entry in best.values():
            state = state.with_entry(entry)
        return state.model_copy(update={"token": max([state.token, *(one.token for one in state.checkpoints)])})

    def _whole(self, place: Place, name: str, files: dict[str, int]) -> tuple[Manifest, Entry] | None:
        if "broken.json" in files or (found := self._backend.read(f"{self.prefix}{place.name}/{name}")) is None:
            return None
        manifest = self._parsed(found[0], f"{self.where}/{place.name}/{name}", place.iteration)
        if manifest is None or any(files.get(one.path) != one.size_bytes for one in manifest.files):
            return None
        digest = sha256_of(found[0])
        return manifest, Entry(
            iteration=place.iteration, token=manifest.token, place=place.name, manifest=digest, file=name
        )


def _places(names: Iterable[str]) -> list[Place]:
    return [place for name in sorted(names) if (place := Place.of(name))]


def _age(manifest: Manifest) -> tuple[int, float]:
    return manifest.token, manifest.created_at.timestamp()


def _with_broken(state: State, place: Place, reason: str) -> State:
    broken = Broken(iteration=place.iteration, token=place.token, place=place.name, reason=reason, at="")
    return state.model_copy(update={"broken": (*state.broken, broken)})
