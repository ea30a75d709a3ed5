"""Lets a script that owns its machine run on a pod that it does not own.

slime's scripts, and so the commands of the older stack, begin with `pkill -9 python; ray stop --force`, start a Ray and
submit a job to it (slime v0.3.1 scripts/run-qwen3-4B.sh:3-11, 133-161). On a pod that would end the worker, the stage
that watches the training, and the Ray that the command itself runs in. So such a command gets a folder of stand-ins
first in its PATH:

    the stage's Ray job
      shim.py enter <folder> bash -c <command>     makes the folder, then becomes the command
        pkill, killall, ray start, ray stop ...    one line in the log, status 0
        ray job submit ... -- python3 train.py     becomes python3 train.py, with the variables of --runtime-env-json
        ray status, ray job list ...               the real ray

What is submitted is thus part of the stage's own job: it joins the pod's Ray, ends with the stage, and its exit status
is the script's. `command.py` refuses what goes past a PATH.
"""

import sys
from dataclasses import replace
from pathlib import Path

from plugins.slime.launch import Launch

SHIM = Path(__file__).with_name("shim.py")


def under_shims(launch: Launch, folder: Path) -> Launch:
    """The same command under the stand-ins, which are put into `folder` when it starts. Touches nothing now."""
    return replace(launch, argv=[sys.executable, "-I", str(SHIM), "enter", str(folder), *launch.argv])
