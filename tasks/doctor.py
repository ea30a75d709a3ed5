"""What this machine has for real runs: one check a prerequisite, each with its remedy. Changes and rents nothing."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blocks.recipe import home
from plugins.errors import TrainstackError
from tasks.local_servers import running

NEEDED_BYTES = 5 * 10**9


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table. `required`: also the demo on this machine cannot do without it."""

    what: str
    ok: bool
    found: str
    remedy: str = ""
    required: bool = False


def examine() -> list[Finding]:
    """Every check, in the order of a newcomer's path."""
    checks: list[Callable[[], Finding]] = [_python, _prefect, _torch, _disk, _servers, _lium_key, _ssh_key, _slime]
    return [check() for check in checks]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", (3, 11) <= sys.version_info < (3, 13), version, "use Python 3.11 or 3.12", required=True)


def _prefect() -> Finding:
    prefect, fastapi = importlib.metadata.version("prefect"), importlib.metadata.version("fastapi")
    fits = tuple(map(int, fastapi.split(".")[:2])) < (0, 151)
    words = f"prefect {prefect}, fastapi {fastapi}"
    return Finding(
        "Prefect server", fits, words, "pip install -r requirements.lock (fastapi must be < 0.151)", required=True
    )


def _torch() -> Finding:
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            "torch", False, "not installed", "pip install 'trainstack[laptop]', for tinyslime only", required=True
        )
    return Finding("torch", True, version, required=True)


def _disk() -> Finding:
    place = home()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    remedy = f"free some space, or set TRAINSTACK_DIR to another disk (now {home()})"
    return Finding("disk", free > NEEDED_BYTES, f"{free / 1e9:.0f} GB free at {place}", remedy, required=True)


def _servers() -> Finding:
    names = [name for name in ("prefect", "emulator", "worker") if running(name)]
    return Finding("local servers", True, ", ".join(names) or "none running (they start when needed)")


def _lium_key() -> Finding:
    there = bool(os.environ.get("LIUM_API_KEY")) or (Path.home() / ".lium" / "config.ini").exists()
    return Finding(
        "Lium API key", there, "found" if there else "none", "`lium init`, or set LIUM_API_KEY; not for the demo"
    )


def _ssh_key() -> Finding:
    from tasks.lium_account import own_ssh_key

    try:
        return Finding("SSH key pair", True, str(own_ssh_key()))
    except TrainstackError as error:
        return Finding("SSH key pair", False, "none", f"{error} Not for the demo.")


def _slime() -> Finding:
    there = (Path(__file__).resolve().parent.parent / "slime" / "train.py").exists()
    remedy = "git submodule update --init; only for train.py and train_async.py here"
    return Finding("slime checkout", there, "found" if there else "not checked out", remedy)
