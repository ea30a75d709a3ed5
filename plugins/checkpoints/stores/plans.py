"""What a checkpoint that is published changes in its stage."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.stores.backend import Source
from plugins.checkpoints.stores.places import Work
from plugins.checkpoints.stores.stage import Plan, Sizes, Stage
from plugins.checkpoints.stores.state import MANIFEST_FILE, Entry, Place, State
from plugins.slime import layout


def first_time(stage: Stage, state: State, place: str, manifest: Manifest, save_dir: Path, work: Work) -> Plan:
    """The bytes are not there. What no longer counts goes after them: the iteration's other bytes, and leftovers."""
    there = stage.sizes(unfinished=True)
    replaced = state.at(manifest.iteration)
    old = replaced.place if replaced else None
    others = {found.name: found for name in there if (found := Place.of(name)) and name != place}

    def is_leftover(key: str, given_up: bool) -> bool:
        name = key.removeprefix(stage.prefix)
        dead = others[name].token < state.token  # its attempt was superseded, so it will never be published
        return name == old or (name not in state.places and (dead or given_up))

    gone = work.remove([stage.prefix + name for name in sorted(others)], is_leftover)
    entry = Entry(iteration=manifest.iteration, token=manifest.token, place=place, manifest=manifest.digest())
    return Plan(
        state.with_entry(entry),
        files=tuple(
            Source(f"{place}/{one.path}", save_dir / one.path, one.size_bytes, one.sha256) for one in manifest.files
        ),
        texts={f"{place}/{entry.file}": manifest.to_json()},
        drop=tuple(name for key in gone for name in removal(key.removeprefix(stage.prefix), there)),
    )


def once_more(stage: Stage, state: State, held: Entry, manifest: Manifest, *, changed: bool) -> Plan | None:
    """The bytes are there; only the manifest may be another one, or be damaged."""
    digest, text = manifest.digest(), manifest.to_json()
    if held.manifest == digest:
        damaged = stage.manifest(held) is None
        texts = {f"{held.place}/{held.file}": text} if damaged else {}
        return Plan(state, texts=texts) if changed or damaged else None
    entry = held.model_copy(
        update={"token": manifest.token, "manifest": digest, "file": f"manifest.{digest[:12]}.json"}
    )
    return Plan(
        state.with_entry(entry),
        texts={f"{entry.place}/{entry.file}": text},
        drop=(f"{held.place}/{held.file}",),
    )


def place_name(iteration: int, token: int) -> str:
    """Where a writer puts an iteration first."""
    return f"{layout.iteration_dir(Path(), iteration).name}.a{token}"


def free_places(stage: Stage, state: State, iteration: int, token: int) -> Iterator[str]:
    """Keys of places where this writer may put an iteration, the plain name first."""
    base = place_name(iteration, token)
    names = itertools.chain([base], (f"{base}.{number}" for number in itertools.count(1)))
    return (stage.prefix + name for name in names if name not in state.places)


def removal(place: str, sizes: Sizes) -> tuple[str, ...]:
    """What to drop so that a removal that dies half-way leaves something that is plainly not a checkpoint."""
    manifests = sorted(name for name in sizes.get(place, {}) if MANIFEST_FILE.fullmatch(name))
    return (*(f"{place}/{name}" for name in manifests), f"{place}/")
