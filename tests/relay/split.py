"""A network split: attempt 1 is thought to be lost and is not. Both write to the same store, one operation at a time.

    old   claim 1, publishes ... ==stalled== ... wakes: seals, publishes, removes, claims again
    new                  claim 2, restores, publishes, removes

Each attempt is a thread, and a baton lets one go on at a time; before every operation of a store at which another
writer could do something, the seed says who is next. So a schedule runs the same way again, whatever the machine does.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugins.checkpoints.disk import Disk
from plugins.checkpoints.retention import prune_store
from plugins.checkpoints.seal import seal
from plugins.checkpoints.stores import CheckpointStore
from plugins.errors import Fenced, StoreError
from tests.relay.attempts import KEEP
from tests.relay.content import RUN, STAGE, Ident, found_in, ident_of, write
from tests.relay.death import Death
from tests.relay.figures import DOUBLE, Figures
from tests.relay.guards import Guards
from tests.relay.worlds import make_world

OLD, NEW = "old", "new"
HUNG_S = 60.0
TRIES = 500


class Hung(Exception):
    """The baton did not come round."""


class Baton:
    """Lets one of the two go on at a time. rest: how likely it is that the other one goes on at a step."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._rest = rng, rng.choice((0.03, 0.1, 0.3, 0.5))
        self._changed = threading.Condition()
        self._turn, self._gone = OLD, set()

    def wait(self, me: str) -> None:
        """Wait for the turn."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._turn == me or self._gone, timeout=HUNG_S):
                raise Hung(f"{me} waited {HUNG_S:g} s for its turn")

    def step(self, me: str) -> None:
        """One step is about to be done: perhaps the other one goes on first."""
        if not self._gone and self._rng.random() < self._rest:
            self.give(me)

    def give(self, me: str) -> None:
        """The other one goes on now."""
        with self._changed:
            self._turn = NEW if me == OLD else OLD
            self._changed.notify_all()
        self.wait(me)

    def leave(self, me: str) -> None:
        """Go on without me."""
        with self._changed:
            self._gone.add(me)
            self._changed.notify_all()


@dataclass
class Split:
    """One schedule. seen: what was visible when attempt 2 had claimed. wrong: what must not be."""

    world: Any
    folder: Path
    rng: random.Random
    guards: Guards
    baton: Baton
    cut: bool
    seeds: dict[int, set[str]] = field(default_factory=dict)
    seen: list[Ident] | None = None
    new_is_done: bool = False
    fenced: str = ""
    wrong: list[str] = field(default_factory=list)

    def store(self, me: str) -> CheckpointStore:
        """The store as an attempt opens it: each operation is a step; a cut line fails until attempt 2 is through."""

        def before(what: str) -> None:
            if self.world.is_open(what):
                self.baton.step(me)
            if self.cut and me == OLD and self.seen is not None and not self.new_is_done:
                raise StoreError("the network is cut")

        self.world.settle = lambda _s: self.baton.give(me)  # nobody stalls for a second between two bytes of a state
        try:
            return self.world.open(before)
        finally:
            self.world.settle = None

    def visible(self) -> list[Ident]:
        """What a reader finds, newest first."""
        listed = self.world.open().list(RUN, STAGE)
        found = (ident_of(manifest, self.seeds.get(manifest.iteration, set())) for manifest in listed)
        return [ident or Ident(-1, "torn") for ident in found]

    def check(self, when: str) -> None:
        """Nothing of attempt 1 that was not visible at the claim of attempt 2."""
        late = [one for one in self.visible() if one.seed != "a2" and one not in (self.seen or [])]
        if late:
            self.wrong.append(f"{when}: {late[0]} of attempt 1 became visible after attempt 2 had claimed")

    def save(self, store: CheckpointStore, me: str, iteration: int, *, feed: bool) -> Ident:
        """Train, seal and publish one iteration, then remove old ones. Raises Fenced, StoreError."""
        token = 1 if me == OLD else 2
        ident, save_dir = Ident(iteration, f"a{token}"), self.folder / me
        self.seeds.setdefault(iteration, set()).add(ident.seed)
        write(save_dir, ident, Death(), self.rng, asynchronous=False)
        upload = store.begin(RUN, STAGE, iteration, token) if feed else None
        who = {"run_id": RUN, "stage": STAGE, "attempt": token, "token": token}
        more: dict[str, Any] = {"sink": upload.feed} if upload else {}
        manifest = seal(save_dir, iteration, **who, **more, export=True, workers=1)
        try:
            upload.publish(manifest, save_dir) if upload else store.put(manifest, save_dir)
        finally:
            if upload:
                upload.abandon()
        if me == OLD and self.seen is not None and ident not in self.seen:
            self.wrong.append(f"attempt 1 was told that {ident} is published, after attempt 2 had claimed")
        prune_store(store, RUN, STAGE, KEEP)
        return ident

    def old(self) -> None:
        """Attempt 1: trains on as if nothing were, until it is told."""
        store, iteration, tries = self.store(OLD), 10, 0
        while tries < TRIES:
            tries += 1
            try:
                self.save(store, OLD, iteration, feed=self.rng.random() < 0.5)
                store.claim(RUN, STAGE, 1)
                iteration += 1
                if self.new_is_done:
                    self.wrong.append("attempt 1 published after attempt 2 was through")
                    return
            except Fenced as error:
                self.fenced = str(error)
                return
            except StoreError:
                self.baton.give(OLD)  # a pause, as an uploader makes one

    def new(self) -> None:
        """Attempt 2: claims, takes what there is, trains on."""
        store = self.store(NEW)
        store.claim(RUN, STAGE, 2)
        self.seen = self.visible()
        self.baton.step(NEW)
        restored = self.guards.restore(store, RUN, STAGE, self.folder / NEW, disk=Disk())
        start = restored and found_in(self.folder / NEW, restored.iteration, self.seeds[restored.iteration])
        if not start or start != self.seen[0]:
            self.wrong.append(f"attempt 2 goes on from {start}, not from {self.seen[0]}")
            return
        last = start
        for _ in range(self.rng.randint(1, 3)):
            last = self.save(store, NEW, last.iteration + 1, feed=self.rng.random() < 0.5)
            self.check(f"attempt 2 had published {last}")
        self.new_is_done = True
        if self.visible()[0] != last:
            self.wrong.append(f"attempt 2 published {last}, and {self.visible()[0]} is the newest")

    def run(self) -> None:
        """Both, to their ends."""
        self.store_first()
        threads = [
            threading.Thread(target=self._alone, args=args, daemon=True) for args in ((OLD, self.old), (NEW, self.new))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=4 * HUNG_S)
        self.check("at the end")
        if not self.fenced:
            self.wrong.append("attempt 1 was never told that it is superseded")
        try:
            self.world.open().claim(RUN, STAGE, 1)
            self.wrong.append("attempt 1 may claim again")
        except Fenced:
            pass

    def store_first(self) -> None:
        """What attempt 1 published before the split."""
        store = self.world.open()
        store.claim(RUN, STAGE, 1)
        for iteration in (3, 7):
            self.save(store, OLD, iteration, feed=False)

    def _alone(self, me: str, act: Callable[[], None]) -> None:
        try:
            self.baton.wait(me)
            act()
        except Exception as error:
            self.wrong.append(f"{me} ended with {type(error).__name__}: {error}")
        finally:
            self.baton.leave(me)


def split(kind: str, folder: Path, seed: int, count: int, guards: Guards) -> Figures:
    """So many schedules over stores of this kind."""
    figures = Figures()
    for number in range(count):
        rng = random.Random(f"{kind}/{seed}/{number}")
        place = folder / f"{number}"
        place.mkdir(parents=True)
        one = Split(make_world(kind, place, guards.folder), place, rng, guards, Baton(rng), rng.random() < 0.3)
        one.run()
        figures.kinds[f"split {kind}"] += 1
        for text in one.wrong:
            figures.breach(DOUBLE, f"[split {kind} {seed}/{number}] {text}")
    return figures
