import signal
import sys
from pathlib import Path

import pytest

from plugins.errors import ControlPlaneError
from plugins.rayjobs.guard import _as_found
from plugins.rayjobs.head import parse
from plugins.rayjobs.settings import ray_start_argv, read_info

from .conftest import running_head, until

pytestmark = pytest.mark.xdist_group("ray")


def busy_job(head):
    """A job with a child of its own session, which only a parent that adopts orphans can find."""
    log = head.cwd / "log"
    script = "setsid sleep 4321 & sleep 4321 & echo up; wait"
    head.jobs.submit("busy", ["bash", "-c", script], {}, head.cwd, log)
    until(lambda: log.exists() and "up" in log.read_text())


def test_two_heads_live_side_by_side_and_sigterm_ends_one_cleanly(head, tmp_path):
    with running_head(tmp_path) as other:
        assert other.info.dashboard != head.info.dashboard
        assert other.info.address != head.info.address
        busy_job(other)
        assert len(other.processes()) > 5
        other.process.send_signal(signal.SIGTERM)
        assert other.process.wait(10) == 0
        assert not other.processes()
        assert read_info(other.state) is None
        assert not Path(other.info.temp_dir).exists()
        assert list((other.state / "ray-logs").glob("gcs_server*"))
        with pytest.raises(ControlPlaneError, match="no Ray head runs"):
            other.jobs.status("busy")
    assert head.process.poll() is None
    assert head.jobs.status("warm-up")


def test_nothing_of_ray_stays_when_the_head_is_killed(tmp_path):
    with running_head(tmp_path) as head:
        busy_job(head)
        head.process.kill()
        assert head.process.wait(10) == -signal.SIGKILL
        until(lambda: not head.processes(), 15)
        until(lambda: not Path(head.info.temp_dir).exists(), 15)
        assert read_info(head.state) is None


def test_ray_is_started_by_the_interpreter_that_has_the_trainer(tmp_path):
    """Actors run under the interpreter of `ray start`: on a pod that is slime's, not the one of our environment."""
    settings = parse(["--state", str(tmp_path), "--num-cpus", "2", "--python", "/usr/bin/python3"])
    assert ray_start_argv(settings, tmp_path)[0] == "/usr/bin/python3"
    assert ray_start_argv(parse(["--state", str(tmp_path), "--num-cpus", "2"]), tmp_path)[0] == sys.executable


def test_a_command_does_without_an_interpreter_that_has_no_ray_and_a_folder_that_is_not_there(tmp_path):
    words = [
        "--state",
        str(tmp_path),
        "--num-cpus",
        "2",
        "--python",
        "/no/such/python3",
        "--cwd",
        "/no/such",
        "--or-own",
    ]
    found = _as_found(parse(words))
    assert (found.python, found.cwd) == (sys.executable, None)
    kept = _as_found(parse([*words, "--python", sys.executable, "--cwd", str(tmp_path)]))
    assert (kept.python, kept.cwd) == (sys.executable, tmp_path)
