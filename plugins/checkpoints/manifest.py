"""What a sealed checkpoint is: its files with sizes and hashes, and where it came from.

A manifest is written when the checkpoint was proved complete (`seal.py`), travels with it through every store, and is
what every copy is checked against. Locally it lies beside the folder of the iteration, never in it, because the folder
belongs to the trainer:

    <save_dir>/iter_0000019/                   written by the trainer
    <save_dir>/iter_0000019.manifest.json      written by us: this iteration is sealed
"""

import contextlib
import json
import re
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from plugins.checkpoints.disk import Progress, hash_file, in_parallel, sha256_of
from plugins.errors import StoreError, TornCheckpoint, UserError
from plugins.slime import layout

FORMAT: Final = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


def check_names(run_id: str, stage: str) -> None:
    """Refuse names that cannot be a folder, a pod and a URL at once. Raises UserError."""
    for what, name in (("run id", run_id), ("stage", stage)):
        if not _NAME.fullmatch(name):
            raise UserError(f"{what} {name!r}: use 1 to 40 of a-z, 0-9 and '-', starting with a letter or digit")


class FileEntry(BaseModel):
    """One file: path relative to the save dir with '/', size in bytes, SHA-256 in hex."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """A sealed checkpoint. Two manifests are of the same bytes when their `files` are equal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    run_id: str = Field(pattern=rf"^{_NAME.pattern}$")
    stage: str = Field(pattern=rf"^{_NAME.pattern}$")
    iteration: int = Field(ge=0)
    attempt: int = Field(ge=1)
    token: int = Field(ge=0, description="fencing token of the attempt; a store refuses one older than it knows")
    parent: str | None = Field(default=None, description="URI of the checkpoint this training started from")
    kind: Literal["slime", "plain"]
    files: tuple[FileEntry, ...] = Field(min_length=1)
    created_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    versions: dict[str, str] = Field(default_factory=dict)
    lineage: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, FiniteFloat] = Field(default_factory=dict, description="figures of this iteration: loss, reward")

    @model_validator(mode="after")
    def _files_belong_to_the_iteration(self) -> "Manifest":
        """A manifest comes from a stranger's machine: it may name the files of its iteration and nothing else."""
        root = (f"{self.name}/", f"{layout.export_dir(Path(), self.iteration)}/")
        cursor = str(layout.dataset_state_file(Path(), self.iteration))
        for path in (entry.path for entry in self.files):
            parts = path.split("/")
            if {"", ".", ".."} & set(parts) or "\0" in path or not (path.startswith(root) or path == cursor):
                raise ValueError(f"{path!r} is no file of iteration {self.iteration}")
        if len({entry.path for entry in self.files}) != len(self.files):
            raise ValueError("a file is named twice")
        return self

    @property
    def name(self) -> str:
        """Name of the iteration's folder, the same in the save dir and in every store."""
        return layout.iteration_dir(Path(), self.iteration).name

    @property
    def size_bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.size_bytes for entry in self.files)

    @property
    def export_path(self) -> str | None:
        """Path of the Hugging Face folder relative to the save dir, when the checkpoint holds one."""
        folder = str(layout.export_dir(Path(), self.iteration))
        return folder if any(entry.path.startswith(f"{folder}/") for entry in self.files) else None

    def to_json(self) -> str:
        """The text of manifest.json; the same manifest always gives the same text."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"

    def digest(self) -> str:
        """SHA-256 of that text: what a pointer holds."""
        return sha256_of(self.to_json().encode())

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "manifest") -> "Manifest":
        """Read manifest.json. `where` names it in errors.

        Raises:
            TornCheckpoint: it is damaged.
            StoreError: a newer trainstack wrote it.
        """
        try:
            value = json.loads(text)
            refuse_newer(value, FORMAT, where)
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise TornCheckpoint(f"{where}: is no manifest ({key}: {first['msg']})") from error
        except (ValueError, RecursionError) as error:
            raise TornCheckpoint(f"{where}: is not valid JSON ({error})") from error


def refuse_newer(value: object, known: int, where: str) -> None:
    """Raise StoreError when the `format` of something read from JSON is newer than the one that is `known`."""
    if isinstance(value, dict) and isinstance(found := value.get("format"), int) and found > known:
        raise StoreError(f"{where}: has format {found}, this trainstack reads {known}: install a newer one")


def superseded(manifest: Manifest, others: Iterable[Manifest]) -> bool:
    """Whether a later attempt published an earlier iteration: it did not start from this one, so its line was given up.

    That happens where a store was away while the next attempt went on from an older checkpoint of another store.
    """
    return any(other.token > manifest.token and other.iteration <= manifest.iteration for other in others)


def living(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Those on the line that the run goes on from, in the order given."""
    return [manifest for manifest in manifests if not superseded(manifest, manifests)]


def local_manifest_file(save_dir: Path, iteration: int) -> Path:
    """Where the manifest of a sealed local checkpoint lies."""
    folder = layout.iteration_dir(save_dir, iteration)
    return folder.with_name(f"{folder.name}.manifest.json")


def read_local(save_dir: Path, iteration: int) -> Manifest | None:
    """The manifest of a local checkpoint, or None when it was never sealed (or its manifest is unreadable)."""
    path = local_manifest_file(save_dir, iteration)
    with contextlib.suppress(OSError, StoreError):
        manifest = Manifest.from_json(path.read_bytes(), str(path))
        return manifest if manifest.iteration == iteration else None
    return None


def verify_files(folder: Path, manifest: Manifest, progress: Progress | None = None) -> None:
    """Read every file under `folder` and compare it with the manifest; sizes first, because they cost nothing.

    Raises:
        TornCheckpoint: a file is missing, or is not what was sealed; names it.
        StoreError: a file cannot be read.
    """
    check_sizes(folder, manifest)

    def compare(entry: FileEntry, stop: threading.Event) -> None:
        path = folder / entry.path
        _, digest = hash_file(path, stop, (lambda _offset, chunk: progress(len(chunk))) if progress else None)
        check_entry(path, entry, digest)

    in_parallel(compare, manifest.files)


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raise TornCheckpoint when a file is missing under `folder` or has another size than was sealed."""
    for entry in manifest.files:
        path = folder / entry.path
        try:
            size_bytes = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            raise TornCheckpoint(f"{path}: is missing from sealed iteration {manifest.iteration}") from None
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror}): check owner, rights and disk") from error
        if size_bytes != entry.size_bytes:
            raise TornCheckpoint(f"{path}: has {size_bytes} bytes, {entry.size_bytes} were sealed")


def check_entry(path: Path, entry: FileEntry, digest: str) -> None:
    """Raise TornCheckpoint when the bytes read from `path` are not those that were sealed."""
    check_hash(path, entry.sha256, digest)


def check_hash(path: Path, sealed: str, digest: str) -> None:
    """`check_entry` for who knows no more of the file than its SHA-256 (hex)."""
    if digest != sealed:
        raise TornCheckpoint(f"{path}: its content changed after it was sealed (hash {digest[:12]}..)")
