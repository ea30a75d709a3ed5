"""One attempt of a stage, on the pod: restore, start the trainer through Ray, follow it, seal what it saves.

    <HOME>/trainstack/runs/<run_id>/<stage>/save/         the trainer's save dir (local disk, never a store)
                                           /init/         weights to start from, when they come from another stage
                                           /attempt-<n>/  trainer.log, environment server, rollouts

The folder outlives the attempt: a next attempt on the same pod finds the checkpoints already there. Waiting is done
in the main thread, because a thread would swallow SIGTERM (prefect.md 3).
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.publisher import Origin, Publisher, seal_as
from plugins.checkpoints.restore import restore
from plugins.checkpoints.stores import CheckpointStore
from plugins.checkpoints.stores.open import open_store
from plugins.errors import ControlPlaneError, Fenced, StoreError, TornCheckpoint, UserError
from plugins.rayjobs.jobs import FINAL, RayJobs
from plugins.rayjobs.tail import LogTail
from plugins.slime import layout
from plugins.slime.hooks import PROGRESS_FILE
from plugins.slime.launch import Launch, TrainerSpec, build
from plugins.slime.progress import ProgressParser
from tasks.stage_contract import Heartbeat, StageOrder, StageResult
from tasks.stage_progress import StageProgress

LOOK_S = 0.2
JOB_LOOK_S = 1.0
RAY_READY_S = 180.0
NOTICE_S = 12.0  # what a terminated stage may spend on sealing; Prefect's runner kills it after 30 s
TAIL_LINES = 25
RAY_SILENT_S = 60.0

Log = Callable[[str], None]


class Listener(Protocol):
    """Who hears heartbeats and knows whether the stage was ended from outside (`StageReporter`)."""

    def beat(self, beat: Heartbeat) -> None:
        """Take the newest heartbeat."""

    def ended_from_outside(self) -> str | None:
        """Reason to stop, or None."""


class StageEnded(Exception):
    """Somebody ended this attempt (cancel, a newer attempt); nothing is wrong with the training."""


class TrainerFailed(UserError):
    """The trainer ended without reaching its last iteration; the message carries the log's tail."""


