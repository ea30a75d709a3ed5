"""Which checkpoints may go. The newest few stay, milestones stay, and a local one goes only if a store has it.

Removal begins with what marks a checkpoint as good (its manifest, its place in the store), so that dying half-way
leaves something that is plainly not a checkpoint.
"""

from collections.abc import Collection
from pathlib import Path

from plugins.checkpoints.disk import Disk
from plugins.checkpoints.landing import pieces_of
from plugins.checkpoints.manifest import living
from plugins.checkpoints.stores import CheckpointStore
from plugins.errors import TornCheckpoint, UserError
from plugins.slime import layout


def prune_local(save_dir: Path, keep: int, durable: set[int], *, disk: Disk | None = None) -> list[int]:
    """Remove all but the newest `keep` iterations of a save dir; return the numbers removed, ascending.

    Only iterations in `durable` (those that a store has) are removed, and never the one the tracker names.

    Raises:
        UserError: `keep` is less than 1.
        StoreError: a file cannot be removed.
    """
    _check_keep(keep)
    disk = disk or Disk()
    try:
        tracker = layout.read_tracker(save_dir)
    except TornCheckpoint:
        return []  # the trainer is just writing it: come back later
    removable = [number for number in layout.list_iterations(save_dir)[:-keep] if number in durable - {tracker}]
    for number in removable:
        for path in pieces_of(save_dir, number):
            disk.remove(path)
    return removable


def prune_store(
    store: CheckpointStore, run_id: str, stage: str, keep: int, *, milestones: Collection[int] = ()
) -> list[int]:
    """Remove all but the newest `keep` checkpoints and the milestones of a stage from a store.

    What a later attempt has left behind goes first, whatever its number: it is no part of the run any more.
    Returns the iterations removed, ascending. Raises UserError when `keep` is less than 1, StoreError.
    """
    _check_keep(keep)
    held = store.list(run_id, stage)
    line = living(held)
    removable = [manifest for manifest in held if manifest not in line]
    removable += [manifest for manifest in line[keep:] if manifest.iteration not in milestones]
    for manifest in removable:
        store.delete(manifest)
    return sorted(manifest.iteration for manifest in removable)


def _check_keep(keep: int) -> None:
    if keep < 1:
        raise UserError(f"keep {keep}: at least the newest checkpoint must stay")
