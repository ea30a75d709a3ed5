"""The pod supervisor with small real services: what it starts, restarts, ends, and never leaves behind."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from plugins.lium import boot_document
from plugins.lium import process_table as table
from plugins.lium import supervisor as sup

CODE = Path(sup.__file__).resolve()
HOME = CODE.parents[2]
SECRET = "s3cret-Value-that-must-not-be-written"


def until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


class Pod:
    """A state directory and the supervisors started on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state_dir = root / "state"
        self.tag = f"tag-{root.name}"

    def start(self, services: list[dict], grace_s: float = 10.0, argv: list[str] | None = None, **changes):
        document: dict = {
            "pod": "ts-x-sft-a1",
            "state_dir": str(self.state_dir),
            "env": {"PREFECT_API_AUTH_STRING": SECRET, "PUBLIC": "yes", "TEST_TAG": self.tag},
            "services": services,
            "grace_s": grace_s,
            **changes,
        }
        return subprocess.run(
            argv or [sys.executable, "-m", "plugins.lium.supervisor"],
            input=json.dumps(document),
            cwd=HOME,
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": os.environ["PATH"], "HOME": str(self.root)},
        )

    @property
    def state(self) -> dict:
        return json.loads((self.state_dir / "supervisor.json").read_text())

    @property
    def pid(self) -> int:
        return self.state["pid"]

    def service_pid(self, name: str) -> int | None:
        return self.state["services"][name]["pid"]

    def ours(self) -> list[int]:
        """Living processes of this test: whoever carries the tag in its environment."""
        return [p.pid for p in table.processes() if p.state not in "ZX" and self._tagged(p.pid)]

    def _tagged(self, pid: int) -> bool:
        return table.environment_of(pid).get("TEST_TAG") == self.tag

    def stopped(self) -> bool:
        return not table.lives(self.pid) and not self.ours()

    def log(self) -> str:
        return (self.state_dir / "supervisor.log").read_text()

    def clean(self) -> None:
        if (self.state_dir / "supervisor.json").exists():
            for pid in filter(None, (self.pid, self.state["watchdog_pid"])):
                if b"supervisor" in cmdline(pid):
                    table.send(pid, signal.SIGKILL)
        for pid in self.ours():
            table.send(pid, signal.SIGKILL)


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def pod() -> Iterator[Pod]:
    root = Path(tempfile.mkdtemp(prefix="sup-"))
    made = Pod(root)
    yield made
    made.clean()
    shutil.rmtree(root, ignore_errors=True)


def sh(name: str, script: str, **more) -> dict:
    return {"name": name, "argv": ["sh", "-c", script], **more}


def py(name: str, script: str) -> dict:
    return {"name": name, "argv": [sys.executable, "-c", script]}


SLEEPER = sh("ray", "exec sleep 600")


