"""`make demo`: the whole chain on this machine, with live progress, then a summary; leaves nothing running.

`--keep` leaves the local servers up, for looking at the run in the Prefect UI.
"""

import signal
import subprocess
import sys
import time

from rich.console import Console

from tasks.local_servers import CODE_ROOT, running, stop_all

console = Console(stderr=True)


def main(argv: list[str]) -> int:
    """Run the demo recipe; returns the exit code of `trainstack run`."""
    keep, since = "--keep" in argv, time.monotonic()
    ours = running("prefect") is None and running("emulator") is None
    console.rule("trainstack demo: SFT, then RL, on an emulated pod")
    # The run is in our process group, so Ctrl-C reaches it by itself; we only have to outlive it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    recipe = CODE_ROOT / "deployments" / "recipes" / "demo.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", str(recipe)],
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    console.rule(f"{time.monotonic() - since:.0f} s")
    server = running("prefect")
    if keep and server:
        console.print(f"Prefect UI: {server.url.removesuffix('/api')}   stop it with: make down")
    elif ours:
        for line in stop_all():
            console.print(line, style="dim")
        console.print("To see the run in the Prefect UI: make serve (or next time: make demo KEEP=1)")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
