"""One attempt of a stage, step by step in one thread: what a stage engine, its sealer and its uploader do, in order.

Actors: claim, restore (an empty pod), rescue (the pod of the attempt before), writer, sealer, upload, retention.
The journal is what the outside world knows of it afterwards; it is written before or after the step it tells of.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.recipe import Recipe
from plugins.checkpoints.disk import Disk
from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.retention import prune_local, prune_store
from plugins.checkpoints.stores import CheckpointStore
from plugins.checkpoints.stores.several import SeveralStores
from plugins.errors import TornCheckpoint
from plugins.slime import layout
from tasks.stage_attempt import Stage
from tasks.stage_contract import Heartbeat, StageOrder
from tasks.stage_restore import find_start
from tests.relay.content import RUN, STAGE, Ident, found_in, write
from tests.relay.death import Death
from tests.relay.guards import Guards

KEEP = 2
RECIPE = Recipe.model_validate({"name": "relay", "trainer": {"kind": "tinyslime"}, "sft": {"num_rollout": 9}})


class Deaf:
    """A listener that nobody ends."""

    def beat(self, _beat: Heartbeat) -> None:
        """Nothing."""

    def ended_from_outside(self) -> str | None:
        return None


def stage_on(pod: Path, attempt: int) -> Stage:
    """The stage of an attempt on a pod, as its engine would make it."""
    order = StageOrder(run_id=RUN, stage=STAGE, attempt=attempt, pod="p", recipe=RECIPE)
    return Stage(order, Deaf(), lambda _line: None, lambda _line: None, root=pod)


class Journal:
    """What happened, in order; a file, because the one who writes it dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_text("")

    def note(self, event: str, ident: Ident | None = None) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps([event, ident]) + "\n")

    def events(self) -> Iterator[tuple[str, Ident | None]]:
        for line in self._path.read_text().splitlines():
            event, ident = json.loads(line)
            yield event, Ident(*ident) if ident else None


@dataclass(frozen=True)
class Plan:
    """fresh: an empty pod, with a torn checkpoint of nobody on it if `junk`. feed: the store gets the bytes that are
    hashed. last_words: only the trainer dies, and its stage seals what is complete. rescued: what must be found on a
    pod that is not fresh and was not published.
    """

    number: int
    pod: Path
    fresh: bool
    feed: bool
    junk: bool = False
    asynchronous: bool = False
    last_words: bool = False
    gap: int = 1
    rescued: Ident | None = None
    seed: str = ""


class Attempt:
    """Carries a plan out; what dies in it is up to `death`."""

    def __init__(self, store: CheckpointStore, guards: Guards, plan: Plan, death: Death, journal: Journal) -> None:
        self._store, self._guards, self._plan, self._death, self._journal = store, guards, plan, death, journal
        self._disk, self._rng = Disk(death.disk), random.Random(f"{plan.seed}/{plan.number}")
        self._stage = stage_on(plan.pod, plan.number)
        self._save_dir = self._stage.save_dir

    def run(self, seeds: dict[int, set[str]]) -> None:
        """From the claim to the retention after one save. seeds: who may have trained each iteration."""
        with self._death.acting("claim"):
            self._store.claim(RUN, STAGE, self._plan.number)
        self._save_dir.mkdir(parents=True, exist_ok=True)
        restored = self._restore() if self._plan.fresh else self._rescue()
        start = found_in(self._save_dir, restored.iteration, seeds.get(restored.iteration, set())) if restored else None
        self._journal.note("restored" if start or not restored else "restored torn", start)
        if restored and start and restored not in self._store.list(RUN, STAGE):
            self._publish(restored, start, None)
        ident = Ident(start.iteration + self._plan.gap if start else self._plan.gap - 1, f"a{self._plan.number}")
        self._journal.note("writing", ident)
        with self._death.acting("writer"):
            done = write(self._save_dir, ident, self._death, self._rng, asynchronous=self._plan.asynchronous)
        if not done and not self._plan.last_words:
            self._death.die()
        if not done:
            self._journal.note(f"died {self._death.last}, the trainer alone")
        self._seal(ident)
        self._death.over = not done

    def _restore(self) -> Manifest | None:
        if self._plan.junk:
            junk, sizes = Ident(99999, "junk"), Death("writer", self._rng.randint(1, 900))
            with sizes.acting("writer"):
                write(self._save_dir, junk, sizes, self._rng, asynchronous=False)
            layout.write_tracker(self._save_dir, 99999)
        with self._death.acting("restore"):
            return self._guards.restore(self._store, RUN, STAGE, self._save_dir, disk=self._disk)

    def _rescue(self) -> Manifest | None:
        if self._plan.rescued:
            self._journal.note("publishing", self._plan.rescued)
        with self._death.acting("rescue"):
            find_start(self._stage, SeveralStores([self._store]))
        return self._stage.restored

    def _seal(self, ident: Ident) -> None:
        """Seal and publish a save; nothing happens when it is not complete."""
        who = {"run_id": RUN, "stage": STAGE, "attempt": self._plan.number, "token": self._plan.number}
        with self._death.acting("sealer"):
            upload: Any = None
            if self._plan.feed:
                upload = self._store.begin(RUN, STAGE, ident.iteration, self._plan.number)

            def sink(path: str, offset: int, chunk: memoryview) -> None:
                self._death.before(f"hash {path}")
                if upload:
                    upload.feed(path, offset, chunk)

            try:
                manifest = self._guards.seal(
                    self._save_dir, ident.iteration, **who, sink=sink, export=True, workers=1, disk=self._disk
                )
            except TornCheckpoint:
                if upload:
                    upload.abandon()
                return
        self._publish(manifest, ident, upload)

    def _publish(self, manifest: Manifest, ident: Ident, upload: Any) -> None:
        self._journal.note("publishing", ident)
        with self._death.acting("upload"):
            if upload:
                upload.publish(manifest, self._save_dir)
            else:
                self._store.put(manifest, self._save_dir)
        self._journal.note("published", ident)
        with self._death.acting("retention"):
            held = {one.iteration for one in self._store.list(RUN, STAGE)}
            prune_local(self._save_dir, KEEP, held, disk=self._disk)
            prune_store(self._store, RUN, STAGE, KEEP)
