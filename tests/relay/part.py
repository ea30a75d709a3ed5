"""A part of the relay suite as a process: `python -m tests.relay.part NAME ARGUMENT...`; prints one line of JSON.

Parts that fork need a process without threads, and parts run side by side. `run_part` starts one and reads its figures.

    kill KIND SEED POINTS [GUARD]           returning KIND+KIND SEED COUNT [GUARD]
    split KIND SEED COUNT [GUARD]           stages KIND
    losses FIRST_SEED COUNT
"""

import gc
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.relay.figures import Figures
from tests.relay.guards import LEFT_OUT, Guards

HOME = Path(__file__).parents[2]
LONGEST_S = 1200
MEMORY = Path("/dev/shm")


def do(name: str, arguments: list[str], folder: Path) -> Figures:
    """Carry a part out in this process."""
    if name == "kill":
        from tests.relay.kill_points import kill

        kind, seed, points = arguments[:3]
        return kill(kind, folder, int(seed), int(points), _guards(arguments))
    if name == "returning":
        from tests.relay.returning import many

        near, far = arguments[0].split("+")
        return many((near, far), folder, arguments[1], int(arguments[2]), _guards(arguments))
    if name == "split":
        from tests.relay.split import split

        return split(arguments[0], folder, int(arguments[1]), int(arguments[2]), _guards(arguments))
    if name == "stages":
        from tests.relay.split_stage import split_stages

        return split_stages(arguments[0], folder)
    if name == "losses":
        from tests.relay.losses import lose

        return lose(int(arguments[0]), int(arguments[1]), folder)
    raise SystemExit(f"no part {name}")


def run_part(name: str, *arguments: object) -> Figures:
    """Carry a part out in a process of its own. Raises RuntimeError with its last words when it fails."""
    argv = [sys.executable, "-m", "tests.relay.part", name, *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LONGEST_S, cwd=HOME)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv[2:])} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return Figures.from_json(done.stdout.splitlines()[-1])


def _guards(arguments: list[str]) -> Guards:
    return LEFT_OUT[arguments[3] if len(arguments) > 3 else "nothing"]


def main(argv: list[str]) -> None:
    """The process of a part; what it writes is removed at its end. A disk in memory saves the waiting for fsync."""
    logging.disable(logging.ERROR)  # broken checkpoints are what this is about
    gc.freeze()  # forked children then share more memory
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, prefix="relay-") as folder:
        figures = do(argv[0], argv[1:], Path(folder) / argv[0])
    if not figures.kinds and not figures.bad:
        raise SystemExit("nothing was carried out, so nothing is proved")
    print(figures.to_json())


if __name__ == "__main__":
    main(sys.argv[1:])
