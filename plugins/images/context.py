"""The files that a pod image is made of, as one tar archive that is always the same, and the digest that names it.

Only what a pod runs goes in, and of a git checkout only what git tracks, in the state it has on the disk: no virtual
environment, no test, no file that was left lying about with a key in it. Two people with the same files get the same
archive, byte for byte, and so the same tag.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from plugins.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = "deployments/image/Dockerfile"
PARTS = ("flows", "tasks", "blocks", "plugins", "deployments/image", "LICENSE")
"""What the Dockerfile copies, and nothing else."""

TAG_LENGTH = 16


@dataclass(frozen=True)
class Context:
    """A build context. `digest` stands for the files and the build arguments; `untracked` were left out."""

    archive: bytes = field(repr=False)
    arguments: dict[str, str]
    digest: str
    untracked: tuple[str, ...] = ()

    @property
    def tag(self) -> str:
        """The tag of an image that is named after what it is made of."""
        return self.digest[:TAG_LENGTH]


def context(root: Path = ROOT, arguments: Mapping[str, str] | None = None) -> Context:
    """Gather the context from a git checkout, or from unpacked sources, which no git tracks.

    arguments: of the build (`ARG`), part of the digest. UserError: git does not answer, a file is missing that the
    build cannot do without, or one of them is a link.
    """
    if (root / ".git").exists():
        files, untracked = _git(root, "--cached"), _git(root, "--others", "--exclude-standard")
    else:
        files, untracked = list(_unpacked(root)), []
    archive = _archive(root, files)
    given = dict(sorted((arguments or {}).items()))
    digest = hashlib.sha256(json.dumps(given).encode() + b"\0" + archive).hexdigest()
    return Context(archive, given, digest, tuple(untracked))


def default_arguments(root: Path = ROOT) -> dict[str, str]:
    """The build arguments with the values that the Dockerfile gives them."""
    words = (line.split(maxsplit=1) for line in _read(root / DOCKERFILE).splitlines())
    pairs = (rest[0].partition("=") for first, *rest in filter(None, words) if first == "ARG" and rest)
    return {name: value for name, _, value in pairs}


def _git(root: Path, *which: str) -> list[str]:
    argv = ["git", "-C", str(root), "ls-files", "-z", *which, "--", *PARTS]
    try:
        done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"git cannot be asked which files of {root} belong to the image: {error}") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise UserError(f"git does not say which files of {root} belong to the image: {said}")
    return sorted(filter(None, done.stdout.decode().split("\0")))


def _unpacked(root: Path) -> Iterator[str]:
    for part in PARTS:
        top = root / part
        for file in [top] if top.is_file() else sorted(top.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                yield file.relative_to(root).as_posix()


def _archive(root: Path, files: list[str]) -> bytes:
    """Names in order, no times, no owners, and of the mode only whether a file can be run."""
    present = [name for name in files if (root / name).exists() or (root / name).is_symlink()]  # else deleted here
    if missing := [part for part in (*PARTS, DOCKERFILE) if not any(_within(name, part) for name in present)]:
        raise UserError(f"the image cannot be built: {', '.join(missing)} is not in {root}; use a full checkout")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(present):
            path = root / name
            if path.is_symlink() or not path.is_file():
                raise UserError(f"{path} is not a plain file; the image takes plain files only")
            data = path.read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755 if path.stat().st_mode & 0o100 else 0o644
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}/")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); use a full checkout") from error
