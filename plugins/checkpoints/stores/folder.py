"""The store that is a folder of this machine, or of a mounted disk that has locks and atomic renames.

Copying takes no lock, so a new attempt can claim a stage at any time; the token is checked again, under the lock,
before the copy becomes visible. How a stage lies on the disk is the business of `shelf.py`.
"""

import builtins
import contextlib
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from plugins.checkpoints.disk import WORKERS, Disk, Progress, in_parallel
from plugins.checkpoints.landing import Only, land
from plugins.checkpoints.manifest import (
    FileEntry,
    Manifest,
    check_entry,
    check_names,
    check_sizes,
    living,
    verify_files,
)
from plugins.checkpoints.stores import Upload
from plugins.checkpoints.stores.folder_upload import FolderUpload
from plugins.checkpoints.stores.shelf import Shelf
from plugins.errors import StoreError, TornCheckpoint
from plugins.slime import layout


class FolderStore:
    """A `CheckpointStore` in a folder; several processes may use it at once."""

    def __init__(
        self, root: Path, *, disk: Disk | None = None, workers: int = WORKERS, lock_timeout_s: float = 30.0
    ) -> None:
        self.root = root.absolute()
        self._disk = disk or Disk()
        self._workers = workers
        self._lock_timeout_s = lock_timeout_s

    @property
    def uri(self) -> str:
        """`folder:` and the absolute path."""
        return f"folder:{self.root}"

    def uri_of(self, manifest: Manifest) -> str:
        """URI of the checkpoint's folder."""
        return f"{self.uri}/{manifest.run_id}/{manifest.stage}/{manifest.name}"

    def check(self) -> None:
        """Make the root if need be, and write and remove a file in it. Raises StoreError."""
        self._disk.make_folder(self.root)
        probe = self.root / f".probe-{secrets.token_hex(4)}"
        self._disk.write(probe, "written to see whether this store can be written\n")
        self._disk.remove(probe)

    def claim(self, run_id: str, stage: str, token: int) -> None:
        """See `CheckpointStore.claim`."""
        shelf = self._shelf(run_id, stage)
        with shelf.locked():
            shelf.claim(token)

    def put(self, manifest: Manifest, save_dir: Path, progress: Progress | None = None) -> str:
        """See `CheckpointStore.put`."""
        shelf = self._shelf(manifest.run_id, manifest.stage)
        with shelf.locked():
            shelf.claim(manifest.token)
            shelf.clear_abandoned()
            if self._holds(shelf, manifest):
                shelf.publish(manifest, None)
                if progress:
                    progress(manifest.size_bytes)
                return self.uri_of(manifest)
            staging, held = shelf.open_staging(manifest.name)
        try:
            return self.publish_staging(manifest, save_dir, staging, progress)
        finally:
            self.remove_staging(staging, held)

    def begin(
        self, run_id: str, stage: str, iteration: int, token: int, progress: Progress | None = None
    ) -> Upload | None:
        """See `CheckpointStore.begin`. None as well when the iteration is there: `put` may have nothing to copy."""
        shelf = self._shelf(run_id, stage)
        with shelf.locked():
            shelf.claim(token)
            if iteration in (manifest.iteration for manifest, _ in shelf.manifests()):
                return None
            shelf.clear_abandoned()
            staging, held = shelf.open_staging(layout.iteration_dir(Path(), iteration).name)
        return FolderUpload(self, (run_id, stage, iteration, token), staging, held, progress)

    def publish_staging(
        self,
        manifest: Manifest,
        save_dir: Path,
        staging: Path,
        progress: Progress | None,
        fed: Callable[[FileEntry], bool] = lambda _entry: False,
    ) -> str:
        """Copy into `staging` what was not fed to it, and make it visible; return the URI. See `put`."""
        shelf = self._shelf(manifest.run_id, manifest.stage)
        self._copy_in(manifest, save_dir, staging, progress, fed)
        with shelf.locked():
            shelf.claim(manifest.token)
            shelf.publish(manifest, staging)
        return self.uri_of(manifest)

    def remove_staging(self, staging: Path, held: int) -> None:
        """Remove a staging folder if it is there still, and let go of it."""
        with contextlib.suppress(StoreError):
            self._disk.remove(staging)
        os.close(held)

    def latest(self, run_id: str, stage: str) -> Manifest | None:
        """See `CheckpointStore.latest`."""
        shelf = self._shelf(run_id, stage)
        pointed = shelf.pointed()
        whole = living([one for one, place in shelf.manifests() if shelf.is_whole(one, place)])
        return pointed if pointed in whole else next(iter(whole), None)

    def list(self, run_id: str, stage: str) -> "builtins.list[Manifest]":
        """See `CheckpointStore.list`. A folder whose manifest is missing, damaged or of another stage is left out."""
        return [manifest for manifest, _ in self._shelf(run_id, stage).manifests()]

    def get(
        self, manifest: Manifest, save_dir: Path, progress: Progress | None = None, *, only: Only | None = None
    ) -> None:
        """See `CheckpointStore.get`."""
        place = self._place_of(manifest)
        check_sizes(place, manifest)  # costs nothing, and saves copying gigabytes of a checkpoint that lost a file

        def fetch(entry: FileEntry, target: Path, stop: threading.Event) -> str:
            return self._disk.copy(place / entry.path, target, stop, progress)

        land(manifest, save_dir, fetch, disk=self._disk, workers=self._workers, only=only)

    def verify(self, manifest: Manifest, progress: Progress | None = None) -> None:
        """See `CheckpointStore.verify`."""
        verify_files(self._place_of(manifest), manifest, progress)

    def set_aside(self, manifest: Manifest, reason: str) -> None:
        """See `CheckpointStore.set_aside`: the folder becomes `iter_0000019.broken-<n>` with a `broken.json`."""
        shelf = self._shelf(manifest.run_id, manifest.stage)
        with shelf.locked():
            if place := shelf.take_out(manifest, "broken"):
                shelf.note_broken(place, reason)

    def delete(self, manifest: Manifest) -> None:
        """See `CheckpointStore.delete`."""
        shelf = self._shelf(manifest.run_id, manifest.stage)
        with shelf.locked():
            if place := shelf.take_out(manifest, "deleted"):
                self._disk.remove(place)

    def _shelf(self, run_id: str, stage: str) -> Shelf:
        check_names(run_id, stage)
        return Shelf(self.root / run_id / stage, self._disk, self._lock_timeout_s)

    def _place_of(self, manifest: Manifest) -> Path:
        place = self._shelf(manifest.run_id, manifest.stage).place_of(manifest)
        if place is None:
            raise TornCheckpoint(f"{self.uri_of(manifest)}: is not in the store any more")
        return place

    def _holds(self, shelf: Shelf, manifest: Manifest) -> bool:
        there = shelf.folder / manifest.name
        same = (place == there and one.files == manifest.files for one, place in shelf.manifests())
        return any(same) and shelf.is_whole(manifest, there)

    def _copy_in(
        self,
        manifest: Manifest,
        save_dir: Path,
        staging: Path,
        progress: Progress | None,
        fed: Callable[[FileEntry], bool],
    ) -> None:
        wanted = [entry for entry in manifest.files if not fed(entry)]
        check_sizes(save_dir, manifest)
        for folder in sorted({(staging / entry.path).parent for entry in manifest.files}):
            self._disk.make_folder(folder)

        def copy(entry: FileEntry, stop: threading.Event) -> None:
            source, target = save_dir / entry.path, staging / entry.path
            self._disk.remove(target)  # half of it may have been fed, or copied by a try before
            check_entry(source, entry, self._disk.copy(source, target, stop, progress))

        in_parallel(copy, wanted, self._workers)
        check_sizes(staging, manifest)
        self._disk.write(staging / "manifest.json", manifest.to_json())
        self._disk.sync(staging)
