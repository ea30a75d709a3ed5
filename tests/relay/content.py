"""What the trainer of the relay suite writes, byte for byte: the truth that no manifest and no hash of ours can change.

A checkpoint is known by its iteration and by the attempt that trained it: `Ident(7, "a3")`.
"""

import random
from pathlib import Path
from typing import NamedTuple

from plugins.checkpoints.disk import sha256_of
from plugins.checkpoints.manifest import Manifest
from plugins.slime import layout
from tests.plugins.checkpoints.conftest import Trainer
from tests.relay.death import Death

RUN, STAGE = "run-1", "sft"
LATE = (".metadata", "metadata.json", layout.TRACKER)


class Ident(NamedTuple):
    """An iteration, and who trained it."""

    iteration: int
    seed: str


def files_of(save_dir: Path, ident: Ident, *, asynchronous: bool = False) -> list[tuple[Path, bytes]]:
    """Paths and bytes in the order they are written; with --async-save what makes it a checkpoint comes last."""
    files = Trainer(save_dir).files(ident.iteration, ident.seed, export=True)
    return sorted(files, key=lambda one: one[0].name in LATE) if asynchronous else files


def size_of(ident: Ident) -> int:
    """Bytes of one save."""
    return sum(len(content) for _, content in files_of(Path("/"), ident))


def ends_of(ident: Ident, *, asynchronous: bool = False) -> list[int]:
    """Bytes written when each file ends."""
    sizes = [len(content) for _, content in files_of(Path("/"), ident, asynchronous=asynchronous)]
    return [sum(sizes[: number + 1]) for number in range(len(sizes))]


def write(save_dir: Path, ident: Ident, death: Death, rng: random.Random, *, asynchronous: bool) -> bool:
    """Write a save up to the byte where the writer dies; whether it came to the end."""
    for path, content in files_of(save_dir, ident, asynchronous=asynchronous):
        allowed = death.bytes_left(len(content))
        if allowed or content == b"" or rng.random() < 0.5:  # killed after the file was made, or before
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content[:allowed])
        if allowed < len(content):
            death.last = f"byte {allowed} of {path.name}"
            return False
    return True


def is_whole(save_dir: Path, ident: Ident) -> bool:
    """Whether every file of a checkpoint lies there as it was written; the tracker is no part of it."""
    return not flaw(save_dir, ident)


def flaw(save_dir: Path, ident: Ident) -> str:
    """The first file that is not as it was written; empty when there is none."""
    for path, content in files_of(save_dir, ident):
        if path.name != layout.TRACKER and not (path.is_file() and path.read_bytes() == content):
            return f"{path.relative_to(save_dir)} {'differs' if path.exists() else 'is missing'}"
    return ""


def ident_of(manifest: Manifest, seeds: set[str]) -> Ident | None:
    """Whose checkpoint a manifest describes; None when it is nobody's: sealed over torn files."""
    described = {entry.path: entry.sha256 for entry in manifest.files}
    for seed in seeds:
        ident = Ident(manifest.iteration, seed)
        true = {
            path.relative_to("/").as_posix(): sha256_of(content)
            for path, content in files_of(Path("/"), ident)
            if path.name != layout.TRACKER
        }
        if described == true:
            return ident
    return None


def found_in(save_dir: Path, iteration: int, seeds: set[str]) -> Ident | None:
    """Whose checkpoint lies in a save dir; None when it is not whole."""
    return next((Ident(iteration, seed) for seed in seeds if is_whole(save_dir, Ident(iteration, seed))), None)
