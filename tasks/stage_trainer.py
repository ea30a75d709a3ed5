"""The trainer of one attempt: started through Ray, listened to, stopped, and judged at its end.

Waiting is done in the main thread, because a thread would swallow SIGTERM (prefect.md 3).
"""

import os
import time
from collections import deque
from pathlib import Path

from plugins.checkpoints.publisher import Publisher
from plugins.checkpoints.restore import settle
from plugins.errors import ControlPlaneError, StoreError, TornCheckpoint
from plugins.rayjobs.jobs import FINAL, RayJobs
from plugins.rayjobs.tail import LogTail
from plugins.slime import layout
from plugins.slime.diagnose import TAIL_LINES
from plugins.slime.hooks import PROGRESS_FILE
from plugins.slime.launch import Launch
from plugins.slime.progress import Point, ProgressParser, undressed
from plugins.slime.resume import ResumeProof
from tasks.stage_attempt import ResumeUnproved, Stage, StageEnded
from tasks.stage_failure import SHOWN_LINES, ended_badly
from tasks.stage_watch import StageWatch
from tasks.trainer_spec import with_own

LOOK_S = 0.2
JOB_LOOK_S = 1.0
NOTICE_S = 12.0  # what a terminated stage may spend on sealing; Prefect's runner kills it after 30 s
RAY_SILENT_S = 60.0


def run_trainer(stage: Stage, jobs: RayJobs, launch: Launch, publisher: Publisher) -> None:
    """Submit the trainer and follow it to its end; raises unless it reached its last iteration.

    Raises TrainerFailed, PodUnfit, ResumeUnproved, StageEnded, Fenced, StoreError, ControlPlaneError. Whatever ends
    it, no trainer stays, and what it completed is sealed if time allows.
    """
    log_file = stage.attempt_dir / "trainer.log"
    env = with_own(launch.env, stage.order.recipe.env)
    stage.proof = ResumeProof(
        stage.restored.iteration if stage.restored else None,
        stage.cursor,
        kind=stage.order.recipe.trainer.kind,
        load_dir=stage.load_dir or stage.save_dir,
        steps_per_rollout=stage.progress.steps_per_rollout,
    )
    for note in launch.notes:
        stage.log(note)
    if stage.kind == "slime":  # a `command` trainer need not say anything
        stage.unproved_mark.touch()
    since = float(int(time.time()))  # file times are coarser than the clock
    jobs.submit(stage.submission_id, launch.argv, env, launch.cwd, log_file)
    stage.log(f"trainer submitted to Ray as {stage.submission_id}; its log on the pod is {log_file}")
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    voice = _Voice(log_file, env.get(PROGRESS_FILE), StageWatch(stage))
    try:
        _follow(stage, jobs, voice, publisher, tail)
        _check_end(stage, jobs, tail, since)
    except BaseException:  # whatever ends it, a signal too: no trainer stays
        try:
            jobs.stop(stage.submission_id, timeout_s=10)
        except ControlPlaneError as error:  # must not hide why the stage ends
            stage.log(f"WARNING the trainer may still run: {error}")
        voice.hear(stage, tail, final=True)
        if _trusted(stage, final=True):
            _seal_last_words(stage, publisher)
        else:
            _set_aside(stage, publisher)
        raise
    _upload_last(stage, publisher)


def _upload_last(stage: Stage, publisher: Publisher) -> None:
    """Wait for the stores to have the last checkpoint, with an ear for a cancel. Raises StoreError, StageEnded."""
    deadline = time.monotonic() + stage.order.recipe.checkpoint.final_upload_minutes * 60
    with stage.timed("upload"):
        while not _all_sent(stage, publisher) and time.monotonic() < deadline:
            stage.beat()
            try:
                stage.check_ended()
            except StageEnded:
                _seal_last_words(stage, publisher)
                raise
        publisher.finish(0)


def _all_sent(stage: Stage, publisher: Publisher) -> bool:
    return publisher.wait(LOOK_S) and (stage.pusher is None or stage.pusher.wait(LOOK_S))


class _Voice:
    """Everything the trainer says: its log, and the hook's file where the trainer has one."""

    def __init__(self, log: Path, hook: str | None, watch: StageWatch) -> None:
        self._log, self._hook = LogTail(log), LogTail(Path(hook)) if hook else None
        self.watch = watch
        self._parser = ProgressParser()

    def hear(self, stage: Stage, tail: deque[str], *, final: bool) -> None:
        """Take in what is new; `tail` keeps the last lines, to tell from them why the trainer failed."""
        assert stage.proof is not None
        for line in self._log.lines(final=final):
            stage.trainer_log(line)
            prefix, text = undressed(line)
            tail.append(f"{prefix[0] if prefix else ''}{text}")
            stage.proof.hear_line(line)
            self.watch.hear_line(line)
            self._take(stage, self._parser.feed(line))
        if self._log.grew and self._log.rest:
            self.watch.hear_rest(self._log.rest)
        for line in self._hook.lines(final=final) if self._hook else ():
            stage.proof.hear_hook_line(line)
            self._take(stage, self._parser.feed_hook(line))

    def last_lines(self, tail: deque[str]) -> list[str]:
        """What it wrote last, with a line that is not ended yet."""
        return [*list(tail)[-SHOWN_LINES:], *filter(None, [self._log.rest])]

    def _take(self, stage: Stage, point: Point | None) -> None:
        if point is not None:
            stage.progress.take(point)
            self.watch.take(point)


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


