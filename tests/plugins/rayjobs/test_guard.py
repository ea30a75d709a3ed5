"""Head and guard around a quick stand-in for `ray start`; test_head.py does it with Ray itself."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from plugins.rayjobs.processes import marked
from plugins.rayjobs.settings import read_info

from .conftest import until

FAKE_RAY = """
import os, shutil, subprocess, sys, time
if os.environ["FAKE_RAY"] == "fails":
    sys.exit("no room for Ray here")
temp = sys.argv[sys.argv.index("--temp-dir") + 1]
os.makedirs(temp + "/session_latest/logs")
open(temp + "/session_latest/logs/gcs_server.out", "w").write("bye")
open(temp + "/ray_current_cluster", "w").write("127.0.0.1:1")
for name in ("gcs_server", "raylet"):
    os.symlink(shutil.which("sleep"), f"{temp}/{name}")
    subprocess.Popen([f"{temp}/{name}", "600"], start_new_session=True)
if os.environ["FAKE_RAY"] == "hangs":
    time.sleep(600)
api = '''
import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    do_POST = do_GET
server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
print(server.server_port, flush=True)
server.serve_forever()
'''
quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "start_new_session": True}
serving = subprocess.Popen([sys.executable, "-c", api], **quiet)
port = int(serving.stdout.readline())
print(f"RAY_API_SERVER_ADDRESS='http://127.0.0.1:{port}' ray job submit")
"""


class FakeHead:
    def __init__(self, folder, mode="works", *more):
        package = folder / "fake" / "ray" / "scripts"
        package.mkdir(parents=True, exist_ok=True)
        for name in ("scripts/__init__.py", "__init__.py"):
            (package.parent / name).touch()
        (package / "scripts.py").write_text(textwrap.dedent(FAKE_RAY))
        self.state, self.mark = folder / "state", str(folder)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "plugins.rayjobs.head", "--state", self.state, "--num-cpus", "2", *more],
            env={**os.environ, "PYTHONPATH": str(folder / "fake"), "FAKE_RAY": mode, "TEST_HEAD": self.mark},
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self):
        return until(lambda: read_info(self.state))

    def processes(self):
        return marked("TEST_HEAD", self.mark)


@pytest.fixture
def start(tmp_path):
    heads = []

    def start_head(*arguments):
        heads.append(FakeHead(tmp_path, *arguments))
        return heads[-1]

    yield start_head
    for head in heads:
        head.process.kill()
        head.process.communicate(timeout=30)
    for head in heads:
        until(lambda head=head: not head.processes(), 30)


def test_sigterm_ends_everything_and_keeps_the_logs(start):
    head = start()
    info = head.ready()
    assert len(head.processes()) >= 5
    head.process.terminate()
    assert head.process.wait(20) == 0
    assert not head.processes()
    assert read_info(head.state) is None
    assert not Path(info.temp_dir).exists()
    assert (head.state / "ray-logs" / "gcs_server.out").read_text() == "bye"


@pytest.mark.parametrize("victim", ["guard", "gcs_server", "raylet"])
def test_when_the_guard_or_a_core_process_dies_the_head_ends_everything_and_fails(start, victim):
    head = start()
    info = head.ready()
    names = {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in head.processes()}
    os.kill(info.guard_pid if victim == "guard" else names[victim], signal.SIGKILL)
    assert head.process.wait(30) == 1
    assert not head.processes()
    assert read_info(head.state) is None
    assert not Path(info.temp_dir).exists()


def test_a_head_killed_while_ray_starts_leaves_nothing(start):
    head = start("hangs")
    until(lambda: len(head.processes()) >= 5)
    head.process.kill()
    until(lambda: not head.processes(), 20)


def test_a_start_that_takes_too_long_is_given_up(start):
    head = start("hangs", "--start-timeout-s", "0.5")
    _, said = head.process.communicate(timeout=30)
    assert head.process.returncode == 1
    assert "took longer than" in said
    assert not head.processes()


def test_a_start_that_fails_says_why(start):
    head = start("fails")
    _, said = head.process.communicate(timeout=30)
    assert head.process.returncode == 1
    assert "no room for Ray here" in said
    assert str(head.state) in said


def test_what_a_head_and_guard_killed_together_left_is_removed_by_the_next(start):
    head = start()
    info = head.ready()
    for pid in (info.head_pid, info.guard_pid):
        os.kill(pid, signal.SIGSTOP)
    for pid in (info.head_pid, info.guard_pid):
        os.kill(pid, signal.SIGKILL)
    head.process.wait(10)
    orphans = head.processes()
    assert len(orphans) >= 3
    following = start()
    renewed = until(lambda: (found := read_info(following.state)) is not None and found != info and found)
    assert renewed.head_pid == following.process.pid
    assert not orphans & head.processes()
    assert not Path(info.temp_dir).exists()


def test_the_state_folder_may_be_named_from_home(tmp_path, monkeypatch):
    from plugins.rayjobs.head import parse

    monkeypatch.setenv("HOME", str(tmp_path))
    settings = parse(["--state", "~/ray", "--num-cpus", "2", "--cwd", "~"])
    assert (settings.state, settings.cwd) == (tmp_path / "ray", tmp_path)
