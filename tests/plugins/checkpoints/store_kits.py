"""One kit for each store: opens it, counts or stops its operations, and damages what it holds.

A new store gets a kit here and a line in `MAKERS` of `test_store_contract.py`, which then says whether it is one.
"""

import functools
import re
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from plugins.checkpoints.disk import Disk
from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.stores import CheckpointStore
from plugins.checkpoints.stores.folder import FolderStore
from plugins.checkpoints.stores.objects import ObjectStore
from plugins.checkpoints.stores.s3 import S3Backend
from plugins.checkpoints.stores.s3_client import S3Client, S3Place
from plugins.checkpoints.stores.stage import Stage
from plugins.checkpoints.stores.volume import VolumeBackend

RUN, STAGE = "run-1", "sft"
Before = Callable[[str], None]
"""Called before each operation with what it is; what it raises comes instead of the operation."""

_TEXTS = re.compile(r".*(state(\.\d+)?|manifest(\.[0-9a-f]{12})?|broken|claim|latest)\.json|.*\.probe-.*")


class Kit(Protocol):
    """The same store again and again, in a place of its own."""

    def open(self, before: Before | None = None) -> CheckpointStore:
        """As another process would open it."""

    def is_open(self, operation: str) -> bool:
        """Whether another writer can do something at this moment: not where the store holds a lock."""

    def sends_data(self, operation: str) -> bool:
        """Whether an operation, as `before` was told of it, writes bytes of a checkpoint's files."""

    def names(self) -> set[str]:
        """Everything that is in the store: paths or keys, without what is there for the store itself."""

    def key(self, manifest: Manifest, path: str) -> str:
        """Name of a file of a checkpoint that is listed; "manifest.json" is the manifest."""

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, content: bytes | None) -> None:
        """Damage something behind the store's back; None removes it."""

    def damage_state(self, content: bytes | None) -> None:
        """Damage or remove what names the newest checkpoint."""


class FolderKit:
    def __init__(self, root: Path) -> None:
        self.root = root / "store"

    def open(self, before: Before | None = None) -> CheckpointStore:
        hook = (lambda step, path: before(f"{step} {path}")) if before else None
        return FolderStore(self.root, disk=Disk(hook, chunk_bytes=2048), workers=2)

    def is_open(self, operation: str) -> bool:
        return operation.startswith(("create ", "append ", "fsync ", "sync ")) and "/.incoming/" in operation

    def sends_data(self, operation: str) -> bool:
        return operation.startswith("create ")

    def names(self) -> set[str]:
        paths = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        return {path for path in paths if not path.endswith("/.lock")}

    def key(self, manifest: Manifest, path: str) -> str:
        return f"{RUN}/{STAGE}/{manifest.name}/{path}"

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes | None) -> None:
        (self.root / name).unlink() if content is None else (self.root / name).write_bytes(content)

    def damage_state(self, content: bytes | None) -> None:
        self.write(f"{RUN}/{STAGE}/latest.json", content)


class _ObjectKit(ABC):
    """What the stores over a backend have in common."""

    def open(self, before: Before | None = None) -> CheckpointStore:
        return ObjectStore(self.backend(before), workers=2, sleep=lambda _s: None)

    @abstractmethod
    def backend(self, before: Before | None = None) -> Any:
        """As another process would make it; `before` as in `open`."""

    def is_open(self, operation: str) -> bool:
        return True

    def names(self) -> set[str]:
        return {item.key for item in self.backend().list("", unfinished=True)}

    def key(self, manifest: Manifest, path: str) -> str:
        stage = Stage(self.backend(), RUN, STAGE)
        entry = stage.find(stage.read()[0], manifest)
        assert entry
        return f"{RUN}/{STAGE}/{entry.place}/{entry.file if path == 'manifest.json' else path}"


class VolumeKit(_ObjectKit):
    def __init__(self, root: Path) -> None:
        self.root = root / "volume"
        self.root.mkdir()

    def backend(self, before: Before | None = None) -> Any:
        hook = (lambda step, path: before(f"{step} {path}")) if before else None
        return VolumeBackend(self.root, before=hook, chunk_bytes=2048, sleep=lambda _s: None)

    def sends_data(self, operation: str) -> bool:
        return operation.startswith("create ") and not _TEXTS.fullmatch(operation)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes | None) -> None:
        (self.root / name).unlink() if content is None else (self.root / name).write_bytes(content)

    def damage_state(self, content: bytes | None) -> None:
        for path in (self.root / RUN / STAGE).glob("state.*.json"):
            path.unlink() if content is None else path.write_bytes(content)


class S3Kit(_ObjectKit):
    """A bucket of its own on a server that is already running."""

    def __init__(self, endpoint: str, **settings: Any) -> None:
        self.place = S3Place(f"bucket-{secrets.token_hex(6)}", "some/prefix", endpoint, "us-east-1")
        self.settings = settings
        self.boto = _boto(endpoint)
        self.boto.create_bucket(Bucket=self.place.bucket)

    def backend(self, before: Before | None = None) -> Any:
        return S3Backend(
            self.client(before), sleep=lambda _s: None, **{"settle_s": 0.0, "conditional": True, **self.settings}
        )

    def client(self, before: Before | None = None) -> S3Client:
        client = S3Client(self.place, attempts=1)
        client._boto = Announced(self.boto, before) if before else self.boto
        return client

    def sends_data(self, operation: str) -> bool:
        return operation.startswith(("put_object ", "upload_part ")) and not _TEXTS.fullmatch(operation)

    def read(self, name: str) -> bytes:
        found = self.client().read(name)
        assert found
        return found[0]

    def write(self, name: str, content: bytes | None) -> None:
        self.client().remove([name]) if content is None else self.client().put(name, content)

    def damage_state(self, content: bytes | None) -> None:
        self.write(f"{RUN}/{STAGE}/state.json", content)


@functools.cache
def _boto(endpoint: str) -> Any:
    """Making one takes a quarter of a second."""
    return S3Client(S3Place("any", "", endpoint, "us-east-1"), attempts=1)._client()


class Announced:
    """A boto3 client that says what it is about to do."""

    def __init__(self, boto: Any, before: Before) -> None:
        self._boto, self._before = boto, before

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._boto, name)
        if name in ("meta", "exceptions"):
            return real
        if name == "get_paginator":
            return lambda verb: Announced(real(verb), self._before)

        def call(**arguments: Any) -> Any:
            self._before(f"{name} {arguments.get('Key') or arguments.get('Prefix', '')}")
            return real(**arguments)

        return call


def copy_of(kit: FolderKit | VolumeKit, to: Path) -> None:
    """The folder of a store, copied."""
    shutil.copytree(kit.root, to)
