"""One stage of one run in a folder store: its claim, its pointer and its iterations.

    <root>/<run_id>/<stage>/
      claim.json                   {"token"}: the newest attempt; older ones are refused
      latest.json                  {"iteration", "token", "attempt", "manifest" (SHA-256)}: the pointer, written last
      iter_0000019/                appears by one rename, whole
        iter_0000019/common.pt ..., rollout/..., hf/19/...      as in the save dir
        manifest.json
      iter_0000039.broken-1/       set aside, with broken.json saying why
      .incoming/                   copies under way; each folder is locked by its writer

Every change here is made under the lock of the folder; reading needs none, because nothing is changed in place. What
is copied, and when, is the business of `folder.py`.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plugins.checkpoints.disk import PARTIAL, Disk, disk_errors, sha256_of
from plugins.checkpoints.landing import INCOMING
from plugins.checkpoints.manifest import Manifest, check_sizes, living
from plugins.checkpoints.stores.lock import folder_lock, try_lock
from plugins.errors import Fenced, StoreError, TornCheckpoint

log = logging.getLogger(__name__)

_PLACE = re.compile(r"iter_([0-9]{7,})(\.replaced-[0-9a-f]+)?")
_LEFT_BEHIND = re.compile(rf"iter_[0-9]+\.deleted-[0-9]+|\..*{re.escape(PARTIAL)}")


class Shelf:
    """The folder of one stage. Methods that change something need `locked()` around them. They raise StoreError."""

    def __init__(self, folder: Path, disk: Disk, lock_timeout_s: float) -> None:
        self.folder = folder
        self._disk = disk
        self._lock_timeout_s = lock_timeout_s

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the shelf alone; for small steps only, never while data is copied."""
        self._disk.make_folder(self.folder)
        with folder_lock(self.folder, self._lock_timeout_s):
            yield

    def claim(self, token: int) -> None:
        """Remember the token if it is the largest so far. Raises Fenced when a larger one is known."""
        known = self._read_object("claim.json").get("token", -1)
        if not isinstance(known, int):
            raise StoreError(
                f"{self.folder / 'claim.json'}: holds no token: look at it, and remove it if no run is alive"
            )
        if token < known:
            raise Fenced(
                f"{self.folder}: attempt with token {token} was superseded by token {known}: it must stop writing"
            )
        if token > known:
            self._disk.write(self.folder / "claim.json", json.dumps({"token": token}) + "\n")

    def manifests(self) -> list[tuple[Manifest, Path]]:
        """Every checkpoint with its folder, newest first; what has no readable manifest of this stage is left out."""
        return [(manifest, place) for manifest, _, place in self._found()]

    def place_of(self, manifest: Manifest) -> Path | None:
        """The folder that holds this iteration with these bytes, or None."""
        wanted = (manifest.iteration, manifest.files)
        return next((place for other, place in self.manifests() if (other.iteration, other.files) == wanted), None)

    def pointed(self) -> Manifest | None:
        """What the pointer names, if it is still there as it was when the pointer was written."""
        pointer = self._read_object("latest.json")
        wanted = (pointer.get("iteration"), pointer.get("manifest"))
        return next((manifest for manifest, digest, _ in self._found() if (manifest.iteration, digest) == wanted), None)

    def is_whole(self, manifest: Manifest, place: Path) -> bool:
        """Whether every file is there with its size; hashes are for `get` and `verify`."""
        try:
            check_sizes(place, manifest)
        except TornCheckpoint:
            return False
        return True

    def open_staging(self, name: str) -> tuple[Path, int]:
        """A new empty folder for a copy, and a file descriptor that marks it as alive until it is closed."""
        path = self.folder / INCOMING / f"{name}-{secrets.token_hex(4)}"
        self._disk.make_folder(path)
        with disk_errors(path, "lock"):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path, fd

    def publish(self, manifest: Manifest, staging: Path | None) -> None:
        """Make a finished copy visible, then move the pointer. Without `staging` the data is there already."""
        place = self.folder / manifest.name
        if staging is None:
            self._disk.write(place / "manifest.json", manifest.to_json())
        else:
            self._make_room(place)
            self._disk.move(staging, place)
        pointed = self.pointed()
        if pointed is None or pointed.iteration <= manifest.iteration or pointed.token < manifest.token:
            self._point_to(manifest)
        self._remove_replaced()

    def take_out(self, manifest: Manifest, ending: str) -> Path | None:
        """Rename a checkpoint out of the list, the pointer first; return where it is now, None when it was gone."""
        place = self.place_of(manifest)
        if place is None:
            return None
        if self._read_object("latest.json").get("iteration") == manifest.iteration:
            others = [other for other, where in self.manifests() if where != place and self.is_whole(other, where)]
            rest = living(others)
            if rest:
                self._point_to(rest[0])
            else:
                self._disk.remove(self.folder / "latest.json")
        target = self._free_name(manifest.name, ending)
        self._disk.move(place, target)
        return target

    def note_broken(self, place: Path, reason: str) -> None:
        """Leave the reason in a folder that was set aside. A full disk must not stop anyone from setting aside."""
        text = json.dumps({"reason": reason, "at": datetime.now(UTC).isoformat()}, indent=1) + "\n"
        try:
            self._disk.write(place / "broken.json", text)
        except StoreError as error:
            log.warning("%s: set aside (%s), but the reason could not be written: %s", place, reason, error)

    def clear_abandoned(self) -> None:
        """Remove what writers that died left behind; copies of writers that live are locked and stay."""
        incoming = self.folder / INCOMING
        with disk_errors(incoming, "list"):
            copies = sorted(incoming.iterdir()) if incoming.exists() else []
        for path in copies:
            with disk_errors(path, "open"):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if try_lock(fd, path):
                    self._disk.remove(path)
            finally:
                os.close(fd)
        for path in self._children():
            if _LEFT_BEHIND.fullmatch(path.name):
                self._disk.remove(path)
        self._remove_replaced()

    def _found(self) -> list[tuple[Manifest, str, Path]]:
        """See `manifests`; with the SHA-256 of the text of each manifest."""
        places: dict[int, Path] = {}
        for path in self._children():  # sorted: iter_N before iter_N.replaced-x, which counts only when alone
            if match := _PLACE.fullmatch(path.name):
                places.setdefault(int(match[1]), path)
        found = ((self._read_manifest(place), place) for _, place in sorted(places.items(), reverse=True))
        return [(*entry, place) for entry, place in found if entry]

    def _make_room(self, place: Path) -> None:
        """Another copy of the same iteration gives way; until the new one stands, the old one still counts."""
        if not place.exists():
            return
        if self._read_manifest(place):
            self._disk.move(place, place.with_name(f"{place.name}.replaced-{secrets.token_hex(4)}"))
        else:
            target = self._free_name(place.name, "broken")
            self._disk.move(place, target)
            self.note_broken(target, "its manifest was missing or unreadable when the iteration was published again")

    def _remove_replaced(self) -> None:
        for path in self._children():
            match = _PLACE.fullmatch(path.name)
            if match and match[2] and path.with_name(path.name.removesuffix(match[2])).exists():
                self._disk.remove(path)

    def _point_to(self, manifest: Manifest) -> None:
        pointer = {
            "iteration": manifest.iteration,
            "token": manifest.token,
            "attempt": manifest.attempt,
            "manifest": manifest.digest(),
        }
        self._disk.write(self.folder / "latest.json", json.dumps(pointer) + "\n")

    def _free_name(self, name: str, ending: str) -> Path:
        number = 1
        while (target := self.folder / f"{name}.{ending}-{number}").exists():
            number += 1
        return target

    def _children(self) -> list[Path]:
        with disk_errors(self.folder, "list"):
            return sorted(self.folder.iterdir()) if self.folder.exists() else []

    def _read_manifest(self, place: Path) -> tuple[Manifest, str] | None:
        """The manifest and the SHA-256 of its text, or None when it is missing, damaged or of another stage."""
        path = place / "manifest.json"
        try:
            with disk_errors(path, "read"):
                text = path.read_bytes()
            manifest = Manifest.from_json(text, str(path))
        except TornCheckpoint as error:
            log.warning("%s is left out: %s", place, error)
            return None
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return None
            raise
        mine = place.name.partition(".")[0] == manifest.name
        if not mine or self.folder.parts[-2:] != (manifest.run_id, manifest.stage):
            log.warning("%s is left out: its manifest is of %s/%s", place, manifest.run_id, manifest.stage)
            return None
        return manifest, sha256_of(text)

    def _read_object(self, name: str) -> dict[str, Any]:
        """A small JSON object of ours; empty when there is none or it is damaged."""
        path = self.folder / name
        try:
            with disk_errors(path, "read"):
                return dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            log.warning("%s: is no JSON object and is ignored", path)
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        return {}
