"""The parts of the product that the relay suite goes through, and each of its guards left out.

A suite that cannot fail proves nothing: `test_guards.py` runs it with these and wants breaches.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.checkpoints.disk import sha256_of
from plugins.checkpoints.landing import Only, land
from plugins.checkpoints.manifest import FileEntry, Manifest, local_manifest_file
from plugins.checkpoints.restore import restore
from plugins.checkpoints.seal import seal
from plugins.checkpoints.stores.folder import FolderStore
from plugins.checkpoints.stores.shelf import Shelf
from plugins.slime import layout


@dataclass(frozen=True)
class Guards:
    """What seals, restores and stores (folder only); the product's own by default."""

    seal: Callable[..., Manifest] = seal
    restore: Callable[..., Manifest | None] = restore
    folder: Callable[..., FolderStore] = FolderStore


def seal_anything(
    save_dir: Path, iteration: int, *, export: bool, workers: int, sink: Any, disk: Any, **who: Any
) -> Any:
    """Seals whatever files of an iteration are there, complete or not."""
    found = []
    for path in layout.checkpoint_files(save_dir, iteration, kind="slime"):
        content = (save_dir / path).read_bytes()
        for chunk in (content, b"") if content else (b"",):
            sink(path.as_posix(), 0 if chunk else len(content), memoryview(chunk))
        found.append(FileEntry(path=path.as_posix(), size_bytes=len(content), sha256=sha256_of(content)))
    manifest = Manifest(iteration=iteration, kind="slime", files=tuple(found), **who)
    disk.write(local_manifest_file(save_dir, iteration), manifest.to_json())
    return manifest


class Unverified(FolderStore):
    """Brings back what lies there, without comparing it with the hashes that were sealed."""

    def get(self, manifest: Manifest, save_dir: Path, progress: Any = None, *, only: Only | None = None) -> None:
        place = self._place_of(manifest)

        def fetch(entry: FileEntry, target: Path, stop: threading.Event) -> str:
            self._disk.copy(place / entry.path, target, stop, progress)
            return entry.sha256

        land(manifest, save_dir, fetch, disk=self._disk, workers=self._workers, only=only)


class PointerFirst(FolderStore):
    """Makes a checkpoint visible before its data has arrived."""

    def publish_staging(
        self,
        manifest: Manifest,
        save_dir: Path,
        staging: Path,
        progress: Any,
        fed: Callable[[FileEntry], bool] = lambda _entry: False,
    ) -> str:
        shelf = self._shelf(manifest.run_id, manifest.stage)
        self._disk.write(staging / "manifest.json", manifest.to_json())
        with shelf.locked():
            shelf.claim(manifest.token)
            shelf.publish(manifest, staging)
        place = shelf.folder / manifest.name
        self._copy_in(manifest, save_dir, place, progress, fed)
        return self.uri_of(manifest)


class _Heedless(Shelf):
    def claim(self, token: int) -> None:
        known = self._read_object("claim.json").get("token", -1)
        super().claim(max(token, known))


class Unclaimed(FolderStore):
    """Publishes whatever attempt asks: only `claim` itself still refuses an older one."""

    def put(self, manifest: Manifest, save_dir: Path, progress: Any = None) -> str:
        return _Publishing(self.root, disk=self._disk, workers=self._workers).put(manifest, save_dir, progress)

    def begin(self, *_: Any) -> None:
        return None


class _Publishing(FolderStore):
    def _shelf(self, run_id: str, stage: str) -> Shelf:
        return _Heedless(self.root / run_id / stage, self._disk, self._lock_timeout_s)


class _OneLine:
    """A store in which every checkpoint seems to come from the same attempt."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def list(self, run_id: str, stage: str) -> list[Manifest]:
        return [one.model_copy(update={"token": 0}) for one in self._store.list(run_id, stage)]

    def get(self, manifest: Manifest, *arguments: Any, **more: Any) -> None:
        self._store.get(self.real(manifest), *arguments, **more)

    def set_aside(self, manifest: Manifest, reason: str) -> None:
        self._store.set_aside(self.real(manifest), reason)

    def real(self, manifest: Manifest) -> Manifest:
        known = self._store.list(manifest.run_id, manifest.stage)
        return next((one for one in known if one.files == manifest.files), manifest)


def restore_any_line(store: Any, *arguments: Any, **more: Any) -> Manifest | None:
    """`restore` that does not leave out what a later attempt has left behind."""
    seen = _OneLine(store)
    found = restore(seen, *arguments, **more)
    return seen.real(found) if found else None


LEFT_OUT = {
    "nothing": Guards(),
    "completeness": Guards(seal=seal_anything),
    "hashes": Guards(folder=Unverified),
    "pointer last": Guards(folder=PointerFirst),
    "claim": Guards(folder=Unclaimed),
    "superseded": Guards(restore=restore_any_line),
}
