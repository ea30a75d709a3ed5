"""The packages of our own environment on a pod: `python -m plugins.images.pod_lock` writes their lock file.

A pod gets what this project needs at run time, in the versions of requirements.lock, without what must be the base
image's: Ray, whose client and head have to be one version, and torch. numpy is our own: slime needs 1.26, and the
locked pyarrow refuses to be imported beside anything older than 2.0 (its metadata does not say so). All is worked out
from pyproject.toml and from what the installed packages say they need; nothing is asked of an index.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from plugins.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LOCK = "requirements.lock"
POD_LOCK = "deployments/image/requirements-pod.lock"
FROM_BASE = frozenset({"ray", "torch", "safetensors"})
"""What slime's image brings (slime v0.3.1, docker/Dockerfile and requirements.txt) and our environment sees there."""

HEAD = """\
# The packages of trainstack's own environment on a pod: those of requirements.lock that it needs at run time, without
# what the base image has. Made by `python -m plugins.images.pod_lock`; installed with --no-deps.
"""
_LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}
PODS = tuple(
    {**_LINUX, "python_version": version, "python_full_version": f"{version}.9", "implementation_name": "cpython"}
    for version in ("3.11", "3.12")
)
"""The environments that markers are judged for: CPython on a Linux host."""


@dataclass(frozen=True)
class Locked:
    """One line of the lock, as written."""

    line: str
    requirement: Requirement


def read_lock(text: str) -> dict[str, list[Locked]]:
    """The lines of a lock by package; a package has several where its version depends on the interpreter."""
    found: dict[str, list[Locked]] = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            try:
                requirement = Requirement(line)
            except InvalidRequirement as error:
                raise UserError(f"{LOCK}: {line!r} is not a requirement: {error}") from error
            found.setdefault(canonicalize_name(requirement.name), []).append(Locked(line, requirement))
    return found


def needed(roots: list[str], environment: dict[str, str]) -> set[str]:
    """Every package that the roots need in this environment, as the installed packages tell.

    UserError for one that is not installed: the development environment must be the lock's.
    """
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        fresh = {(name, extra) for extra in ("", *requirement.extras)} - seen
        if name in FROM_BASE or not fresh:
            continue
        seen |= fresh
        for _, extra in fresh:
            waiting += _needs(name, extra, environment)
    return {name for name, _ in seen}


def _needs(name: str, extra: str, environment: dict[str, str]) -> Iterator[Requirement]:
    try:
        lines = requires(name) or []
    except PackageNotFoundError as error:
        raise UserError(f"{name} is not installed here: `make install` brings what {LOCK} names") from error
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({**environment, "extra": extra}):
            yield requirement


def pod_lock(root: Path = ROOT) -> str:
    """The text of the pods' lock file. UserError where pyproject.toml, the lock and what is installed disagree."""
    roots: list[str] = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    locked = read_lock((root / LOCK).read_text())
    lines = set()
    for environment in PODS:
        for name in needed(roots, environment):
            fitting = [
                item
                for item in locked.get(name, [])
                if item.requirement.marker is None or item.requirement.marker.evaluate(environment)
            ]
            if not fitting:
                raise UserError(f"{name} is needed on a pod with Python {environment['python_version']}, not in {LOCK}")
            lines |= {item.line for item in fitting}
    return HEAD + "".join(f"{line}\n" for line in sorted(lines))


def main() -> int:
    """Write the lock file."""
    text = pod_lock()
    (ROOT / POD_LOCK).write_text(text)
    print(f"{POD_LOCK}: {text.count('==')} packages", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