@dataclass
class Stage:
    """One attempt in progress."""

    order: StageOrder
    listener: Listener
    log: Log
    trainer_log: Log
    root: Path = field(default_factory=lambda: Path.home() / "trainstack")
    progress: StageProgress = field(default_factory=StageProgress)
    seconds: dict[str, float] = field(default_factory=dict)
    expected_last: int | None = None
    restored: Manifest | None = None
    publisher: Publisher | None = None
    phase: str = "starting"

    @property
    def dir(self) -> Path:
        """Folder of this stage on the pod."""
        return self.root / "runs" / self.order.run_id / self.order.stage

    @property
    def save_dir(self) -> Path:
        """The trainer's save dir."""
        return self.dir / "save"

    @property
    def attempt_dir(self) -> Path:
        """Folder of this attempt: logs and rollouts."""
        return self.dir / f"attempt-{self.order.attempt}"

    @property
    def submission_id(self) -> str:
        """Ray submission id; the idempotency key of the trainer's start."""
        return f"{self.order.run_id}-{self.order.stage}-{self.order.attempt}"

    @property
    def kind(self) -> layout.Kind:
        """Completeness rule of the trainer's checkpoints."""
        return "plain" if self.order.recipe.trainer.kind == "command" else "slime"

    @property
    def export(self) -> bool:
        """Whether each checkpoint carries a Hugging Face export."""
        return self.kind == "slime"

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Name the phase in heartbeats and add its wall seconds to the result."""
        self.phase, since = phase, time.monotonic()
        self.beat()
        try:
            yield
        finally:
            self.seconds[phase] = round(time.monotonic() - since, 1)

    def beat(self) -> None:
        """Give the listener the newest heartbeat."""
        publisher = self.publisher
        self.listener.beat(
            Heartbeat(
                stage=self.order.stage,
                attempt=self.order.attempt,
                phase=self.phase,
                iteration=self.progress.iteration,
                of=None if self.expected_last is None else self.expected_last + 1,
                loss=self.progress.last("loss"),
                reward=self.progress.last("reward"),
                sealed=publisher.sealed if publisher else None,
                durable=publisher.durable.iteration if publisher and publisher.durable else None,
                warning=publisher.warning if publisher else None,
            )
        )

    def check_ended(self) -> None:
        """Raise when this attempt must stop: cancel, a forced state, a newer attempt."""
        if reason := self.listener.ended_from_outside():
            raise StageEnded(f"The flow run was set {reason} from outside.")
        if self.publisher and self.publisher.fenced:
            raise Fenced(self.publisher.fenced)


def train_stage(stage: Stage, jobs: RayJobs | None = None) -> StageResult:
    """Carry one attempt through and return its result. jobs: None takes those of the pod's own Ray head.

    Raises TrainerFailed, StageEnded, Fenced, StoreError, UserError; the trainer is stopped and what is complete is
    sealed before any of them leaves.
    """
    order = stage.order
    store = open_store(order.recipe.checkpoint.store)
    store.claim(order.run_id, order.stage, order.attempt)
    stage.attempt_dir.mkdir(parents=True, exist_ok=True)
    stage.save_dir.mkdir(parents=True, exist_ok=True)
    with stage.timed("ray"):
        jobs = jobs or RayJobs(Path(os.environ.get("TRAINSTACK_RAY_STATE") or stage.root / "ray"))
        jobs.wait_ready(RAY_READY_S)
        _stop_older_attempts(stage, jobs)
    with stage.timed("restore"):
        _rescue(stage, store)
        stage.restored = _restore(stage, store)
        init_dir = None if stage.restored else _fetch_init(stage, store)
    with _environment_server(stage) as env_url:
        launch = build(_trainer_spec(stage, init_dir, env_url))
        stage.expected_last = launch.expected_last
        stage.progress.steps_per_rollout = _steps_per_rollout(launch.argv)
        stage.progress.rewarded = order.stage == "rl"
        if _is_complete(stage):
            return _result(stage, store, "already complete")
        with _publishing(stage, store) as publisher, stage.timed("train"):
            _run_trainer(stage, jobs, launch, publisher)
    return _result(stage, store, "completed")


def _stop_older_attempts(stage: Stage, jobs: RayJobs) -> None:
    """A stage engine that was killed leaves its Ray job training; two trainers must never share a save dir."""
    for number in range(1, stage.order.attempt):
        older = f"{stage.order.run_id}-{stage.order.stage}-{number}"
        if jobs.knows(older):
            jobs.stop(older, timeout_s=30)


def _origin(stage: Stage, parent: str | None) -> Origin:
    order = stage.order
    return Origin(
        run_id=order.run_id,
        stage=order.stage,
        attempt=order.attempt,
        token=order.attempt,
        kind=stage.kind,
        export=stage.export,
        parent=parent,
        lineage=order.lineage,
    )


def _rescue(stage: Stage, store: CheckpointStore) -> None:
    """Seal and publish a complete checkpoint that a killed attempt left on this pod, so that its work is not
    repeated.
    """
    order = stage.order
    try:
        left = layout.read_tracker(stage.save_dir)
        newest = store.latest(order.run_id, order.stage)
        if left is None or (newest is not None and newest.iteration >= left):
            return
        manifest = seal_as(_origin(stage, None), stage.save_dir, left)
        uri = store.put(manifest, stage.save_dir)
        stage.log(f"iteration {left} of an interrupted attempt was complete: sealed and durable at {uri}")
    except TornCheckpoint as error:
        stage.log(f"the interrupted attempt left an incomplete checkpoint, which is not used: {error}")


def _restore(stage: Stage, store: CheckpointStore) -> Manifest | None:
    """The newest checkpoint that verifies, put into the save dir; None only for a stage that never had one."""
    order = stage.order
    known = bool(store.list(order.run_id, order.stage)) or order.durable is not None
    restored = restore(store, order.run_id, order.stage, stage.save_dir)
    if restored is None and known:
        raise UserError(
            f"No checkpoint of {order.run_id}/{order.stage} in {store.uri} can be restored, although there were some "
            f"(durable before: iteration {order.durable}). Damaged ones are set aside there (*.broken-*) with the "
            "reason. To start from zero, use a new run id."
        )
    if restored is not None:
        stage.log(f"restored iteration {restored.iteration}, sealed by attempt {restored.attempt}")
    return restored


def _fetch_init(stage: Stage, store: CheckpointStore) -> Path | None:
    """Folder with the Hugging Face weights of another stage, verified; None when the recipe names none."""
    init = stage.order.init
    if init is None:
        return None
    wanted = [m for m in store.list(init.run_id, init.stage) if m.iteration == init.iteration]
    if not wanted:
        raise UserError(
            f"{stage.order.run_id}/{stage.order.stage} starts from {init.run_id}/{init.stage} iteration "
            f"{init.iteration}, which {store.uri} does not have."
        )
    target = stage.dir / "init"
    store.get(wanted[0], target, only=lambda path: path.startswith("hf/"))
    return layout.export_dir(target, init.iteration)


@contextmanager
def _environment_server(stage: Stage) -> Iterator[str | None]:
    """The URL of the RL environment; a built-in task is served from here and ends with the stage."""
    section = stage.order.recipe.rl if stage.order.stage == "rl" else None
    environment = section.environment if section else None
    if environment is None or environment.task is None:
        yield environment.url if environment else None
        return
    ready = stage.attempt_dir / "environment.json"
    ready.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "plugins.http_env.server", "--task", environment.task, "--port", "0"]
    with (stage.attempt_dir / "environment.log").open("ab") as output:
        server = subprocess.Popen(
            [*argv, "--ready-file", str(ready)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
        )
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise ControlPlaneError(f"The environment server did not start; see {output.name} on the pod.")
            time.sleep(0.05)
        yield str(json.loads(ready.read_text())["url"])
    finally:
        server.terminate()
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a killed stage leaves no server behind


def _trainer_spec(stage: Stage, init_dir: Path | None, env_url: str | None) -> TrainerSpec:
    order, recipe = stage.order, stage.order.recipe
    section = recipe.stage(order.stage)
    hf = Path(recipe.model.hf_checkpoint) if recipe.model.hf_checkpoint else None
    command = section.command if section.command is not None else []
    return TrainerSpec(
        kind=recipe.trainer.kind,
        stage=order.stage,
        run_id=order.run_id,
        attempt=order.attempt,
        save_dir=stage.save_dir,
        load_dir=stage.save_dir if stage.restored else None,
        init_dir=init_dir or hf,
        rollout_dir=stage.attempt_dir / "rollouts",
        data=Path(order.data_path) if order.data_path else None,
        env_url=env_url,
        save_interval=section.save_interval,
        num_rollout=section.num_rollout,
        num_epoch=section.num_epoch,
        data_rows=order.data_rows,
        args={**recipe.model.args, **section.args},
        command=["bash", "-c", command] if isinstance(command, str) else command,
        slime_dir=Path(recipe.trainer.slime_dir) if recipe.trainer.kind == "slime" else None,
        seed=recipe.seed,
        model=recipe.model.name,
    )


def _steps_per_rollout(argv: list[str]) -> int:
    flag = "--num-steps-per-rollout"
    return int(argv[argv.index(flag) + 1]) if flag in argv else 1


@contextmanager
def _publishing(stage: Stage, store: CheckpointStore) -> Iterator[Publisher]:
    parent = store.uri_of(stage.restored) if stage.restored else None
    publisher = Publisher(
        store,
        stage.save_dir,
        _origin(stage, parent),
        keep=stage.order.recipe.checkpoint.keep,
        log=stage.log,
    )
    stage.publisher = publisher
    try:
        yield publisher
    finally:
        publisher.stop()


def _run_trainer(stage: Stage, jobs: RayJobs, launch: Launch, publisher: Publisher) -> None:
    """Submit the trainer and follow it to its end; raises unless it reached its last iteration."""
    log_file = stage.attempt_dir / "trainer.log"
    env = {**launch.env, **stage.order.recipe.env}
    jobs.submit(stage.submission_id, launch.argv, env, launch.cwd, log_file)
    stage.log(f"trainer submitted to Ray as {stage.submission_id}; its log on the pod is {log_file}")
    tail: list[str] = []
    try:
        _follow(stage, jobs, _Voice(log_file, env.get(PROGRESS_FILE)), publisher, tail)
        _check_end(stage, jobs, tail)
    except BaseException:
        # Whatever ends it (cancel, SIGTERM, fence, a failed trainer): no trainer stays, and what it completed is
        # sealed if time allows.
        try:
            jobs.stop(stage.submission_id, timeout_s=10)
        except ControlPlaneError as error:  # must not hide why the stage ends
            stage.log(f"WARNING the trainer may still run: {error}")
        _seal_last_words(stage, publisher)
        raise
    _upload_last(stage, publisher)


def _upload_last(stage: Stage, publisher: Publisher) -> None:
    """Wait for the store to have the last checkpoint, with an ear for a cancel. Raises StoreError, StageEnded."""
    deadline = time.monotonic() + stage.order.recipe.checkpoint.final_upload_minutes * 60
    with stage.timed("upload"):
        while not publisher.wait(LOOK_S) and time.monotonic() < deadline:
            stage.beat()
            try:
                stage.check_ended()
            except StageEnded:
                _seal_last_words(stage, publisher)
                raise
        publisher.finish(0)


class _Voice:
    """Everything the trainer says: its log, and the hook's file where the trainer has one."""

    def __init__(self, log: Path, hook: str | None) -> None:
        self._log, self._hook = LogTail(log), LogTail(Path(hook)) if hook else None
        self._parser = ProgressParser()

    def hear(self, stage: Stage, tail: list[str], *, final: bool) -> None:
        """Take in what is new; `tail` keeps the last lines for a message about a failure."""
        for line in self._log.lines(final=final):
            stage.trainer_log(line)
            tail[:] = [*tail[1 - TAIL_LINES :], line]
            if point := self._parser.feed(line):
                stage.progress.take(point)
        for line in self._hook.lines(final=final) if self._hook else ():
            if point := self._parser.feed_hook(line):
                stage.progress.take(point)