def _follow(stage: Stage, jobs: RayJobs, voice: _Voice, publisher: Publisher, tail: deque[str]) -> None:
    watch, parent = _JobWatch(jobs, stage.submission_id), os.getppid()
    offered = stage.restored.iteration if stage.restored else None  # what is newer is new, however early it came
    while True:
        ended = watch.ended()
        voice.hear(stage, tail, final=ended)
        _check_resumed(stage, final=ended)
        reached = read_tracker(stage)
        if reached is not None and (offered is None or reached > offered) and _trusted(stage, final=ended):
            publisher.offer(reached)
            offered = reached
        stage.beat()
        stage.check_ended()
        if os.getppid() != parent:
            raise StageEnded("The Prefect worker of this pod died; its supervisor starts another one.")
        if ended:
            voice.watch.end()
            return
        voice.watch.check(voice.last_lines(tail))
        time.sleep(LOOK_S)


def _check_resumed(stage: Stage, *, final: bool) -> None:
    """A resume that shows itself to be none is stopped at once: every second of it is paid for and worth nothing."""
    assert stage.proof is not None
    stage.proof.see_tracker(read_tracker(stage))
    verdict = stage.proof.verdict(final=final)
    if verdict.failed:
        raise ResumeUnproved(f"Run {stage.order.run_id}, {stage.submission_id}: {verdict.reason}")
    if verdict.proved and stage.unproved_mark.exists():
        stage.unproved_mark.unlink()
        stage.log(f"the start is proved: {verdict.reason}")


def _trusted(stage: Stage, *, final: bool = False) -> bool:
    """Whether what the trainer saves may be published: not before its start is known to be the one asked for."""
    assert stage.proof is not None
    return stage.proof.verdict(final=final).outcome in ("proved", "unproved")


def read_tracker(stage: Stage) -> int | None:
    """What the tracker names now; None when there is none or it is just being written."""
    try:
        return layout.read_tracker(stage.save_dir)
    except TornCheckpoint:
        return None  # slime truncates and writes it, so a torn tracker is one caught half-way (slime.md 2.3)


def _seal_last_words(stage: Stage, publisher: Publisher) -> None:
    """Seal and send what a killed trainer completed, to whichever store is fastest."""
    try:
        complete = layout.complete_iterations(
            stage.save_dir, kind=stage.kind, dataset_state=stage.kind == "slime", export=stage.export
        )  # killed between its last file and the tracker, a trainer leaves one that no tracker names
        left = max(complete, default=None)
        start = stage.restored.iteration if stage.restored else None
        if left is not None and left != start and left != publisher.offered:
            publisher.offer(left)
        publisher.finish(NOTICE_S, anywhere=True)
    except StoreError as error:
        stage.log(f"WARNING the newest checkpoint was not sealed in the time left: {error}")


def _set_aside(stage: Stage, publisher: Publisher) -> None:
    """What was trained from an unknown start is no part of the run: the next attempt must not find it complete."""
    publisher.stop()
    try:
        settle(stage.save_dir, stage.restored.iteration if stage.restored else None)
    except StoreError as error:
        stage.log(f"WARNING {error}")


def _check_end(stage: Stage, jobs: RayJobs, tail: deque[str], since: float) -> None:
    """Success = the job ended well, the tracker reached the last expected iteration, and it moved (DESIGN 5.2)."""
    status, reached, last = jobs.status(stage.submission_id), read_tracker(stage), stage.expected_last
    start = stage.restored.iteration if stage.restored else None
    if status != "SUCCEEDED":
        problem = f"the trainer ended {status} ({_why(jobs, stage.submission_id)})"
    elif reached is None or reached == start:
        problem = f"the trainer ended well but saved nothing new (tracker: {reached}, restored: {start})"
    elif last is not None and reached != last:
        problem = f"the trainer ended well at iteration {reached} although the last one is {last}"
    else:
        return
    code = jobs.exit_code(stage.submission_id)
    raise ended_badly(stage, problem, list(tail), exit_reason=status, exit_code=code, since=since)


def _why(jobs: RayJobs, submission_id: str) -> str:
    """The exit code; without one the first line of Ray's message, whose rest repeats the whole command line."""
    code = jobs.exit_code(submission_id)
    if code is not None:
        return f"exit code {code}"
    return ((jobs.message(submission_id) or "").splitlines() or ["Ray gives no reason"])[0]
