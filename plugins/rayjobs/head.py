"""One Ray head in the foreground: `python -m plugins.rayjobs.head --state DIR --num-cpus N`.

A worker of several nodes (`worker.py`) stands in the same way.

`ray start` alone leaves processes behind: killing its parent with -9 orphans the dashboard's and the workers'
processes, some of which then spin. So the processes stand like this, and whoever dies, the other ends the rest:

    head (this; what a supervisor starts, signals and waits for)
      guard (own session, adopts orphans; plugins/rayjobs/guard.py)
        gcs_server, raylet -> agents, workers -> jobs;  dashboard, log monitor

SIGTERM or SIGINT: everything is asked to end, then killed, within 10 s; status 0. Anything else that ends Ray:
status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from plugins.rayjobs.processes import adopt_orphans, descendants, end_all
from plugins.rayjobs.settings import HOME, LOOPBACK, HeadSettings, forget

STOP_S = 8.0


def parse(argv: Sequence[str] | None, program: str = "head") -> HeadSettings:
    """Read the command line that head, worker and guard share."""
    parser = argparse.ArgumentParser(
        prog=f"python -m plugins.rayjobs.{program}", description=f"One Ray {program}, in the foreground."
    )
    add = parser.add_argument
    add("--state", type=_folder, required=True, help="folder for ray.json, the token and the logs")
    add("--num-cpus", type=int, required=True, help="CPUs Ray may hand out (slime: GPUs + 2 at least)")
    add("--num-gpus", type=int, help="GPUs Ray may hand out (default: those it finds)")
    add("--cwd", type=_folder, help="working directory of actors (default: this one)")
    add("--store-bytes", type=int, help="size of the object store")
    add("--start-timeout-s", type=float, default=90.0, help="give up after this many seconds")
    add("--python", default=sys.executable, help="interpreter of Ray and of what runs in it (default: this one)")
    add("--or-own", action="store_true", help="where --python has no Ray or --cwd is not there, do without")
    add("--node-ip", default=LOOPBACK, help=f"address at which other nodes reach this one (default {LOOPBACK})")
    add("--node-name", help="name of this node among the others (default: its address)")
    add("--head", help="host:port of the head to join", required=program == "worker")
    return HeadSettings(**vars(parser.parse_args(argv)))


def _folder(text: str) -> Path:
    return Path(text).expanduser().absolute()  # a supervisor starts us without a shell that would do it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the head until it is told to stop or Ray ends; gives the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return stand(parse(arguments), arguments)


def stand(settings: HeadSettings, arguments: Sequence[str]) -> int:
    """Stand over the guard of a head or worker that was started with these arguments; gives the exit status."""
    adopt_orphans()
    guard = start_guard(arguments)
    told_at: list[float] = []

    def stop(number: int, _frame: object) -> None:
        told_at.append(time.monotonic())
        _tell(guard)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    while guard.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            guard.wait(timeout=0.5)
        if told_at and time.monotonic() - told_at[0] > STOP_S:
            guard.kill()
    left = end_all(lambda: descendants(os.getpid()), grace_s=0)  # nothing, unless the guard was killed
    if guard.returncode < 0:
        forget(settings.state)
    if left:
        print(f"ray in {settings.state}: processes that could not be ended: {sorted(left)}", file=sys.stderr)
    return 0 if told_at and not left else 1


def start_guard(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the guard; its standard input is its tie to us: a byte means stop, the end means that we are gone."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HOME), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-m", "plugins.rayjobs.guard", *arguments],
        stdin=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


def _tell(guard: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        os.write(guard.stdin.fileno(), b"s")


if __name__ == "__main__":
    raise SystemExit(main())
