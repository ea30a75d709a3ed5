"""What a dead attempt left, seen by those who come after it: is what they would take whole?"""

from pathlib import Path
from typing import Any

from plugins.checkpoints.stores import CheckpointStore
from plugins.errors import TornCheckpoint
from plugins.slime import layout
from tests.relay.content import RUN, STAGE, Ident, flaw, found_in, ident_of
from tests.relay.guards import Guards

Seeds = dict[int, set[str]]


def look(store: CheckpointStore, guards: Guards, seeds: Seeds, save_dir: Path, *, damaged: bool) -> dict[str, Any]:
    """What the store offers, and what a restore into the empty `save_dir` takes: `{latest, selected, torn}`.

    damaged: somebody changed the bytes of the newest one in the store, which only a restore can see.
    """
    torn: list[str] = []
    latest: Ident | None = None
    if not damaged:
        newest, named = next(iter(store.list(RUN, STAGE)), None), store.latest(RUN, STAGE)
        for name, manifest in (("the newest listed", newest if newest != named else None), ("latest", named)):
            if manifest is None:
                continue
            latest = ident_of(manifest, seeds.get(manifest.iteration, set()))
            try:
                store.verify(manifest)
            except TornCheckpoint as error:
                torn.append(f"{name} is not whole: {error}")
            if latest is None:
                torn.append(f"{name} is {manifest.name}, sealed by attempt {manifest.attempt} over torn files")
    restored = guards.restore(store, RUN, STAGE, save_dir)
    selected = found_in(save_dir, restored.iteration, seeds.get(restored.iteration, set())) if restored else None
    if restored and selected is None:
        torn.append(f"{restored.name} was restored and is not whole: {_why(save_dir, restored.iteration, seeds)}")
    wanted = selected.iteration if selected else None
    if not torn and layout.read_tracker(save_dir) != wanted:
        torn.append(f"the tracker says {layout.read_tracker(save_dir)} after the restore of {wanted}")
    return {"latest": latest, "selected": selected, "torn": torn}


def _why(save_dir: Path, iteration: int, seeds: Seeds) -> str:
    return "; ".join(flaw(save_dir, Ident(iteration, seed)) for seed in sorted(seeds.get(iteration, set())))


def damage(world: Any, rng: Any) -> str:
    """Change bytes of the newest checkpoint behind the store's back; gives what was done. Needs two of them."""
    newest = world.open().list(RUN, STAGE)[0]
    entry = rng.choice(newest.files)
    name = world.key(newest, entry.path)
    good = world.read(name)
    at = rng.randrange(len(good))
    how = rng.choice(("flip", "cut", "zeros"))
    bad = {"flip": good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], "cut": good[:at], "zeros": bytes(len(good))}
    world.write(name, bad[how])
    return f"{how} at byte {at} of {entry.path}"
