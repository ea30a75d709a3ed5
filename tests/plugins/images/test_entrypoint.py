"""The first process of a pod: stays, ends when told to, and gives way to a command."""

import os
import signal
import subprocess
import time
from pathlib import Path

from plugins.images.context import ROOT

ENTRYPOINT = str(ROOT / "deployments/image/entrypoint.sh")


def test_it_stays_until_it_is_told_to_end() -> None:
    process = subprocess.Popen([ENTRYPOINT], stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not children.read_text().split():  # then it waits
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_command_takes_its_place() -> None:
    done = subprocess.run([ENTRYPOINT, "sh", "-c", "echo $$; exit 4"], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 4