def test_services_run_with_the_given_environment_after_the_start_returns(pod: Pod) -> None:
    out = pod.root / "out"
    answer = pod.start(
        [sh("ray", f'echo "$PUBLIC $EXTRA $(pwd)" > {out}; exec sleep 600', env={"EXTRA": "more"}, cwd="/")]
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("started (pid ")
    assert table.lives(pod.pid) and table.lives(pod.service_pid("ray"))
    until(lambda: out.exists() and out.read_text(), "the service wrote its file")
    assert out.read_text() == "yes more /\n"
    assert pod.state["pod"] == "ts-x-sft-a1" and pod.state["state"] == "running"


def test_a_stage_runs_under_our_interpreter_where_python_on_path_is_another(pod: Pod, tmp_path: Path) -> None:
    """As on slime's image, whose python has slime and no Prefect; the command is the one of the deployment."""
    deployments = yaml.safe_load((HOME / "prefect.yaml").read_text())["deployments"]
    command = next(d for d in deployments if d["entrypoint"] == "flows.stage.slime_stage")["work_pool"]["job_variables"]
    (tmp_path / "bin").mkdir()
    other = tmp_path / "bin" / "python"
    other.write_text("#!/bin/sh\necho not ours; exec sleep 60\n")
    other.chmod(0o755)
    words = [*shlex.split(command["command"]), "--unused"]
    code = f"import os; os.execvp({words[0]!r}, {words!r})"
    spec = {"name": "engine", "argv": ["python", "-c", code], "env": {"PATH": f"{other.parent}:/usr/bin:/bin"}}
    assert pod.start([spec]).returncode == 0
    until(lambda: "prefect" in (pod.state_dir / "engine.log").read_text(), "Prefect's engine says what it lacks")
    assert "not ours" not in (pod.state_dir / "engine.log").read_text()


def test_it_runs_as_a_plain_file_too_and_needs_the_standard_library_only(pod: Pod) -> None:
    answer = pod.start([SLEEPER], argv=[sys.executable, "-S", str(CODE)])
    assert answer.returncode == 0, answer.stderr
    assert table.lives(pod.service_pid("ray"))


def test_a_second_start_changes_nothing(pod: Pod) -> None:
    pod.start([SLEEPER])
    before = pod.state
    answer = pod.start([sh("ray", "exec sleep 601"), sh("worker", "exec sleep 602")])
    assert (answer.returncode, answer.stdout) == (0, f"already running (pid {before['pid']})\n")
    assert pod.state == before


def test_a_new_supervisor_starts_after_the_old_one_stopped(pod: Pod) -> None:
    pod.start([SLEEPER])
    first = pod.pid
    os.kill(first, signal.SIGTERM)
    answer = pod.start([SLEEPER])
    if "already running" in answer.stdout:  # it still was, and said so
        until(lambda: not table.lives(first), "the first supervisor ended")
        answer = pod.start([SLEEPER])
    assert answer.returncode == 0 and pod.pid != first and table.lives(pod.pid)


def test_a_service_that_cannot_start_is_named_and_nothing_stays(pod: Pod) -> None:
    answer = pod.start([SLEEPER, {"name": "worker", "argv": ["/no/such/program"]}])
    assert answer.returncode == 1
    assert "service worker did not start: No such file or directory (/no/such/program)" in answer.stderr
    until(pod.stopped, "everything ended")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"services": []}, "non-empty list `services`"),
        ({"services": [{"name": "x y", "argv": ["true"]}]}, "services[0] needs a `name`"),
        ({"services": [{"name": "x", "argv": "true"}]}, "needs `argv`"),
        ({"env": {"A": 1}}, "`env` must map names to texts"),
        ({"grace_s": "soon"}, "`grace_s` must be a number"),
        ({"services": [SLEEPER, SLEEPER]}, "same name"),
    ],
)
def test_a_wrong_document_is_refused_without_showing_values(pod: Pod, changes: dict, message: str) -> None:
    answer = pod.start(**{"services": [SLEEPER], **changes})
    assert answer.returncode == 1
    assert message in answer.stderr
    assert SECRET not in answer.stderr + answer.stdout


def test_a_service_that_dies_is_started_again(pod: Pod) -> None:
    pod.start([SLEEPER])
    first = pod.service_pid("ray")
    os.kill(first, signal.SIGKILL)
    until(lambda: pod.service_pid("ray") not in (None, first), "the service runs again")
    assert table.lives(pod.service_pid("ray"))
    assert pod.state["services"]["ray"]["restarts"] == 1
    assert f"ray ({first}) ended with -9" in pod.log()


STAGE_ENGINE = """
import os, signal, sys, time
log = open({log!r}, "a", buffering=1)
def on_term(*_):
    log.write("engine: SIGTERM\\n")
    state = open(f"/proc/{{os.getppid()}}/stat").read().rpartition(")")[2].split()[0]
    log.write(f"worker is {{state}}\\n")
    time.sleep(0.3)
    os.kill({ray}, 0)
    log.write("engine: sealed, ray still there\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, on_term)
log.write("engine: ready\\n")
while True: time.sleep(0.1)
"""


def engine(pod: Pod, log: Path, script: str) -> Path:
    path = pod.root / "engine.py"
    path.write_text(script.format(log=str(log), ray=0))
    return path


def worker_with(path: Path) -> dict:
    """A worker that starts its engine in a new session, as Prefect's does, and dies of SIGTERM if it gets one."""
    return py(
        "worker",
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, {str(path)!r}], start_new_session=True);"
        "time.sleep(600)",
    )


def test_sigterm_lets_the_stage_end_before_anything_else(pod: Pod) -> None:
    log = pod.root / "log"
    pod.start([SLEEPER, worker_with(engine(pod, log, STAGE_ENGINE))])
    until(lambda: log.exists() and "ready" in log.read_text(), "the engine is ready")
    os.kill(pod.pid, signal.SIGTERM)
    until(pod.stopped, "everything ended")
    assert log.read_text().splitlines() == [
        "engine: ready",
        "engine: SIGTERM",
        "worker is T",
        "engine: sealed, ray still there",
    ]
    assert pod.state["state"] == "stopped"


def test_an_engine_whose_worker_died_is_still_told_to_end(pod: Pod) -> None:
    log = pod.root / "log"
    script = STAGE_ENGINE.replace('log.write(f"worker is {{state}}\\n")', "pass")
    pod.start([worker_with(engine(pod, log, script))])
    until(lambda: log.exists() and "ready" in log.read_text(), "the engine is ready")
    os.kill(pod.service_pid("worker"), signal.SIGKILL)
    os.kill(pod.pid, signal.SIGTERM)
    until(pod.stopped, "everything ended")
    assert "engine: sealed, ray still there" in log.read_text()


DEAF = """
import signal, time
for number in (15, 2, 1): signal.signal(number, signal.SIG_IGN)
open({ready!r}, "w").close()
time.sleep(600)
"""


