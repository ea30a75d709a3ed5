"""Run one action on a volume store again and again in forked children, each dying one step later than the one before.

    python die_at_volume.py ACTION TEMPLATE WORK

Copies TEMPLATE (holding `volume/` and `save/`) to WORK/<k>, does ACTION there, and ends the child by `os._exit` before
its k-th step; the last child gets through. Prints the number of children.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from plugins.checkpoints.manifest import read_local
from plugins.checkpoints.seal import seal
from plugins.checkpoints.stores.objects import ObjectStore
from plugins.checkpoints.stores.volume import VolumeBackend

RUN, STAGE, DIED = "run-1", "sft", 77


def act(action: str, room: Path, before: Callable[[str, Path], None]) -> None:
    save_dir = room / "save"
    backend = VolumeBackend(room / "volume", before=before, chunk_bytes=256, sleep=lambda _s: None)
    store = ObjectStore(backend, workers=2, sleep=lambda _s: None)
    if action == "put":
        manifest = read_local(save_dir, 39)
        assert manifest
        store.put(manifest, save_dir)
    elif action == "feed":
        upload = store.begin(RUN, STAGE, 39, 1)
        assert upload
        upload.publish(seal(save_dir, 39, run_id=RUN, stage=STAGE, attempt=1, token=1, sink=upload.feed), save_dir)
    elif action == "delete":
        store.delete(store.list(RUN, STAGE)[0])
    else:
        raise SystemExit(f"no action {action}")


def die_before(step: int) -> Callable[[str, Path], None]:
    left = [step]

    def count(_step: str, _path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            os._exit(DIED)

    return count


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
