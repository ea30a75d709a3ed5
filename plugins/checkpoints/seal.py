"""Sealing: the moment a folder that a trainer wrote becomes a checkpoint that we answer for.

Someone else (the trainer, a second writer) may still be changing the files, so their sizes, times and inodes are
noted before the completeness check and compared after the last byte was hashed. Each file is read once; `sink` lets an
uploader have the bytes of that one pass.
"""

import contextlib
import platform
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from plugins.checkpoints.disk import WORKERS, Disk, hash_file, in_parallel
from plugins.checkpoints.manifest import FileEntry, Manifest, check_names, local_manifest_file, read_local
from plugins.errors import StoreError, TornCheckpoint, UserError
from plugins.slime import layout

Sink = Callable[[str, int, memoryview], None]
"""Gets path, offset in bytes and the bytes, in order; an empty chunk ends the file. The view is valid during the call
only. Called from several threads, one a file."""

_Stats = dict[Path, tuple[int, int, int, int]]


def seal(
    save_dir: Path,
    iteration: int,
    *,
    run_id: str,
    stage: str,
    attempt: int,
    token: int,
    kind: layout.Kind = "slime",
    parent: str | None = None,
    lineage: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    dataset_state: bool = True,
    export: bool = False,
    sink: Sink | None = None,
    workers: int = WORKERS,
    disk: Disk | None = None,
) -> Manifest:
    """Prove that an iteration is complete, hash it, and write its manifest beside it. Nothing is half sealed.

    Without `export` a Hugging Face folder of the iteration is taken along only if it is complete.

    Raises:
        TornCheckpoint: it is not complete, changed meanwhile, or is no longer what was sealed before.
        StoreError: a file cannot be read, or the manifest cannot be written (disk full).
        UserError: `run_id` or `stage` is no name.
    """
    check_names(run_id, stage)
    stats = _stats(save_dir, iteration, kind)
    layout.check_complete(save_dir, iteration, kind=kind, dataset_state=dataset_state, export=export)
    with_export = export or _has_export(save_dir, iteration, kind, dataset_state)
    before = stats if with_export else _without_export(stats, iteration)

    def hashed(path: Path, stop: threading.Event) -> FileEntry:
        name = path.as_posix()
        each = (lambda offset, chunk: sink(name, offset, chunk)) if sink else None
        size_bytes, digest = hash_file(save_dir / path, stop, each)
        if sink:
            sink(name, size_bytes, memoryview(b""))
        return FileEntry(path=name, size_bytes=size_bytes, sha256=digest)

    try:
        files = in_parallel(hashed, before, workers)
        manifest = Manifest(
            run_id=run_id,
            stage=stage,
            iteration=iteration,
            attempt=attempt,
            token=token,
            parent=parent,
            kind=kind,
            files=tuple(files),
            versions=_versions(),
            lineage=dict(lineage or {}),
            metrics=dict(metrics or {}),
        )
        text = manifest.to_json()
    except ValueError as error:  # pydantic's: a file name or a lineage that JSON cannot hold
        raise UserError(f"iteration {iteration} of {save_dir} cannot be described in a manifest: {error}") from error
    stats = _stats(save_dir, iteration, kind)
    _check_unchanged(save_dir, before, stats if with_export else _without_export(stats, iteration))
    _check_same_as_sealed_before(save_dir, manifest)
    (disk or Disk()).write(local_manifest_file(save_dir, iteration), text)
    return Manifest.from_json(text)


def _stats(save_dir: Path, iteration: int, kind: layout.Kind) -> _Stats:
    stats: _Stats = {}
    for path in layout.checkpoint_files(save_dir, iteration, kind=kind):
        try:
            found = (save_dir / path).stat()
        except FileNotFoundError:
            raise TornCheckpoint(f"{save_dir / path}: vanished while the checkpoint was looked at") from None
        except OSError as error:
            raise StoreError(f"{save_dir / path}: cannot be read ({error.strerror}): check owner and rights") from error
        # ctime as well: nobody can set it back, and file systems give a freed inode number to the next file
        stats[path] = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    return stats


def _has_export(save_dir: Path, iteration: int, kind: layout.Kind, dataset_state: bool) -> bool:
    try:
        layout.check_complete(save_dir, iteration, kind=kind, dataset_state=dataset_state, export=True)
    except TornCheckpoint:
        return False
    return True


def _without_export(stats: _Stats, iteration: int) -> _Stats:
    folder = layout.export_dir(Path(), iteration)
    return {path: stat for path, stat in stats.items() if not path.is_relative_to(folder)}


def _check_unchanged(save_dir: Path, before: _Stats, after: _Stats) -> None:
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            raise TornCheckpoint(f"{save_dir / path}: changed while it was sealed: somebody is still writing to it")


def _check_same_as_sealed_before(save_dir: Path, manifest: Manifest) -> None:
    """The trainer never touches a finished iteration, so a sealed one that differs now was damaged or overwritten."""
    earlier = read_local(save_dir, manifest.iteration)
    if earlier is None or (earlier.run_id, earlier.stage) != (manifest.run_id, manifest.stage):
        return
    now = {entry.path: entry for entry in manifest.files}
    for entry in earlier.files:
        if now.get(entry.path) != entry:
            path = save_dir / entry.path
            raise TornCheckpoint(f"{path}: is not what attempt {earlier.attempt} sealed here: it was changed since")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("trainstack", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
