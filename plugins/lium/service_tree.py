"""The life of a pod's services: start, restart with back-off, and an end in the right order that leaves nothing.

`supervisor.py` puts this into the background and says what it is for; here is what it does there. Standard library
only, one thread, and signals are waited for instead of handled.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from plugins.lium.boot_document import Boot, ServiceSpec, StartError, session_environment
from plugins.lium.process_table import MARKER, Proc, children, descendants, environment_of, lives, marked, proc, send

SERVICE = "TRAINSTACK_SERVICE"  # the service a process came from; how orphans of the worker are known
WORKER = "worker"
PYTHON = "TRAINSTACK_PYTHON"  # our interpreter, for what a service starts: `python` on PATH is the image's

SERVICE_STOP_S = 5.0
LONGEST_BACKOFF_S = 30.0
HEALTHY_AFTER_S = 60.0  # a service that lived so long starts again with the shortest back-off
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Service:
    """A service and what became of it. `pid` None: it is not running and starts again at `due`."""

    spec: ServiceSpec
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    due: float = 0.0
    backoff_s: float = 1.0
    restarts: int = 0

    @property
    def pid(self) -> int | None:
        """The pid of the running process."""
        return self.process.pid if self.process else None


class Supervisor:
    """The daemon's life. One thread; signals are waited for, never handled in the middle of something."""

    def __init__(self, boot: Boot, lock: int) -> None:
        self.boot = boot
        self.lock = lock
        self.marker = uuid.uuid4().hex
        self.pid = os.getpid()
        self.environment = session_environment()
        self.services = [Service(spec) for spec in boot.services]
        self.watchdog = 0
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        # Only the daemon holds the writing end: when the daemon dies, for whatever reason, the watchdog reads the end.
        self.alive_r, self.alive_w = os.pipe()

    def start(self) -> None:
        """Become the subreaper, start the watchdog and every service once; a StartError ends what was started."""
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._start_watchdog()
        try:
            for service in self.services:
                self._launch(service)
        except StartError:
            self.stop()
            raise
        self._write_state("running")

    def run(self) -> None:
        """Restart what dies, until SIGTERM or SIGINT; then stop."""
        while True:
            self._reap()
            self._restart_due()
            next_due = min((s.due for s in self.services if s.process is None), default=time.monotonic() + 3600)
            info = signal.sigtimedwait(SIGNALS, max(0.01, next_due - time.monotonic()))
            if info is not None and info.si_signo in (signal.SIGTERM, signal.SIGINT):
                say(f"{signal.Signals(info.si_signo).name}: stopping")
                break
        self.stop()

    def stop(self) -> None:
        """End everything: the stage engines first and with time, the worker, the other services, then the rest."""
        self._write_state("stopping")
        worker = next((s for s in self.services if s.spec.name == WORKER and s.process), None)
        self._stop_worker(worker.pid if worker else None)
        others = [s for s in self.services if s.pid is not None and s is not worker]
        for service in others:
            send(service.pid or 0, signal.SIGTERM)
        self._wait(lambda: not any(lives(s.pid) for s in others if s.pid), min(SERVICE_STOP_S, self.boot.grace_s))
        self._kill_rest()
        self._write_state("stopped")
        say("stopped")

    def _stop_worker(self, pid: int | None) -> None:
        if pid is not None:
            send(pid, signal.SIGSTOP)  # else it claims the next run as soon as its engine is gone
            self._wait(lambda: (found := proc(pid)) is None or found.state in "TtZX", 1.0)
        asked: set[tuple[int, int]] = set()

        def engines_gone() -> bool:
            engines = self._engines(pid)
            for engine in engines:
                if (engine.pid, engine.start_ticks) not in asked:
                    asked.add((engine.pid, engine.start_ticks))
                    send(engine.pid, signal.SIGTERM)
                    send(engine.pid, signal.SIGCONT)
            return not engines

        if not self._wait(engines_gone, self.boot.grace_s):
            say(f"stage engines still run after {self.boot.grace_s:.0f} s: killing them")
            for engine in self._engines(pid):
                for item in [engine, *descendants(engine.pid)]:
                    send(item.pid, signal.SIGKILL)
        if pid is not None:
            send(pid, signal.SIGKILL)

    def _engines(self, worker: int | None) -> list[Proc]:
        """The worker's children, and those whose worker died before: they are our children now."""
        own = {s.pid for s in self.services} | {self.watchdog}
        orphans = [item for item in children(self.pid) if item.pid not in own]
        of_dead_workers = [item for item in orphans if environment_of(item.pid).get(SERVICE) == WORKER]
        return [*(children(worker) if worker is not None else []), *of_dead_workers]

    def _kill_rest(self) -> None:
        def all_gone() -> bool:
            left = {item.pid for item in [*descendants(self.pid), *marked(self.marker)]} - {self.watchdog, self.pid}
            for pid in left:
                send(pid, signal.SIGKILL)
            return not left

        if not self._wait(all_gone, SERVICE_STOP_S):
            say("some processes could not be killed")

    def _wait(self, done: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() >= deadline:
                return False
            signal.sigtimedwait({signal.SIGCHLD}, 0.1)
            self._reap()
        return True

    def _restart_due(self) -> None:
        for service in self.services:
            if service.process is None and time.monotonic() >= service.due:
                service.restarts += 1
                try:
                    self._launch(service)
                except StartError as error:
                    say(str(error))
                    self._put_off(service)
                self._write_state("running")

    def _reap(self) -> None:
        """Take every dead child: services (a restart becomes due), the watchdog (started again), orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.watchdog:
                self._start_watchdog()
            for service in self.services:
                if service.process is not None and service.pid == pid:
                    service.process.returncode = os.waitstatus_to_exitcode(status)
                    lived_s = time.monotonic() - service.started
                    say(f"{service.spec.name} ({pid}) ended with {service.process.returncode} after {lived_s:.0f} s")
                    service.process = None
                    if lived_s >= HEALTHY_AFTER_S:
                        service.backoff_s = 1.0
                    self._put_off(service)

    def _put_off(self, service: Service) -> None:
        service.due = time.monotonic() + service.backoff_s
        service.backoff_s = min(service.backoff_s * 2, LONGEST_BACKOFF_S)

    def _launch(self, service: Service) -> None:
        spec = service.spec
        environment = {**self.environment, PYTHON: sys.executable, **self.boot.env, **spec.env}
        environment |= {MARKER: self.marker, SERVICE: spec.name}
        log = open_log(self.boot.state_dir / f"{spec.name}.log")
        try:
            service.process = subprocess.Popen(
                [sys.executable if spec.argv[0] == "python" else spec.argv[0], *spec.argv[1:]],
                cwd=spec.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=self._prepare_child,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            raise StartError(f"service {spec.name} did not start: {reason} ({spec.argv[0]})") from None
        finally:
            os.close(log)
        service.started = time.monotonic()
        say(f"{spec.name} started ({service.pid})")

    def _prepare_child(self) -> None:
        """Between fork and exec: die with the supervisor, and take signals as a program expects to.

        A program started by a background shell inherits an ignored SIGINT, and Prefect's worker turns SIGTERM into
        SIGINT: it could then never be stopped.
        """
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self.pid:  # the supervisor died before the line above took effect
            os._exit(1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())

    def _start_watchdog(self) -> None:
        """Fork the process that outlives a killed supervisor just long enough to kill what PDEATHSIG does not reach.

        It keeps the lock, so a new supervisor waits until the old one's processes are gone.
        """
        self.watchdog = os.fork()
        if self.watchdog:
            return
        try:
            os.close(self.alive_w)
            os.setsid()  # signals stay blocked, as in the supervisor
            os.read(self.alive_r, 1)
            deadline = time.monotonic() + 30
            while (left := marked(self.marker)) and time.monotonic() < deadline:
                for item in left:
                    send(item.pid, signal.SIGKILL)
                time.sleep(0.05)
        finally:
            os._exit(0)

    def _write_state(self, state: str) -> None:
        """Write supervisor.json: pids and times, never an environment or an argv."""
        own = proc(self.pid)
        services = {s.spec.name: {"pid": s.pid, "restarts": s.restarts} for s in self.services}
        document = {
            "pod": self.boot.pod,
            "state": state,
            "pid": self.pid,
            "start_ticks": own.start_ticks if own else None,
            "started_at": self.started_at,
            "watchdog_pid": self.watchdog,
            "services": services,
        }
        path = self.boot.state_dir / "supervisor.json"
        temporary = path.with_name(f"{path.name}.{self.pid}.tmp")
        try:
            temporary.write_text(json.dumps(document, indent=1) + "\n")
            temporary.replace(path)
        except OSError as error:
            say(f"{path} could not be written: {error.strerror}")  # a full disk must not end the services


def say(message: str) -> None:
    """Write one line to the daemon's log (its standard error)."""
    with contextlib.suppress(OSError):  # a full disk
        print(datetime.now(UTC).isoformat(timespec="milliseconds"), message, file=sys.stderr, flush=True)


def open_log(path: Path) -> int:
    """Open a log for appending, readable by its owner only."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
