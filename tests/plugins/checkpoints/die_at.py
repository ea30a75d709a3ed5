"""Run one action again and again in forked children, each dying one file step later than the one before.

    python die_at.py ACTION TEMPLATE WORK

Copies TEMPLATE (holding `store/` and `save/`) to WORK/<k>, does ACTION there, and ends the child by `os._exit` before
its k-th step; the last child gets through. Prints the number of children. A process of its own, because forking is safe
only where there is one thread.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from plugins.checkpoints.disk import Disk
from plugins.checkpoints.manifest import read_local
from plugins.checkpoints.restore import restore
from plugins.checkpoints.retention import prune_local, prune_store
from plugins.checkpoints.seal import seal
from plugins.checkpoints.stores.folder import FolderStore

RUN, STAGE, DIED = "run-1", "sft", 77


def act(action: str, room: Path, disk: Disk) -> None:
    save_dir = room / "save"
    store = FolderStore(room / "store", disk=disk, workers=2)
    if action == "seal":
        seal(save_dir, 39, run_id=RUN, stage=STAGE, attempt=1, token=1, export=True, disk=disk, workers=2)
    elif action == "put":
        store.put(read_local(save_dir, 39), save_dir)
    elif action == "restore":
        restore(store, RUN, STAGE, save_dir, disk=disk)
    elif action == "set_aside":
        store.set_aside(store.list(RUN, STAGE)[0], "to see")
    elif action == "prune_store":
        prune_store(store, RUN, STAGE, 1)
    elif action == "prune_local":
        prune_local(save_dir, 1, {9, 19, 39}, disk=disk)
    else:
        raise SystemExit(f"no action {action}")


def die_before(step: int) -> Disk:
    left = [step]

    def count(_step: str, _path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            os._exit(DIED)

    return Disk(count, chunk_bytes=256)


def main(action: str, template: Path, work: Path) -> int:
    for step in range(1000):
        room = work / str(step)
        shutil.copytree(template, room)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            try:
                act(action, room, die_before(step))
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return step + 1
        if code != DIED:
            raise SystemExit(f"step {step} of {action} ended with {code}")
    raise SystemExit("it never got through")


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
