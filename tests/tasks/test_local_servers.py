"""Local servers: only a process that is really ours is believed, used or ended."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from plugins.errors import ControlPlaneError, UserError
from tasks.local_servers import Server, ensure_emulator, running, stop_all


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder of this test alone; what it started is ended with it."""
    folder = tmp_path / "state"
    monkeypatch.setenv("TRAINSTACK_DIR", str(folder))
    yield folder
    monkeypatch.setenv("TRAINSTACK_DIR", str(folder))
    stop_all()


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody else, in a group of its own."""
    process = subprocess.Popen(["sleep", "300"], start_new_session=True)
    yield process
    process.kill()
    process.wait(timeout=10)


def record(state: Path, name: str, **values: object) -> Path:
    file = state / "local" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"name": name, "url": "http://127.0.0.1:1/api", **values}))
    return file


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return True
        except ChildProcessError:
            return not Path(f"/proc/{pid}").exists()
        time.sleep(0.02)
    return False


def test_nothing_runs_in_a_new_state_folder(state: Path) -> None:
    assert running("prefect") is None
    assert stop_all() == []


def test_a_record_whose_pid_was_given_to_somebody_else_is_not_believed_and_nobody_is_killed(
    state: Path, stranger: subprocess.Popen[bytes]
) -> None:
    file = record(state, "prefect", pid=stranger.pid, started="1")
    assert running("prefect") is None
    assert stop_all() == []
    assert stranger.poll() is None
    assert not file.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1}', "not json", '{"pid": "x", "surplus": 1}'])
def test_a_damaged_record_is_no_server(state: Path, text: str) -> None:
    record(state, "emulator").write_text(text)
    assert running("emulator") is None


def test_the_emulator_is_started_once_and_again_after_it_died_and_ended_by_stop_all(
    state: Path, stranger: subprocess.Popen[bytes]
) -> None:
    url = ensure_emulator()
    assert httpx.get(f"{url}/version", timeout=10).is_success
    assert ensure_emulator() == url
    first = running("emulator")
    assert isinstance(first, Server) and first.url == url
    os.kill(first.pid, signal.SIGKILL)
    assert gone(first.pid)
    assert running("emulator") is None
    ensure_emulator()
    second = running("emulator")
    assert second is not None and second.pid != first.pid
    assert stop_all() == [f"stopped emulator (pid {second.pid})"]
    assert gone(second.pid)
    assert stranger.poll() is None


def test_a_server_that_does_not_start_is_reported_with_the_end_of_its_log_and_leaves_no_record(state: Path) -> None:
    state.mkdir()
    (state / "emulator").write_text("a file where the emulator keeps its folder")
    with pytest.raises(ControlPlaneError) as caught:
        ensure_emulator()
    said = str(caught.value)
    assert said.startswith(f"The local emulator server did not start; its log is {state}/local/emulator.log:\n")
    assert "exists" in said.partition("\n")[2]
    assert running("emulator") is None and not (state / "local" / "emulator.json").exists()


def test_a_state_folder_that_cannot_be_made_names_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRAINSTACK_DIR", str(tmp_path / "file" / "state"))
    with pytest.raises(UserError, match="Set TRAINSTACK_DIR to a folder you can write to"):
        ensure_emulator()
