"""Kill points: one run after another in one store, killed again and again, each time somewhere else.

    attempt 7 dies at step k of actor A -> judge: what would be taken now? -> attempt 8 must get through -> ...

First every actor's steps are counted in attempts that live; then each (actor, step) is a kill point. Truth is kept
outside: what was written by whom, and which of it was published, by the journal of the dead.
"""

import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.relay.attempts import Attempt, Journal, Plan, stage_on
from tests.relay.content import RUN, STAGE, Ident, ends_of, is_whole, size_of
from tests.relay.death import Death, Ended, as_process
from tests.relay.figures import KILL_POINTS, STALE, TORN, Figures
from tests.relay.guards import Guards
from tests.relay.judge import damage, look
from tests.relay.worlds import FORKED, make_world

LIFE = 25
TRIES = 3
DAMAGE = "damage"


@dataclass(frozen=True)
class Point:
    """Where to kill: before this step of this actor, on an empty pod or not, feeding the store or not."""

    actor: str
    step: int
    fresh: bool = True
    feed: bool = False


UNSEALED = Point("sealer", 0)
"""The attempt after this one has something to rescue on its pod."""


@dataclass
class Truth:
    """durable: the newest that was published. on_its_way: perhaps published too. here: the newest whole on the pod."""

    durable: Ident | None = None
    on_its_way: Ident | None = None
    here: Ident | None = None
    seeds: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))

    @property
    def rescued(self) -> Ident | None:
        """What lies whole on the pod and is newer than anything published."""
        newer = self.here and (not self.durable or self.here.iteration > self.durable.iteration)
        return self.here if newer else None


class Life:
    """One run in one store, from its first attempt on. `broken` says that a breach ended it."""

    def __init__(self, kind: str, folder: Path, seed: str, guards: Guards, figures: Figures) -> None:
        self._forked, self._guards, self._figures = kind in FORKED, guards, figures
        self._name, self._rng, self._folder = f"{kind} {seed}", random.Random(seed), folder
        folder.mkdir(parents=True)
        self._world = make_world(kind, folder, guards.folder)
        self._truth, self._number, self._pod, self._pods = Truth(), 0, folder / "none", 0
        self.broken, self.kills = False, 0

    def attempt(self, point: Point | None, *, fresh: bool, feed: bool) -> dict[str, int]:
        """One attempt, which dies at `point` if that is ever reached; gives the steps of one that lived."""
        self._number += 1
        fresh = fresh or not self._pod.exists()
        if fresh:
            self._new_pod()
        plan = self._plan(fresh, feed)
        if point and point.actor != "writer":
            plan = replace(plan, last_words=False)
        journal = Journal(self._folder / "journal")
        death = Death(seed=f"{self._name}/{self._number}", forked=self._forked)
        death.tell = lambda last: journal.note(f"died {last}")
        if point:
            death.actor, death.step = point.actor, point.step

        def process() -> dict[str, Any]:
            store = self._world.open(death.before)
            Attempt(store, self._guards, plan, death, journal).run(dict(self._truth.seeds))
            return {"steps": dict(death.steps), "over": death.over}

        expected = self._truth.rescued if not fresh and self._truth.rescued else self._truth.durable
        ended = as_process(process, forked=self._forked, answers=self._folder)
        last = self._hear(journal, expected, f"attempt {self._number}, {'fresh' if fresh else 'same'} pod")
        self._note_end(point, ended, last)
        return (ended.answer or {}).get("steps", {})

    def judge(self, what: str, *, damaged: Ident | None = None) -> None:
        """Look at what is left; damaged: the checkpoint whose bytes were changed in the store, which must not be."""
        pod, truth = self._folder / "judge", self._truth
        shutil.rmtree(pod, ignore_errors=True)
        seeds = dict(truth.seeds)

        def process() -> dict[str, Any]:
            return look(self._world.open(), self._guards, seeds, pod, damaged=damaged is not None)

        ended = as_process(process, forked=self._forked, answers=self._folder)
        if ended.answer is None:
            self._breach(STALE, f"{what}: nobody can look at the store any more: {ended.error}")
            return
        found = {key: Ident(*value) if value else None for key, value in ended.answer.items() if key != "torn"}
        for text in ended.answer["torn"]:
            self._breach(TORN, f"{what}: {text}")
        allowed = [truth.durable, *([truth.on_its_way] if truth.on_its_way else [])]
        if damaged is None and not ended.answer["torn"] and found["latest"] not in allowed:
            self._breach(STALE, f"{what}: latest is {found['latest']}, not {allowed}")
        if damaged is not None:
            if found["selected"] == damaged:
                self._breach(TORN, f"{what}: {damaged} was restored")
        elif not self.broken and found["selected"] not in allowed:
            self._breach(STALE, f"{what}: {found['selected']} was restored, not {allowed}")
        truth.durable, truth.on_its_way = found["selected"], None

    def damage(self) -> None:
        """Change bytes of the newest checkpoint in the store: the one before must be taken."""
        victim = self._truth.durable

        def process() -> str:
            return damage(self._world, self._rng) if len(self._world.open().list(RUN, STAGE)) > 1 else ""

        ended = as_process(process, forked=self._forked, answers=self._folder)
        self._rng.random()  # a forked child has a copy of it
        if ended.answer and victim:
            self.kills += 1
            self._figures.counts[KILL_POINTS] += 1
            self._figures.kinds[DAMAGE] += 1
            self.judge(f"{victim} damaged in the store, {ended.answer}", damaged=victim)
        elif ended.error:
            self._breach(STALE, f"damage: {ended.error}")
        else:
            self.attempt(None, fresh=True, feed=True)

    def _plan(self, fresh: bool, feed: bool) -> Plan:
        rng = self._rng
        return Plan(
            number=self._number,
            pod=self._pod,
            fresh=fresh,
            feed=feed,
            junk=rng.random() < 0.4,
            asynchronous=rng.random() < 0.5,
            last_words=rng.random() < 0.6,
            gap=rng.randint(1, 3),
            rescued=None if fresh else self._truth.rescued,
            seed=self._name,
        )

    def _new_pod(self) -> None:
        shutil.rmtree(self._pod, ignore_errors=True)
        self._pods += 1
        self._pod, self._truth.here = self._folder / f"pod-{self._pods}", None

    def _hear(self, journal: Journal, expected: Ident | None, who: str) -> str:
        truth, last = self._truth, ""
        save_dir = stage_on(self._pod, self._number).save_dir
        for event, ident in journal.events():
            if event.startswith("died"):
                last = event
            elif event == "restored torn":
                self._breach(TORN, f"{who} started from a checkpoint that is not whole")
            elif event == "restored":
                if ident != expected:
                    self._breach(STALE, f"{who} started from {ident}, not from {expected}")
                if truth.on_its_way == ident:  # a rescue puts it into a near store
                    truth.durable, truth.on_its_way = self._near(ident), None
                truth.here = ident
            elif event == "writing" and ident:
                truth.seeds[ident.iteration].add(ident.seed)
            elif event == "publishing":
                truth.on_its_way = ident
            elif event == "published":
                truth.durable, truth.on_its_way = ident, None
            written = ident if event == "writing" else None
            if written and is_whole(save_dir, written):
                truth.here = written
        return last

    def _near(self, ident: Ident | None) -> Ident | None:
        return ident if self._forked else self._truth.durable

    def _note_end(self, point: Point | None, ended: Ended, last: str) -> None:
        killed = ended.died or bool(ended.answer and ended.answer["over"])
        if ended.error:
            self._breach(STALE, f"attempt {self._number} (to be killed at {point}) did not get through: {ended.error}")
        elif killed and point:
            self.kills += 1
            self._figures.counts[KILL_POINTS] += 1
            is_pointer = point.actor == "upload" and any(word in last for word in ("state", "latest", "commit"))
            self._figures.kinds["pointer" if is_pointer else point.actor] += 1
            self.judge(f"attempt {self._number} killed at {point} ({last})")

    def _breach(self, name: str, text: str) -> None:
        self.broken = True
        self._figures.breach(name, f"[{self._name}] {text}")


