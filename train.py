"""`python train.py ...` runs upstream slime's own train.py with the same arguments.

Kept for people and scripts of the older stack; recipes do not need it. Everything after the file name goes to slime
untouched, `--help` too.
"""

import os
import sys
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent


def forward(script: str) -> NoReturn:
    """Become `slime/<script>`: same interpreter, arguments and working directory, the checkout on the import path.

    Exits with status 2 and one message when the submodule is not checked out.
    """
    target = HERE / "slime" / script
    if not target.is_file():
        print(
            f"{target}: slime is not checked out here. Get it with:  git -C {HERE} submodule update --init",
            file=sys.stderr,
        )
        raise SystemExit(2)
    paths = [str(target.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    os.execve(sys.executable, [sys.executable, str(target), *sys.argv[1:]], environment)  # noqa: S606


if __name__ == "__main__":
    forward("train.py")
