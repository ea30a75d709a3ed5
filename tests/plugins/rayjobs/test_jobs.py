import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from plugins.errors import ControlPlaneError, UserError
from plugins.rayjobs.jobs import FINAL, MARK, RayJobs
from plugins.rayjobs.processes import marked

from .conftest import SECRET, until

pytestmark = pytest.mark.xdist_group("ray")


def finished(head, job):
    return until(lambda: head.jobs.status(job) in FINAL and head.jobs.status(job))


def ask(head, token):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{head.info.dashboard}/api/jobs/", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def test_a_job_runs_where_and_with_what_it_was_given(head, tmp_path):
    log = tmp_path / "logs" / "out put.log"
    argv = ["bash", "-c", 'pwd; echo "$GIVEN"; echo "$STORE_PASSWORD"; echo "$0"; echo bad >&2; cat', "it's"]
    head.jobs.submit("plain", argv, {"GIVEN": "a 'b' $c"}, tmp_path, log)
    assert finished(head, "plain") == "SUCCEEDED"
    assert log.read_text().splitlines() == [str(tmp_path), "a 'b' $c", SECRET, "it's", "bad"]
    assert head.jobs.exit_code("plain") == 0


def test_a_second_submit_of_the_same_id_attaches(head, tmp_path):
    log = tmp_path / "log"
    for _ in range(2):
        head.jobs.submit("twice", ["bash", "-c", "echo ran"], {}, tmp_path, log)
    RayJobs(head.state).submit("twice", ["false"], {}, tmp_path, log)
    assert finished(head, "twice") == "SUCCEEDED"
    head.jobs.submit("twice", ["false"], {}, tmp_path, log)
    assert log.read_text() == "ran\n"
    head.jobs.delete("twice")
    with pytest.raises(ControlPlaneError, match="twice"):
        head.jobs.status("twice")


def test_a_failure_tells_its_exit_status(head, tmp_path):
    head.jobs.submit("fails", [sys.executable, "-c", "raise SystemExit(7)"], {}, tmp_path, tmp_path / "log")
    assert finished(head, "fails") == "FAILED"
    assert head.jobs.exit_code("fails") == 7
    assert head.jobs.stop("fails", 30) == "FAILED"  # a job that ended by itself keeps its state
    assert "exit code 7" in (head.jobs.message("fails") or "")


def test_the_driver_finds_ray_and_actors_get_the_environment(head, tmp_path):
    code = (
        "import os, ray\nray.init()\n"
        "@ray.remote\ndef look(): return os.environ['GIVEN'], os.getcwd()\n"
        "print('seen', *ray.get(look.remote()))"
    )
    head.jobs.submit("driver", [sys.executable, "-c", code], {"GIVEN": "here"}, tmp_path, tmp_path / "log")
    assert finished(head, "driver") == "SUCCEEDED", (tmp_path / "log").read_text()
    assert f"seen here {head.cwd}" in (tmp_path / "log").read_text()


def test_stop_ends_the_job_with_all_its_children_even_stubborn_and_detached_ones(head, tmp_path):
    log = tmp_path / "log"
    script = "trap '' TERM; (sleep 1234 & ) ; setsid sleep 1234 & echo up; while true; do sleep 0.2; done"
    head.jobs.submit("stubborn", ["bash", "-c", script], {}, tmp_path, log)
    until(lambda: log.exists() and "up" in log.read_text())
    assert marked(MARK, "stubborn")
    assert head.jobs.stop("stubborn", 30) == "STOPPED"
    assert not marked(MARK, "stubborn")
    assert head.jobs.stop("stubborn", 30) == "STOPPED"


def test_secrets_stand_in_no_listing_and_no_command_line(head, tmp_path):
    with pytest.raises(UserError, match="HF_TOKEN, my_api_key would stand"):
        head.jobs.submit("leaks", ["true"], {"HF_TOKEN": "x", "my_api_key": "y", "TOKENIZER": "z"}, tmp_path, tmp_path)
    head.jobs.submit("quiet", ["bash", "-c", "test -n $STORE_PASSWORD"], {"A": "b"}, tmp_path, tmp_path / "log")
    listing = ask(head, Path(head.info.token_file).read_text())
    assert "quiet" in listing and SECRET not in listing
    token = Path(head.info.token_file).read_text()
    for pid in head.processes():
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        assert SECRET not in argv and token not in argv


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_nobody_gets_in_without_the_token(head, token):
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(head, token)
    assert caught.value.code in (401, 403)
    assert (Path(head.info.token_file).stat().st_mode & 0o777, head.state.stat().st_mode & 0o777) == (0o600, 0o700)


def test_everything_listens_on_loopback_only(head):
    inodes = set()
    for pid in head.processes():
        try:
            links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        inodes |= {link[8:-1] for link in links if link.startswith("socket:[")}
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state, inode = (line.split()[index] for index in (1, 3, 9))
            if state == "0A" and inode in inodes:
                listening.append(local.split(":")[0])
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert len(listening) >= 3, "GCS, dashboard and raylet must be seen, or the look proves nothing"
    assert set(listening) <= loopback


def test_a_proxy_or_another_ray_address_in_the_environment_does_not_lead_astray(head, tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    jobs = RayJobs(head.state)
    jobs.submit("astray", ["true"], {}, tmp_path, tmp_path / "log")
    assert jobs.status("astray")
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:9"


def test_without_a_head_the_message_says_where_it_was_looked_for(tmp_path):
    jobs = RayJobs(tmp_path)
    with pytest.raises(ControlPlaneError, match=str(tmp_path)):
        jobs.status("x")
    with pytest.raises(ControlPlaneError, match="no Ray head is ready"):
        jobs.wait_ready(0.1)
