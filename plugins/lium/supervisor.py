"""The first process of a pod: keeps the services (Ray, the Prefect worker) running and ends everything cleanly.

Why it exists: Prefect's process worker answers SIGTERM by killing its engine before any `finally` runs, the flow run
then stays "Running" for ever and the trainer may live on as an orphan. So the worker's parent is ours. It is standard
library only, is started over SSH with one JSON document on standard input, and never writes the secrets in it anywhere.

    ssh ... python -m plugins.lium.supervisor
      |     <- {"pod", "state_dir", "env", "services": [{"name", "argv", "cwd", "env"}], "grace_s"}
      |- daemon   (lock held, child subreaper)          <state_dir>/supervisor.json, .log, .lock, <service>.log
           |- watchdog  (own session; wakes up when the daemon dies, kills every process that carries its marker)
           |- ray, worker, ... (own sessions; SIGKILL when the daemon dies)
                |- stage engines, trainers, Ray's daemons

SIGTERM: stop the worker from claiming (SIGSTOP), SIGTERM the stage engines and wait for them, then end the rest.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

if not __package__:  # run as a plain file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from plugins.lium.boot_document import Boot, StartError
from plugins.lium.process_table import lives
from plugins.lium.service_tree import SIGNALS, Supervisor, open_log, say

START_TIMEOUT_S = 30.0


def running_pid(state_dir: Path) -> int | None:
    """The pid of the supervisor that runs on this state directory, or None."""
    try:
        document = json.loads((state_dir / "supervisor.json").read_text())
        pid, start_ticks = int(document["pid"]), document["start_ticks"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pid if lives(pid, start_ticks) else None


def take_lock(state_dir: Path) -> int | None:
    """Take the state directory's lock; None if a supervisor runs there.

    A lock held without a running supervisor belongs to one that starts, or to a watchdog that still cleans up: wait.
    """
    lock = os.open(state_dir / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if running_pid(state_dir) is not None:
                os.close(lock)
                return None
            if time.monotonic() >= deadline:
                raise StartError(f"{state_dir}/supervisor.lock is held by a process that is no supervisor") from None
            time.sleep(0.05)


def tell(report: int, word: dict[str, Any]) -> None:
    """Give the caller the one line it waits for; a caller that is gone is fine."""
    with contextlib.suppress(OSError):
        os.write(report, json.dumps(word).encode() + b"\n")
        os.close(report)


def daemon(boot: Boot, lock: int, report: int) -> NoReturn:
    """The daemon: tell the caller how the start went, then supervise until told to stop."""
    code = 0
    try:
        supervisor = Supervisor(boot, lock)
        try:
            supervisor.start()
            tell(report, {"pid": supervisor.pid})
            supervisor.run()
        except StartError as error:
            say(str(error))
            tell(report, {"error": str(error)})
            code = 1
    except BaseException as error:
        # No traceback text: it could hold a value of the environment.
        say(f"the supervisor itself failed: {type(error).__name__} at line {_line_of(error)}")
        code = 1
    finally:
        os._exit(code)  # the exit closes the pipe: whatever is left, the watchdog kills


def _line_of(error: BaseException) -> int:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_lineno if trace else 0


def daemonise(boot: Boot, lock: int) -> int:
    """Fork the daemon away from this terminal and session; returns the pipe on which it reports its start."""
    report_r, report_w = os.pipe()
    log = open_log(boot.state_dir / "supervisor.log")
    child = os.fork()
    if child:
        os.close(report_w)
        os.close(log)
        os.waitpid(child, 0)
        return report_r
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        null = os.open(os.devnull, os.O_RDWR)
        for target, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, target)
        os.close(report_r)
    except BaseException:
        os._exit(1)
    daemon(boot, lock, report_w)


def read_report(report: int) -> dict[str, Any]:
    """Wait for the daemon's word on its start; its death counts as one."""
    text = b""
    deadline = time.monotonic() + START_TIMEOUT_S
    while select.select([report], [], [], max(0.0, deadline - time.monotonic()))[0]:
        piece = os.read(report, 4096)
        text += piece
        if not piece or text.endswith(b"\n"):  # the watchdog also holds the writing end: do not wait for its end
            break
    try:
        return dict(json.loads(text))
    except ValueError:
        return {"error": "the daemon gave no word of its start"}


def main() -> int:
    """Start the supervisor: 0 once the services run (or one runs already), 1 with the reason on standard error."""
    try:
        boot = Boot.from_json(sys.stdin.read())
        boot.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = take_lock(boot.state_dir)
        if lock is None:
            print(f"already running (pid {running_pid(boot.state_dir)})")
            return 0
        report = read_report(daemonise(boot, lock))
    except (StartError, OSError, UnicodeError) as error:
        print(f"supervisor: {error}", file=sys.stderr)
        return 1
    if "error" in report:
        print(f"supervisor: {report['error']}; see {boot.state_dir}/supervisor.log", file=sys.stderr)
        return 1
    print(f"started (pid {report['pid']})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
