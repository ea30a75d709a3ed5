"""The stores of the relay suite, each opened as one process opens it: one thread, so that a seed gives the same steps.

They are the kits of the store contract, which also know how to damage what a store holds.
"""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plugins.checkpoints.disk import Disk
from plugins.checkpoints.stores import CheckpointStore
from plugins.checkpoints.stores.folder import FolderStore
from plugins.checkpoints.stores.objects import ObjectStore
from plugins.checkpoints.stores.s3_send import Sender
from plugins.checkpoints.stores.volume import VolumeBackend
from tests.plugins.checkpoints.store_kits import Before, FolderKit, S3Kit, VolumeKit, _ObjectKit

FORKED = ("folder", "volume")
KINDS = ("folder", "volume", "s3", "hub")
CHUNK_BYTES = 128
PART_BYTES = 1024
FolderType = Callable[..., FolderStore]


def _hook(before: Before | None) -> Callable[[str, Path], None] | None:
    return (lambda step, path: before(f"{step} {path}")) if before else None


class FolderWorld(FolderKit):
    """store: the class to open, for a suite with a guard left out."""

    def __init__(self, root: Path, store: FolderType = FolderStore) -> None:
        super().__init__(root)
        self._store = store

    def open(self, before: Before | None = None) -> CheckpointStore:
        return self._store(self.root, disk=Disk(_hook(before), chunk_bytes=CHUNK_BYTES), workers=1)


class _ObjectWorld(_ObjectKit):
    def open(self, before: Before | None = None) -> CheckpointStore:
        backend, disk = self.backend(before), Disk(_hook(before), chunk_bytes=CHUNK_BYTES)
        return ObjectStore(backend, disk=disk, workers=1, sleep=lambda _s: None)


class VolumeWorld(_ObjectWorld, VolumeKit):
    """settle: instead of the second that a volume gives the writer of a state that is not whole yet."""

    settle: Callable[[float], None] | None = None

    def backend(self, before: Before | None = None) -> Any:
        more = {"chunk_bytes": CHUNK_BYTES, "workers": 1, "sleep": self.settle or (lambda _s: None)}
        return VolumeBackend(self.root, before=_hook(before), **more)


class S3World(_ObjectWorld, S3Kit):
    def backend(self, before: Before | None = None) -> Any:
        backend = super().backend(before)
        backend._sender = Sender(backend._client, backend._arrived, files=1, senders=1, part_bytes=PART_BYTES)
        return backend


def make_world(kind: str, root: Path, store: FolderType = FolderStore) -> Any:
    """A new empty store of this kind; the servers of S3 and the Hub run in this process."""
    assert kind in KINDS
    place = root / f"{kind}-{secrets.token_hex(4)}"
    place.mkdir(parents=True)
    if kind == "folder":
        return FolderWorld(place, store)
    if kind == "volume":
        return VolumeWorld(place)
    if kind == "s3":
        from tests.plugins.checkpoints.s3_server import s3_server

        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            os.environ.setdefault(name, "testing")
        return S3World(s3_server(), part_bytes=PART_BYTES, feed_part_bytes=PART_BYTES)
    from tests.plugins.checkpoints.hub_kit import HubKit

    class HubWorld(_ObjectWorld, HubKit):
        pass

    return HubWorld(place)
