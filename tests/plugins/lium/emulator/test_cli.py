"""The unmodified `lium` command, through a whole session."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIUM = str(Path(sys.executable).with_name("lium"))


@pytest.fixture
def lium(emulator, ssh_key, tmp_path):
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "LIUM_BASE_URL": emulator.url,
        "LIUM_API_KEY": f"cli-{tmp_path}",
        "LIUM_SSH_KEY_PATH": str(ssh_key),
        "LIUM_SSH_PERSIST": "0",
        "LIUM_SESSION": "1",
        "COLUMNS": "160",
    }

    def run(*argv, status=0):
        done = subprocess.run(
            [LIUM, *argv], env=env, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
        )
        assert done.returncode == status, (argv, done.returncode, done.stdout, done.stderr)
        return done.stdout

    return run


def test_a_session_from_listing_to_removal(lium, emulator, tmp_path):
    assert "H200" in lium("ls")
    lium("up", "--gpu", "H200", "-y", "--volume", "new:name=x", "--ttl", "2h", "--name", "cli")
    assert "RUNNING" in lium("ps")
    volume = "/mnt" if emulator.namespaces else "$POD_VOLUME"
    assert "in the pod" in lium("exec", "cli", f"echo in the pod | tee {volume}/f; nvidia-smi -L")
    lium("exec", "cli", "exit 7", status=7)
    (tmp_path / "up.txt").write_text("going up\n")
    lium("scp", "cli", "./up.txt", "/root/there.txt")
    lium("scp", "cli", "/root/there.txt", "./down/", "-d")
    assert (tmp_path / "down" / "there.txt").read_text() == "going up\n"
    assert "x" in lium("volumes", "list")
    assert "running" in lium("logs", "cli")
    lium("rm", "cli", "-y")
    assert "No active pods" in lium("ps")
