"""One attempt of a stage while it is being carried out on the pod: where its files are, and what is known of it.

    <HOME>/trainstack/runs/<run_id>/<stage>/save/         the trainer's save dir (local disk, never a store)
                                           /load/         the save dir as the trainer is to load it, where they differ
                                           /init/         weights to start from, when they come from another stage
                                           /unproved      while the trainer has not shown where it started
                                           /attempt-<n>/  trainer.log, environment server, rollouts

The folder outlives the attempt: a next attempt on the same pod finds the checkpoints already there.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.publisher import Origin, Publisher
from plugins.errors import Fenced, TornCheckpoint, TrainstackError, UserError
from plugins.slime import layout
from plugins.slime.cursor import Cursor, read_cursor
from plugins.slime.resume import ResumeProof
from tasks.stage_contract import Heartbeat, Milestone, StageOrder
from tasks.stage_progress import StageProgress

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


class PodUnfit(TrainstackError):
    """The trainer failed by the pod's hardware: another host may do. The message is that of a TrainerFailed."""


class ResumeUnproved(TrainstackError):
    """The trainer did not go on from the restored checkpoint; the message says how that showed."""


class MilestonePusher(Protocol):
    """What pushes milestones to the Hub (`stage_publish.Pusher`)."""

    done: list[Milestone]
    missed: list[str]

    @property
    def warning(self) -> str | None:
        """The newest milestone that was not pushed."""

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is left to push; False when something is after `timeout_s`."""


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
    load_dir: Path | None = None
    publisher: Publisher | None = None
    pusher: MilestonePusher | None = None
    proof: ResumeProof | None = None
    warning: str | None = None
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
    def ray_state(self) -> Path:
        """State dir of this pod's Ray head."""
        return Path(os.environ.get("TRAINSTACK_RAY_STATE") or self.root / "ray").expanduser()

    @property
    def attempt_dir(self) -> Path:
        """Folder of this attempt: logs and rollouts."""
        return self.dir / f"attempt-{self.order.attempt}"

    @property
    def unproved_mark(self) -> Path:
        """A file that is there from a trainer's start until its start is proved: what it saves is not to be trusted."""
        return self.dir / "unproved"

    @property
    def submission_id(self) -> str:
        """Ray submission id; the idempotency key of the trainer's start."""
        return f"{self.order.run_id}-{self.order.stage}-{self.order.attempt}"

    @property
    def cursor(self) -> Cursor | None:
        """The data cursor to go on from; None on a cold start and where the trainer keeps none.

        It stands in `load_dir`, where the launcher may have put it right (`plugins/slime/load_view.py`).
        """
        if self.restored is None:
            return None
        file = layout.dataset_state_file(self.load_dir or self.save_dir, self.restored.iteration)
        try:
            return read_cursor(file) if file.exists() else None
        except TornCheckpoint:
            return None

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
        worried = (publisher, self.pusher, self, self.progress)
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
                warning="; ".join(filter(None, (one.warning for one in worried if one))) or None,
                uploading=publisher.on_its_way if publisher else [],
                restored=self.restored.iteration if self.restored else None,
                first_iteration=self.progress.first_iteration,
                first_new_at=self.progress.first_new_at,
                last_iteration_at=self.progress.last_iteration_at,
                seconds=dict(self.seconds),
                save_interval=self.order.save_interval,
                save_s=self.progress.save_s,
                iteration_s=self.progress.iteration_s,
                figures=self.progress.newest(),
                split=self.progress.split(),
            )
        )

    @property
    def missed(self) -> list[str]:
        """Milestones that were not stored or not pushed, in words."""
        return [line for one in (self.publisher, self.pusher) if one for line in one.missed]

    def origin(self, parent: str | None) -> Origin:
        """In whose name this attempt seals; parent: URI of the checkpoint it goes on from."""
        order = self.order
        return Origin(
            run_id=order.run_id,
            stage=order.stage,
            attempt=order.attempt,
            token=order.attempt,
            kind=self.kind,
            export=self.export,
            parent=parent,
            lineage=order.lineage,
        )

    def check_ended(self) -> None:
        """Raise when this attempt must stop: cancel, a forced state, a newer attempt."""
        if reason := self.listener.ended_from_outside():
            raise StageEnded(f"The flow run was set {reason} from outside.")
        if self.publisher and self.publisher.fenced:
            raise Fenced(self.publisher.fenced)
