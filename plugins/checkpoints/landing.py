"""Bringing a checkpoint into a save dir, and moving out of it what must not be there.

A download is laid out in `.incoming/`, checked file by file, and only then moved to the places where the trainer looks;
the tracker comes last, so a restore that dies leaves nothing a trainer would start from. What stands in the way is
never deleted: it goes to `.quarantine/<time>/` under its own relative path. All stores share this.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from plugins.checkpoints.disk import PARTIAL, WORKERS, Disk, disk_errors, in_parallel
from plugins.checkpoints.manifest import FileEntry, Manifest, check_entry, local_manifest_file
from plugins.errors import StoreError
from plugins.slime import layout

log = logging.getLogger(__name__)

INCOMING = ".incoming"
QUARANTINE = ".quarantine"

Fetch = Callable[[FileEntry, Path, threading.Event], str]
"""Write one file to the path given, which does not exist yet, and return the SHA-256 (hex) of what was written."""


Only = Callable[[str], bool]
"""Whether the file of this path (relative to the save dir, with '/') is wanted."""


def land(
    manifest: Manifest, save_dir: Path, fetch: Fetch, *, disk: Disk, workers: int = WORKERS, only: Only | None = None
) -> None:
    """Fetch every file of a checkpoint, verify it, and put it in place with the tracker last.

    With `only` just the files wanted come, each verified; the local manifest and the tracker are left alone, because a
    part (an export to start another stage from) is no checkpoint.

    Raises:
        TornCheckpoint: a fetched file is not what was sealed; the save dir is as it was.
        StoreError: the save dir cannot be written.
    """
    incoming = save_dir / INCOMING
    wanted = [entry for entry in manifest.files if only is None or only(entry.path)]
    if not wanted:
        raise StoreError(f"iteration {manifest.iteration} of {manifest.run_id}/{manifest.stage} has no such file")
    disk.remove(incoming)
    disk.make_folder(incoming)
    try:
        for folder in sorted({(incoming / entry.path).parent for entry in wanted}):
            disk.make_folder(folder)

        def bring(entry: FileEntry, stop: threading.Event) -> None:
            check_entry(incoming / entry.path, entry, fetch(entry, incoming / entry.path, stop))

        in_parallel(bring, wanted, workers)
        disk.sync(incoming)
        _put_in_place(manifest.iteration, save_dir, incoming, disk, whole=only is None)
        if only is None:
            disk.write(local_manifest_file(save_dir, manifest.iteration), manifest.to_json())
            disk.write(save_dir / layout.TRACKER, str(manifest.iteration))
    finally:
        disk.remove(incoming)


def _put_in_place(iteration: int, save_dir: Path, incoming: Path, disk: Disk, *, whole: bool) -> None:
    pieces = pieces_of(Path(), iteration)
    arrived = [piece for piece in pieces if (incoming / piece).exists()]
    in_the_way = [save_dir / piece for piece in (pieces if whole else arrived)]
    quarantine(save_dir, in_the_way, f"replaced by the verified copy of iteration {iteration}", disk=disk)
    for piece in arrived:
        disk.make_folder((save_dir / piece).parent)
        disk.move(incoming / piece, save_dir / piece)


def pieces_of(save_dir: Path, iteration: int) -> list[Path]:
    """The places in a save dir that belong to one iteration: manifest, cursor, export, and the folder itself."""
    return [
        local_manifest_file(save_dir, iteration),
        layout.dataset_state_file(save_dir, iteration),
        layout.export_dir(save_dir, iteration),
        layout.iteration_dir(save_dir, iteration),
    ]


def iterations_seen(save_dir: Path) -> set[int]:
    """Every iteration that any piece in the save dir belongs to, complete or not."""
    seen = set(layout.list_iterations(save_dir))
    patterns = ("iter_*.manifest.json", "rollout/global_dataset_state_dict_*.pt", "hf/*")
    with disk_errors(save_dir, "list"):
        names = [path.name for pattern in patterns for path in save_dir.glob(pattern)]
    for name in names:
        digits = name.removesuffix(".manifest.json").removesuffix(".pt").rpartition("_")[2]
        if digits.isascii() and digits.isdigit():
            seen.add(int(digits))
    return seen


def quarantine(save_dir: Path, paths: Iterable[Path], reason: str, *, disk: Disk) -> Path | None:
    """Move what exists of `paths` to a new folder under `.quarantine/`; return that folder, None when nothing existed.

    Raises StoreError.
    """
    existing = [path for path in paths if path.exists() or path.is_symlink()]
    if not existing:
        return None
    folder = _new_folder(save_dir / QUARANTINE, disk)
    for path in existing:
        target = folder / path.relative_to(save_dir)
        disk.make_folder(target.parent)
        disk.move(path, target)
    log.warning("%s: moved to %s: %s", ", ".join(path.name for path in existing), folder, reason)
    return folder


def clear_unfinished(save_dir: Path, disk: Disk) -> None:
    """Remove what a restore or a sealer that died left behind: nobody else writes such files."""
    disk.remove(save_dir / INCOMING)
    with disk_errors(save_dir, "list"):
        partial = list(save_dir.glob(f".*{PARTIAL}"))
    for path in partial:
        disk.remove(path)


def _new_folder(parent: Path, disk: Disk) -> Path:
    name = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    number = 1
    while (folder := parent / f"{name}-{number}").exists():
        number += 1
    disk.make_folder(folder)
    return folder
