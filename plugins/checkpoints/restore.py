"""Choosing the checkpoint that a new attempt starts from, and making the save dir agree with the choice.

Newest first, every file verified, the one before when it is broken. What is newer than the choice (torn, or from an
attempt that was superseded) is moved out of the save dir: slime would overwrite it in place, and a stale tracker makes
the mixture look complete (slime.md 2.3).
"""

import logging
from pathlib import Path

from plugins.checkpoints.disk import Disk, Progress
from plugins.checkpoints.landing import clear_unfinished, iterations_seen, pieces_of, quarantine
from plugins.checkpoints.manifest import Manifest, check_names, living, read_local, superseded, verify_files
from plugins.checkpoints.stores import CheckpointStore
from plugins.errors import StoreError, TornCheckpoint
from plugins.slime import layout

log = logging.getLogger(__name__)


def restore(
    store: CheckpointStore,
    run_id: str,
    stage: str,
    save_dir: Path,
    *,
    progress: Progress | None = None,
    disk: Disk | None = None,
) -> Manifest | None:
    """Put the newest complete checkpoint of the stage into `save_dir`; None when there is none (a cold start).

    Call it after `store.claim` and before the trainer starts; nobody else may write to `save_dir`. Afterwards the
    tracker names the restored iteration, or is gone, and nothing newer is there. A sealed local copy that still
    verifies is used as it is.

    Raises:
        StoreError: the store or the disk failed. A broken checkpoint is no error: it is set aside.
        UserError: `run_id` or `stage` is no name.
    """
    check_names(run_id, stage)
    disk = disk or Disk()
    disk.make_folder(save_dir)
    clear_unfinished(save_dir, disk)
    stored = store.list(run_id, stage)
    # A store that was silent for a while may still hold the line of an attempt that another one has left behind.
    stored = living(stored)
    local = [manifest for manifest in _sealed_here(save_dir, run_id, stage) if not superseded(manifest, stored)]
    candidates = stored + [manifest for manifest in local if manifest.files not in {other.files for other in stored}]
    for manifest in sorted(candidates, key=lambda one: (one.iteration, one.token), reverse=True):
        if _is_here(save_dir, manifest) or (manifest in stored and _fetched(store, manifest, save_dir, progress)):
            settle(save_dir, manifest.iteration, disk)
            return manifest
    if candidates:
        log.error("%s/%s: none of %d checkpoints could be restored; it starts anew", run_id, stage, len(candidates))
    settle(save_dir, None, disk)
    return None


def _sealed_here(save_dir: Path, run_id: str, stage: str) -> list[Manifest]:
    found = (read_local(save_dir, iteration) for iteration in layout.list_iterations(save_dir))
    return [one for one in found if one and (one.run_id, one.stage) == (run_id, stage)]


def _is_here(save_dir: Path, manifest: Manifest) -> bool:
    local = read_local(save_dir, manifest.iteration)
    if local is None or local.files != manifest.files:
        return False
    try:
        verify_files(save_dir, manifest)
    except TornCheckpoint as error:
        log.warning("%s: the local copy cannot be used: %s", manifest.name, error)
        return False
    return True


def _fetched(store: CheckpointStore, manifest: Manifest, save_dir: Path, progress: Progress | None) -> bool:
    try:
        store.get(manifest, save_dir, progress)
    except TornCheckpoint as error:
        log.warning("%s in %s is broken, taking the one before: %s", manifest.name, store.uri, error)
        try:
            store.set_aside(manifest, str(error))
        except StoreError as failure:  # a store that cannot be written may still hold a good older checkpoint
            log.warning("%s in %s could not be set aside: %s", manifest.name, store.uri, failure)
        return False
    return True


def settle(save_dir: Path, restored: int | None, disk: Disk | None = None) -> None:
    """Quarantine all that is newer than `restored` (None: everything), let the tracker name it. Raises StoreError."""
    disk = disk or Disk()
    newer = [number for number in sorted(iterations_seen(save_dir)) if restored is None or number > restored]
    stale = [path for number in newer for path in pieces_of(save_dir, number)]
    try:
        tracker = layout.read_tracker(save_dir)
    except TornCheckpoint:
        tracker = -1
    if tracker != restored:
        stale.insert(0, save_dir / layout.TRACKER)  # first: without it slime sees no checkpoint at all
    quarantine(save_dir, stale, f"not part of the run that goes on from iteration {restored}", disk=disk)
    if tracker != restored and restored is not None:
        disk.write(save_dir / layout.TRACKER, str(restored))
