"""A store that was silent while another attempt went on, and comes back with the line that was left behind.

    near   3@1 5@1 8@1  ....silent....  8@1 5@1 + 4@2      line 1 looks newer and is given up
    far    3@1               4@2 6@2

Attempt 1 published more to one store than to the other; attempt 2 could only see the other. When the first store
answers again it gets attempt 2's newest, and dies or not on the way. Whoever comes next must go on from line 2 as soon
as any store that answers has something of it.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugins.checkpoints.disk import Disk
from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.retention import prune_store
from plugins.checkpoints.seal import seal
from plugins.checkpoints.stores import CheckpointStore
from plugins.checkpoints.stores.several import SeveralStores
from tests.relay.attempts import KEEP
from tests.relay.content import RUN, STAGE, Ident, found_in, ident_of, write
from tests.relay.death import Death, as_process
from tests.relay.figures import KILL_POINTS, STALE, TORN, Figures
from tests.relay.guards import Guards
from tests.relay.worlds import FORKED, make_world

STORES = ("near", "far")


@dataclass
class History:
    """Two stores and what is known to be in them. in_store: what each store was seen to take, oldest first."""

    worlds: dict[str, Any]
    folder: Path
    guards: Guards
    rng: random.Random
    forked: bool
    seeds: dict[int, set[str]] = field(default_factory=dict)
    in_store: dict[str, list[Ident]] = field(default_factory=lambda: {name: [] for name in STORES})
    sealed: dict[Ident, Manifest] = field(default_factory=dict)

    def train(self, attempt: int, iteration: int) -> Ident:
        """Write and seal an iteration on the attempt's pod."""
        ident, save_dir = Ident(iteration, f"a{attempt}"), self.folder / f"pod-{attempt}"
        write(save_dir, ident, Death(), self.rng, asynchronous=False)
        who = {"run_id": RUN, "stage": STAGE, "attempt": attempt, "token": attempt}
        self.sealed[ident] = seal(save_dir, iteration, **who, export=True, workers=1)
        self.seeds.setdefault(iteration, set()).add(ident.seed)
        return ident

    def publish(self, ident: Ident, name: str, death: Death | None = None) -> bool:
        """Put into one store and keep the newest there; whether it got through."""
        death = death or Death(forked=self.forked)
        save_dir = self.folder / f"pod-{self.sealed[ident].attempt}"
        store = self.worlds[name].open(death.before)
        with death.acting("returning"):
            store.put(self.sealed[ident], save_dir)
            prune_store(store, RUN, STAGE, KEEP)
        return True

    def seen(self, names: tuple[str, ...]) -> CheckpointStore:
        """The stores that answer, as one."""
        return SeveralStores([self.worlds[name].open() for name in names])

    def restored(self, names: tuple[str, ...], attempt: int) -> tuple[Ident | None, bool]:
        """What an attempt on an empty pod goes on from, and whether it is torn."""
        save_dir = self.folder / f"pod-{attempt}"
        store = self.seen(names)
        store.claim(RUN, STAGE, attempt)
        manifest = self.guards.restore(store, RUN, STAGE, save_dir, disk=Disk())
        if manifest is None:
            return None, False
        found = found_in(save_dir, manifest.iteration, self.seeds.get(manifest.iteration, set()))
        return found, found is None


def returning(kinds: tuple[str, str], folder: Path, seed: str, guards: Guards, figures: Figures) -> None:
    """One history. The store that was silent is the near one or the far one."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    forked = set(kinds) <= set(FORKED)
    worlds = {name: make_world(kind, folder, guards.folder) for name, kind in zip(STORES, kinds, strict=True)}
    history = History(worlds, folder, guards, rng, forked)
    silent, awake = rng.sample(STORES, 2)
    first = sorted(rng.sample(range(1, 20), rng.randint(2, 6)))
    common = rng.randint(1, len(first) - 1)
    death = Death("returning" if rng.random() < 0.7 else None, rng.randrange(70), seed, forked)
    who_answers = rng.choice(((silent,), (silent, awake), STORES))

    def lives() -> dict[str, Any]:
        for number, iteration in enumerate(first):
            ident = history.train(1, iteration)
            for name in STORES if number < common else (silent,):
                history.publish(ident, name)
        start, torn = history.restored((awake,), 2)
        second = [history.train(2, first[common - 1] + number + 1) for number in range(rng.randint(1, 2))]
        for ident in second:
            history.publish(ident, awake)
        (folder / "sealed").write_text(history.sealed[second[-1]].to_json())
        return {"start": start, "torn": torn, "second": second}

    def comes_back() -> bool:
        manifest = Manifest.from_json((folder / "sealed").read_bytes())
        ident = Ident(manifest.iteration, "a2")
        history.sealed[ident] = manifest
        return history.publish(ident, silent, death)

    def next_one() -> list[Any]:
        latest = history.seen(who_answers).latest(RUN, STAGE)
        named = ident_of(latest, history.seeds[latest.iteration]) if latest else None
        return [*history.restored(who_answers, 3), named]

    told = f"[returning {'+'.join(kinds)} {seed}] {silent} was silent, line 1 {first}, {common} of it in {awake}"
    before = as_process(lives, forked=forked, answers=folder)
    if before.answer is None or before.answer["torn"] or before.answer["start"][0] != first[common - 1]:
        figures.breach(STALE, f"{told}: attempt 2 did not begin well: {before.answer} {before.error}")
        return
    newest = Ident(*before.answer["second"][-1])
    for iteration in (*first, *(one[0] for one in before.answer["second"])):
        history.seeds.setdefault(iteration, set()).update({"a1", "a2"})
    through = as_process(comes_back, forked=forked, answers=folder)
    after = as_process(next_one, forked=forked, answers=folder)
    figures.counts[KILL_POINTS] += 1
    figures.kinds["returning"] += 1
    end = "died on the way" if through.died else "got through"
    told = f"{told}; attempt 2 published {newest}, {end}; attempt 3 sees {', '.join(who_answers)}"
    if through.error or after.error:
        figures.breach(STALE, f"{told}: did not get through: {through.error}{after.error}")
        return
    (found, torn, named), wanted = after.answer, list(newest)
    if torn:
        figures.breach(TORN, f"{told}: it restored something that is not whole")
    line_is_known = awake in who_answers or not through.died
    if line_is_known and found != wanted:
        figures.breach(STALE, f"{told}: it goes on from {found}")
    elif line_is_known and named != wanted:
        figures.breach(STALE, f"{told}: latest is {named}")


def many(kinds: tuple[str, str], folder: Path, seed: int, count: int, guards: Guards) -> Figures:
    """So many histories."""
    figures = Figures()
    for number in range(count):
        returning(kinds, folder / f"{number}", f"{seed}/{number}", guards, figures)
    return figures
