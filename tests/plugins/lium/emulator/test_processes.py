"""No process of a pod survives its pod, its emulator, or an emulator killed with -9; the state does. Both modes."""

import os
import signal
import socket
import sys
import uuid
from pathlib import Path

import pytest

from plugins.lium.emulator.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore:Pinning:UserWarning")


def daemonise(sdk, pod):
    """Start a process that has left its session and ignores hang-ups; returns a text only its command line has."""
    mark = f"mark-{uuid.uuid4().hex}"
    script = f"trap '' HUP TERM; while :; do sleep 1; done # {mark}"
    sdk.out(pod, f'(setsid nohup sh -c "{script}" >/dev/null 2>&1 </dev/null &)')
    return mark


def test_deleting_a_pod_ends_a_daemon_in_it_and_leaves_the_neighbour(own_emulator, connect, processes_with, wait_until):
    sdk = connect(own_emulator)
    doomed, neighbour = sdk.pod(), sdk.pod()
    gone, stays = daemonise(sdk, doomed), daemonise(sdk, neighbour)
    wait_until(lambda: processes_with(gone) and processes_with(stays), "the daemons run")
    sdk.lium.down(doomed)
    assert processes_with(gone) == []
    assert processes_with(stays) != []
    assert not (own_emulator.state / "pods" / doomed.id).exists()


def test_kill_9_of_the_emulator_leaves_no_pod_process(own_emulator, connect, processes_with, wait_until):
    sdk = connect(own_emulator)
    pod = sdk.pod()
    mark = daemonise(sdk, pod)
    wait_until(lambda: processes_with(mark), "the daemon runs")
    own_emulator.stop(signal.SIGKILL)
    wait_until(lambda: not processes_with(mark), "the daemon is gone")
    wait_until(lambda: not processes_with(str(own_emulator.state)), "nothing that names the state folder runs")
    wait_until(lambda: not list(Path("/tmp").glob(f"pod-*-{pod.id[:8]}")), "no private TMPDIR is left")


def test_a_plain_pod_whose_first_process_was_killed_leaves_nothing_after_its_end(
    own_emulator, connect, processes_with, wait_until
):
    if own_emulator.namespaces:
        pytest.skip("the kernel does this for a PID namespace")
    sdk = connect(own_emulator)
    pod = sdk.pod()
    mark = daemonise(sdk, pod)
    parent = int(sdk.out(pod, "ps -o ppid= -p $$"))
    os.kill(parent, signal.SIGKILL)
    sdk.lium.down(pod)
    wait_until(lambda: not processes_with(mark), "the daemon is gone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_state_survives_a_restart_and_running_pods_are_booted_again(
    own_emulator, connect, processes_with, wait_until, number
):
    sdk = connect(own_emulator)
    pod = sdk.pod(termination_hours=3)
    volume = sdk.lium.volume_create("kept")
    sdk.out(pod, "echo kept > $HOME/file")
    mark = daemonise(sdk, pod)
    own_emulator.stop(number)
    wait_until(lambda: not processes_with(mark), "the daemon is gone")

    sdk = connect(own_emulator.start(), sdk.key)
    again = sdk.ready(pod.id)
    (sdk_pins := own_emulator.state.parent / ".lium" / "known_hosts" / pod.id).unlink()
    assert sdk.out(again, "cat $HOME/file") == "kept", sdk_pins
    assert [row.id for row in sdk.lium.volumes()] == [volume.id]
    assert again.removal_scheduled_at
    assert processes_with(mark) == []
    assert "the emulator was restarted" in [event["reason"] for event in sdk.lium.pod_events(pod.id)]
    sdk.lium.down(again)


def test_a_pod_has_a_clean_environment_and_private_directories(own_emulator, connect, tmp_path):
    own_emulator.stop()
    own_emulator.extra_env = {"PROVIDER_SECRET": "not-for-pods"}
    shared = tmp_path / "shared folder"
    shared.mkdir()
    own_emulator.options += ("--env", "COLOUR=blue", "--share", str(shared))
    sdk = connect(own_emulator.start())
    pod, other = sdk.pod(), sdk.pod()
    env = dict(line.split("=", 1) for line in sdk.out(pod, "env").splitlines())
    assert "PROVIDER_SECRET" not in env and env["COLOUR"] == "blue"
    assert env["PATH"].startswith(f"{sys.prefix}/bin:")
    assert sdk.out(pod, "cd $TRAINSTACK_HOME && python -c 'import plugins.errors; print(1)'") == "1"
    sdk.out(pod, "echo x > ${TMPDIR:-/tmp}/t; echo x > $HOME/h")
    assert sdk.out(other, "ls ${TMPDIR:-/tmp}; ls $HOME/h 2>&1 || true").endswith("No such file or directory")
    sdk.out(pod, f"echo both > '{shared}/file'")
    assert (shared / "file").read_text() == "both\n"
    if own_emulator.namespaces:
        assert sdk.out(pod, "tr '\\0' '\\n' < /proc/1/environ | grep COLOUR; echo $HOME") == "COLOUR=blue\n/root"
        assert "sleep" not in sdk.out(other, "ps ax -o comm=") and sdk.out(pod, "cat /workspace/../root/h") == "x"
    else:
        assert len(env["TMPDIR"]) < 30, "a socket below TMPDIR must stay under 107 bytes"
    log = own_emulator.state.parent / "state.log"
    assert "not-for-pods" not in log.read_text()


@pytest.fixture
def start_and_fail(capsys):
    def run(*options):
        assert main(list(options)) == 2
        return capsys.readouterr().err

    return run


def test_what_it_cannot_do_is_one_clear_message(emulator, tmp_path, start_and_fail):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}" in start_and_fail("--state", str(tmp_path / "s"), "--port", port)
    assert "another emulator uses" in start_and_fail("--state", str(emulator.state), "--port", "0")
    assert "loopback only" in start_and_fail("--state", str(tmp_path / "s"), "--host", "0.0.0.0")
    bad = tmp_path / "bad.json"
    bad.write_text('[{"gpu": "X", "colour": 1}]')
    assert "is not an inventory" in start_and_fail("--state", str(tmp_path / "s"), "--inventory", str(bad))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "state.json").write_text('{"pods": 1')
    assert "is not the emulator's state" in start_and_fail("--state", str(tmp_path / "torn"), "--port", "0")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--listings-per-minute", "0", "'0' is not a whole number from 1"),
        ("--listings-per-minute", "many", "'many' is not a whole number from 1"),
        ("--billing-scale", "0", "'0' is not a number above 0"),
        ("--billing-scale", "inf", "'inf' is not a number above 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(tmp_path, capsys, option, value, said):
    with pytest.raises(SystemExit):
        main(["--state", str(tmp_path / "s"), option, value])
    assert said in capsys.readouterr().err