def test_engines_and_services_that_ignore_sigterm_are_killed_after_the_grace(pod: Pod) -> None:
    ready = [pod.root / "engine-ready", pod.root / "service-ready"]
    path = pod.root / "engine.py"
    path.write_text(DEAF.format(ready=str(ready[0])))
    pod.start([py("deaf", DEAF.format(ready=str(ready[1]))), worker_with(path)], grace_s=0.5)
    until(lambda: all(item.exists() for item in ready), "both are up")
    os.kill(pod.pid, signal.SIGTERM)
    until(pod.stopped, "everything ended")
    assert "stage engines still run after" in pod.log()


def test_a_grandchild_that_left_its_session_ends_with_the_supervisor(pod: Pod) -> None:
    file = pod.root / "pid"
    pod.start([sh("ray", f"(setsid sleep 600 & echo $! > {file}) ; exec sleep 600")])
    until(lambda: file.exists() and len(pod.ours()) >= 2, "the grandchild runs")
    os.kill(pod.pid, signal.SIGTERM)
    until(pod.stopped, "everything ended")


def test_kill_9_of_the_supervisor_leaves_nothing(pod: Pod) -> None:
    pod.start(
        [sh("ray", "trap '' TERM; (setsid nohup sleep 600 &) ; sleep 600"), sh("worker", "setsid sleep 600 & wait")]
    )
    watchdog = pod.state["watchdog_pid"]
    until(lambda: len(pod.ours()) >= 5, "services and grandchildren run")
    os.kill(pod.pid, signal.SIGKILL)
    until(pod.stopped, "everything ended")
    until(lambda: not table.lives(watchdog), "the watchdog ended")


def test_a_killed_watchdog_comes_back(pod: Pod) -> None:
    pod.start([sh("ray", "(setsid sleep 600 &) ; exec sleep 600")])
    first = pod.state["watchdog_pid"]
    os.kill(first, signal.SIGKILL)
    os.kill(pod.service_pid("ray"), signal.SIGKILL)  # the state file is written again after a restart
    until(lambda: pod.state["watchdog_pid"] != first, "there is a new watchdog")
    os.kill(pod.pid, signal.SIGKILL)
    until(pod.stopped, "everything ended")


def test_services_get_default_signals_even_from_a_shell_that_ignores_them(pod: Pod) -> None:
    out = pod.root / "out"
    check = py(
        "ray",
        "import signal as s, time\n"
        "seen = (s.getsignal(15) == s.SIG_DFL, s.getsignal(2) == s.default_int_handler, s.pthread_sigmask(0, []))\n"
        f"open({str(out)!r}, 'w').write(str(seen))\n"
        "time.sleep(600)",
    )
    answer = pod.start(
        [check], argv=["sh", "-c", f"trap '' INT TERM HUP; exec {sys.executable} -m plugins.lium.supervisor"]
    )
    assert answer.returncode == 0
    until(lambda: out.exists() and out.read_text(), "the service wrote what it sees")
    assert out.read_text() == "(True, True, set())"


def test_dead_orphans_are_reaped(pod: Pod) -> None:
    done = pod.root / "done"
    pod.start(
        [sh("ray", f"for i in 1 2 3 4 5; do (setsid sleep 0.1 &); done; sleep 0.3; touch {done}; exec sleep 600")]
    )
    until(done.exists, "the orphans ended")
    until(lambda: not [p for p in table.processes() if p.parent == pod.pid and p.state == "Z"], "no zombie is left")


def test_the_secret_is_in_no_file_and_no_argv(pod: Pod) -> None:
    pod.start([SLEEPER, sh("worker", "exec sleep 600")])
    os.kill(pod.service_pid("ray"), signal.SIGKILL)
    until(lambda: pod.state["services"]["ray"]["restarts"] == 1, "a restart was written down")
    pod.start([{"name": "bad", "argv": ["/no/such"]}])
    for path in [item for item in pod.root.rglob("*") if item.is_file()]:
        assert SECRET.encode() not in path.read_bytes(), path
    for item in table.processes():
        assert SECRET.encode() not in cmdline(item.pid)
    assert SECRET in table.environment_of(pod.service_pid("worker")).values()
    assert SECRET not in table.environment_of(pod.pid).values()
    for name in ("supervisor.log", "ray.log"):
        assert (pod.state_dir / name).stat().st_mode & 0o777 == 0o600


def test_a_bare_session_is_completed_from_pid_1_and_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/own/bin")
    assert boot_document.session_environment()["PATH"] == "/own/bin"
    monkeypatch.setenv(boot_document.BARE_SESSION, "1")
    completed = boot_document.session_environment()
    assert completed["PATH"] == "/own/bin"
    assert boot_document.BARE_SESSION not in completed
    assert set(table.environment_of(1)) <= set(completed)