class _JobWatch:
    """Asks Ray now and then whether the job ended. A head that is silent for a while is unknown, not a dead job."""

    def __init__(self, jobs: RayJobs, submission_id: str) -> None:
        self._jobs, self._id = jobs, submission_id
        self._next = 0.0
        self._silent_since: float | None = None

    def ended(self) -> bool:
        """Whether the job has ended. Raises ControlPlaneError when Ray has not answered for RAY_SILENT_S."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + JOB_LOOK_S
        try:
            status = self._jobs.status(self._id)
        except ControlPlaneError:
            self._silent_since = self._silent_since or time.monotonic()
            if time.monotonic() - self._silent_since > RAY_SILENT_S:
                raise
            return False
        self._silent_since = None
        return status in FINAL


def _follow(stage: Stage, jobs: RayJobs, voice: _Voice, publisher: Publisher, tail: list[str]) -> None:
    watch, parent = _JobWatch(jobs, stage.submission_id), os.getppid()
    offered = stage.restored.iteration if stage.restored else None  # what is newer is new, however early it came
    while True:
        ended = watch.ended()
        voice.hear(stage, tail, final=ended)
        reached = _tracker(stage)
        if reached is not None and reached != offered:
            publisher.offer(reached)
            offered = reached
        stage.beat()
        stage.check_ended()
        if os.getppid() != parent:
            raise StageEnded("The Prefect worker of this pod died; its supervisor starts another one.")
        if ended:
            return
        time.sleep(LOOK_S)


def _tracker(stage: Stage) -> int | None:
    try:
        return layout.read_tracker(stage.save_dir)
    except TornCheckpoint:
        return None  # slime truncates and writes it, so a torn tracker is one caught half-way (slime.md 2.3)


def _seal_last_words(stage: Stage, publisher: Publisher) -> None:
    try:
        publisher.finish(NOTICE_S)
    except StoreError as error:
        stage.log(f"WARNING the newest checkpoint was not sealed in the time left: {error}")


def _check_end(stage: Stage, jobs: RayJobs, tail: list[str]) -> None:
    """Success = the job ended well, the tracker reached the last expected iteration, and it moved (DESIGN 5.2)."""
    status, reached, last = jobs.status(stage.submission_id), _tracker(stage), stage.expected_last
    start = stage.restored.iteration if stage.restored else None
    if status != "SUCCEEDED":
        problem = f"the trainer ended {status} ({_why(jobs, stage.submission_id)})"
    elif reached is None or reached == start:
        problem = f"the trainer ended well but saved nothing new (tracker: {reached}, restored: {start})"
    elif last is not None and reached != last:
        problem = f"the trainer ended well at iteration {reached} although the last one is {last}"
    elif start is not None and stage.progress.loaded not in (None, start):
        problem = f"the trainer loaded iteration {stage.progress.loaded} although {start} was restored"
    else:
        return
    text = "\n".join(tail) or "(it wrote nothing)"
    raise TrainerFailed(f"Run {stage.order.run_id}, {stage.submission_id}: {problem}. Its last lines:\n{text}")


def _why(jobs: RayJobs, submission_id: str) -> str:
    """The exit code; without one the first line of Ray's message, whose rest repeats the whole command line."""
    code = jobs.exit_code(submission_id)
    if code is not None:
        return f"exit code {code}"
    return ((jobs.message(submission_id) or "").splitlines() or ["Ray gives no reason"])[0]


def _is_complete(stage: Stage) -> bool:
    return stage.restored is not None and stage.restored.iteration == stage.expected_last


def _result(stage: Stage, store: CheckpointStore, outcome: str) -> StageResult:
    order = stage.order
    newest = store.latest(order.run_id, order.stage)
    if newest is None:
        raise StoreError(
            f"{store.uri} has no checkpoint of {order.run_id}/{order.stage} although the stage ended well."
        )
    uri = store.uri_of(newest)
    first, last = stage.progress.ends()
    exported = any(entry.path.startswith("hf/") for entry in newest.files)
    return StageResult(
        run_id=order.run_id,
        stage=order.stage,
        attempt=order.attempt,
        outcome="already complete" if outcome == "already complete" else "completed",
        resumed_from=stage.restored.iteration if stage.restored else None,
        first_iteration=stage.progress.first_iteration,
        last_iteration=newest.iteration,
        checkpoint_uri=uri,
        export_uri=f"{uri}/hf/{newest.iteration}" if exported else None,
        first=first,
        last=last,
        seconds=stage.seconds,
    )