def count_steps(kind: str, folder: Path, seed: str, guards: Guards, figures: Figures) -> dict[tuple, int]:
    """Steps of each (actor, fresh, feed), from attempts that nobody kills."""
    life, counts = Life(kind, folder, seed, guards, figures), {}
    for _ in range(2):  # the second time there is something to restore, to replace and to remove
        for fresh in (True, False):
            for feed in (False, True):
                for actor, steps in life.attempt(None, fresh=fresh, feed=feed).items():
                    counts[actor, fresh, feed] = steps
    life.attempt(UNSEALED, fresh=True, feed=False)
    counts["rescue", False, False] = life.attempt(None, fresh=False, feed=False).get("rescue", 0)
    return {key: count for key, count in counts.items() if key[0] != "rescue" or key == ("rescue", False, False)}


def points_of(counts: dict[tuple, int], rng: random.Random) -> Iterator[Point]:
    """Every step of every actor, evenly mixed; then again, for ever. The writer dies at file ends and random bytes."""
    while True:
        queues: list[list[Point]] = [[Point(DAMAGE, number) for number in range(12)]]
        for (actor, fresh, feed), count in sorted(counts.items()):
            if actor == "look":
                continue
            steps = list(range(count))
            if actor == "writer":
                ends = {end for order in (False, True) for end in ends_of(Ident(50, "a50"), asynchronous=order)}
                steps = sorted(ends | set(rng.sample(range(size_of(Ident(50, "a50"))), len(ends))))
            queues.append([Point(actor, step, fresh, feed) for step in rng.sample(steps, len(steps))])
        placed = [((rank + rng.random()) / len(queue), point) for queue in queues for rank, point in enumerate(queue)]
        points = [point for _, point in sorted(placed, key=lambda one: one[0])]
        first = {point.actor: point for point in reversed(points)}
        yield from first.values()  # however few are wanted, each actor dies once
        yield from (point for point in points if point not in first.values())


def kill(kind: str, folder: Path, seed: int, points: int, guards: Guards) -> Figures:
    """So many kill points in stores of this kind. `folder` is for everything that is written."""
    figures, rng = Figures(), random.Random(f"{kind}/{seed}")
    counts = count_steps(kind, folder / "counted", f"{seed}/count", guards, figures)
    life, lives = None, 0
    for point in points_of(counts, rng):
        if figures.counts[KILL_POINTS] >= points or figures.bad >= 20:
            break
        if life is None or life.broken or life.kills >= LIFE:
            lives += 1
            life = Life(kind, folder / f"life-{lives}", f"{seed}/{lives}", guards, figures)
        kills = life.kills
        for _ in range(TRIES):  # what there is to remove, say, depends on what attempts before have left
            if point.actor == DAMAGE:
                life.damage()
            else:
                if point.actor == "rescue":
                    life.attempt(UNSEALED, fresh=rng.random() < 0.5, feed=point.feed)
                    kills = life.kills
                life.attempt(point, fresh=point.fresh, feed=point.feed)
            if life.kills > kills or life.broken:
                break
        if rng.random() < 0.7 and not life.broken:  # now and then the next one dies as well
            life.attempt(None, fresh=rng.random() < 0.5, feed=rng.random() < 0.5)
    return figures
