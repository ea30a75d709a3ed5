"""Run one action again and again in forked children, each dying one file step later than the one before.

    python die_at.py STORE ACTION TEMPLATE WORK

Copies TEMPLATE (holding `store/` and `save/`) to WORK/<k>, does ACTION there with a folder or a volume store, and ends
the child by `os._exit` before its k-th step; the last child gets through. Prints the number of children. A process of
its own, because forking is safe only where there is one thread; `rooms_of` starts it.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from plugins.checkpoints.disk import Disk
from plugins.checkpoints.manifest import read_local
from plugins.checkpoints.restore import restore
from plugins.checkpoints.retention import prune_local, prune_store
from plugins.checkpoints.seal import seal
from plugins.checkpoints.stores.folder import FolderStore
from plugins.checkpoints.stores.objects import ObjectStore
from plugins.checkpoints.stores.volume import VolumeBackend

RUN, STAGE, DIED = "run-1", "sft", 77
WHO = {"run_id": RUN, "stage": STAGE, "attempt": 1, "token": 1}
Before = Callable[[str, Path], None]


def rooms_of(store: str, action: str, template: Path, work: Path) -> list[Path]:
    """Every state that the action leaves when it dies, in the order of its steps; in the last one it got through."""
    argv = [sys.executable, __file__, store, action, str(template), str(work)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    return [work / str(step) for step in range(int(done.stdout))]


def on_folder(action: str, room: Path, before: Before) -> None:
    save_dir, disk = room / "save", Disk(before, chunk_bytes=256)
    store = FolderStore(room / "store", disk=disk, workers=2)
    if action == "seal":
        seal(save_dir, 39, **WHO, export=True, disk=disk, workers=2)
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


def on_volume(action: str, room: Path, before: Before) -> None:
    save_dir = room / "save"
    backend = VolumeBackend(room / "store", before=before, chunk_bytes=256, sleep=lambda _s: None)
    store = ObjectStore(backend, workers=2, sleep=lambda _s: None)
    if action == "put":
        store.put(read_local(save_dir, 39), save_dir)
    elif action == "feed":
        upload = store.begin(RUN, STAGE, 39, 1)
        assert upload
        upload.publish(seal(save_dir, 39, **WHO, sink=upload.feed), save_dir)
    elif action == "delete":
        store.delete(store.list(RUN, STAGE)[0])
    else:
        raise SystemExit(f"no action {action}")


ACTS = {"folder": on_folder, "volume": on_volume}


def die_before(step: int) -> Before:
    left = [step]

    def count(_step: str, _path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            os._exit(DIED)

    return count


def main(store: str, action: str, template: Path, work: Path) -> int:
    for step in range(1000):
        room = work / str(step)
        shutil.copytree(template, room)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            try:
                ACTS[store](action, room, die_before(step))
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
    print(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])))
