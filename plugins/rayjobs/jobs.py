"""Submit the trainer to the pod's Ray head, watch it, stop it.

A submission id is an idempotency key: whoever submits it a second time is attached to the first. The trainer writes its
output to a file of its own, so nothing depends on who started it. Ray shows a job's command line and `env` to everyone
who may list jobs: secrets belong in the environment that the head was started with, which every job inherits.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from plugins.errors import ControlPlaneError, TrainstackError, UserError
from plugins.rayjobs.processes import end_all, marked
from plugins.rayjobs.settings import HeadInfo, info_file, read_info

FINAL = ("SUCCEEDED", "FAILED", "STOPPED")
MARK = "TRAINSTACK_SUBMISSION_ID"
"""Set for every process of a job, actors too: how what is left of it is found."""

_REQUEST_S = (5.0, 60.0)  # connect, read; submitting waits for the job's agent
_POLL_S = 0.2
_BLIP_S = 10.0
"""How long a head that is said to run may leave us without an answer."""

_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|KEYS?)$", re.IGNORECASE)
_Answer = TypeVar("_Answer")


def secret_names(names: Iterable[str]) -> list[str]:
    """Those of these variables whose name says that their value is secret."""
    return sorted(name for name in names if _SECRET.search(name))


class _NoAnswer(ControlPlaneError):
    """Nothing answered; it may in a moment."""


class RayJobs:
    """The jobs of the head whose state dir this is (`python -m plugins.rayjobs.head --state DIR`).

    Every call raises ControlPlaneError when the head does not run or does not answer.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state = state_dir.expanduser()
        self._client: tuple[HeadInfo, Any] | None = None

    def wait_ready(self, timeout_s: float) -> HeadInfo:
        """Wait until the head takes jobs. Raises ControlPlaneError when it is not there in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            info = read_info(self._state)
            if info is not None and _alive(info.head_pid):
                return info
            if time.monotonic() > deadline:
                raise ControlPlaneError(
                    f"no Ray head is ready in {self._state} after {timeout_s:.0f} s; see ray-start.log there"
                )
            time.sleep(0.05)

    def nodes(self) -> set[str]:
        """Names of the nodes that Ray has now, the head's own among them."""
        answer = self._call(lambda client: client._do_request("GET", "/api/v0/nodes"))
        try:
            rows = answer.json()["data"]["result"]["result"]
            return {str(row["node_name"]) for row in rows if row["state"] == "ALIVE"}
        except (ValueError, LookupError, TypeError) as error:
            raise ControlPlaneError(
                f"Ray's list of nodes cannot be read (status {answer.status_code}): {answer.text[:200]}"
            ) from error

    def wait_nodes(self, names: Collection[str], timeout_s: float, check: Callable[[], None] = lambda: None) -> None:
        """Wait until Ray has every one of these nodes; `check` is called all the while and may raise.

        Raises ControlPlaneError that names those which are missing after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while missing := sorted(set(names) - self.nodes()):
            check()
            if time.monotonic() > deadline:
                raise ControlPlaneError(
                    f"Ray has {len(set(names)) - len(missing)} of {len(set(names))} nodes after {timeout_s:.0f} s; "
                    f"missing: {', '.join(missing)}. Why is in trainstack/ray.log on that node"
                )
            time.sleep(_POLL_S)

    def submit(self, submission_id: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> None:
        """Run `argv` in `cwd` as a job; its output is appended to `log`. The same id again changes nothing.

        env goes to the job and all its actors, on top of the head's environment. Raises UserError for a variable whose
        name says that it is secret.
        """
        if shown := secret_names(env):
            raise UserError(
                f"job {submission_id}: {', '.join(shown)} would stand in Ray's job listing; "
                "put it into the environment of the pod's Ray head"
            )
        log.parent.mkdir(parents=True, exist_ok=True)
        entrypoint = (
            f"cd {shlex.quote(str(cwd))} && exec {shlex.join(argv)} >> {shlex.quote(str(log))} 2>&1 < /dev/null"
        )
        runtime_env = {"env_vars": {**env, MARK: submission_id}}
        try:
            self._call(
                lambda client: client.submit_job(
                    entrypoint=entrypoint, submission_id=submission_id, runtime_env=runtime_env
                )
            )
        except ControlPlaneError:
            if self.knows(submission_id):
                return
            raise

    def status(self, submission_id: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return str(self._call(lambda client: client.get_job_status(submission_id)).value)

    def message(self, submission_id: str) -> str | None:
        """What Ray says about the job's state; the trainer's own words stand in its log."""
        text = self._call(lambda client: client.get_job_info(submission_id)).message
        return None if text is None else str(text)

    def exit_code(self, submission_id: str) -> int | None:
        """The trainer's exit status, once it ended by itself."""
        code = self._call(lambda client: client.get_job_info(submission_id)).driver_exit_code
        return None if code is None else int(code)

    def stop(self, submission_id: str, timeout_s: float) -> str:
        """End the job and every process it started: SIGTERM, 3 s later SIGKILL (Ray's), then whatever is left.

        Gives the final status; a job that ended before keeps its own. Raises ControlPlaneError when something is still
        alive after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        status = self.status(submission_id)
        if status not in FINAL:
            self._call(lambda client: client.stop_job(submission_id))
        while status not in FINAL and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            status = self.status(submission_id)
        left = end_all(lambda: marked(MARK, submission_id), grace_s=0.5, kill_s=3.0)
        if left or status not in FINAL:
            raise ControlPlaneError(
                f"job {submission_id} was stopped {timeout_s:.0f} s ago and is {status}; processes left: {sorted(left)}"
            )
        return status

    def delete(self, submission_id: str) -> None:
        """Forget a job that ended; its id may be used again."""
        self._call(lambda client: client.delete_job(submission_id))

    def knows(self, submission_id: str) -> bool:
        """Whether this head was ever given the job (and has not been told to forget it)."""
        try:
            self.status(submission_id)
        except ControlPlaneError:
            return False
        return True

    def _call(self, request: Callable[[Any], _Answer]) -> _Answer:
        """Do one request, again for a while if nothing answers; what Ray's client raises becomes ControlPlaneError."""
        deadline = time.monotonic() + _BLIP_S
        while True:
            try:
                return self._request(request)
            except _NoAnswer:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)

    def _request(self, request: Callable[[Any], _Answer]) -> _Answer:
        info = read_info(self._state)
        if info is None:
            raise ControlPlaneError(f"no Ray head runs in {self._state} ({info_file(self._state)} is not there)")
        try:
            if self._client is None or self._client[0] != info:
                self._client = (info, _connect(info))
            return request(self._client[1])
        except TrainstackError:
            raise  # from a signal handler that ran in here
        except Exception as error:  # requests', Ray's and built-in errors alike: this is the boundary
            kind = _NoAnswer if isinstance(error, OSError) else ControlPlaneError  # requests' own are OSErrors
            raise kind(f"Ray's jobs API at {info.dashboard}: {_first_words(error)}") from error


def _connect(info: HeadInfo) -> Any:
    """A JobSubmissionClient with a time limit on every request, that goes through no proxy."""
    from ray.job_submission import JobSubmissionClient  # heavy: half a second

    class Client(JobSubmissionClient):  # type: ignore[misc]
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, timeout=_REQUEST_S, proxies={"http": ""}, **options)

    with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # they would win over the address given here
        return Client(info.dashboard, headers={"Authorization": f"Bearer {Path(info.token_file).read_text().strip()}"})


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _first_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
