"""What the demo needs of this machine: Python, packages, disk; and the servers and sources that lie on it."""

import importlib.metadata
import shutil
import sys

from blocks.recipe import home
from tasks.local_servers import CODE_ROOT, running
from tasks.prerequisites.finding import Finding

NEEDED_BYTES = 5 * 10**9


def python() -> list[Finding]:
    """The version of Python."""
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info < (3, 13)
    return [Finding("Python", fits, version, "use Python 3.11 or 3.12", required=True)]


def prefect() -> list[Finding]:
    """Prefect, and the fastapi that its server starts with."""
    versions = importlib.metadata.version("prefect"), importlib.metadata.version("fastapi")
    fits = tuple(map(int, versions[1].split(".")[:2])) < (0, 151)
    remedy = "pip install -r requirements.lock (fastapi must be < 0.151)"
    return [Finding("Prefect server", fits, "prefect {}, fastapi {}".format(*versions), remedy, required=True)]


def torch() -> list[Finding]:
    """The stand-in trainer's torch."""
    try:
        return [Finding("torch", True, importlib.metadata.version("torch"), required=True)]
    except importlib.metadata.PackageNotFoundError:
        remedy = "pip install 'trainstack[laptop]', for tinyslime only"
        return [Finding("torch", False, "not installed", remedy, required=True)]


def disk() -> list[Finding]:
    """Room for runs and stores."""
    place = home()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    remedy = f"free some space, or set TRAINSTACK_DIR to another disk (now {home()})"
    return [Finding("disk", free > NEEDED_BYTES, f"{free / 1e9:.0f} GB free at {place}", remedy, required=True)]


def servers() -> list[Finding]:
    """Which of our local servers run; none has to."""
    names = [name for name in ("prefect", "emulator", "worker") if running(name)]
    return [Finding("local servers", True, ", ".join(names) or "none running (they start when needed)")]


def slime() -> list[Finding]:
    """Upstream slime beside this code."""
    there = (CODE_ROOT / "slime" / "train.py").exists()
    words = "found" if there else "not checked out"
    return [Finding("slime checkout", there, words, "git submodule update --init", needed_for="train.py")]
