"""Run by our interpreter while the image is built: what a pod starts can be imported, and slime's python3 is as it was.

The working directory is not ours, as in a stage: `flows` and `tasks` must be found all the same, and be ours
(Megatron-LM has a top-level `tasks` too).
"""

import importlib
import shutil
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
STARTED = (
    "flows.stage",
    "flows.cli",
    "tasks.push_files",
    "plugins.lium.supervisor",
    "plugins.rayjobs.head",
    "plugins.rayjobs.worker",
    "plugins.rayjobs.guard",
    "plugins.http_env.server",
)
IMPORTED_LATE = ("boto3", "huggingface_hub", "asyncssh", "matplotlib.figure", "pyarrow.parquet", "numpy")
FROM_BASE = ("ray.job_submission",)


def main() -> None:
    """Import what a pod starts; SystemExit with what is wrong."""
    for name in STARTED:
        file = Path(importlib.import_module(name).__file__ or "")
        if not file.is_relative_to(HOME):
            raise SystemExit(f"{name} is taken from {file}, not from {HOME}: PYTHONPATH of the base is in the way")
    for name in IMPORTED_LATE:
        file = Path(importlib.import_module(name).__file__ or "")
        if not file.is_relative_to(sys.prefix):
            raise SystemExit(f"{name} is taken from {file}, not from our own environment: see requirements-pod.lock")
    for name in FROM_BASE:
        file = Path(importlib.import_module(name).__file__ or "")
        if file.is_relative_to(sys.prefix):
            raise SystemExit(f"{name} is in our own environment; it must be the base's: see requirements-pod.lock")
    for command in ("python", "python3"):
        found = shutil.which(command)
        if found and Path(found).is_relative_to(HOME):
            raise SystemExit(f"{command} on PATH is ours ({found}); it must stay slime's")


if __name__ == "__main__":
    main()
