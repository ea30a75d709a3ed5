"""The watchdog of one attempt: it hears what the trainer says, warns, and stops a trainer that stands still."""

import time
from collections.abc import Callable, Sequence

from plugins.slime.progress import Point
from plugins.slime.watchdog import Watchdog
from tasks.stage_attempt import Stage
from tasks.stage_failure import stood_still


class StageWatch:
    """Made when the trainer is submitted. clock: monotonic seconds."""

    def __init__(self, stage: Stage, *, clock: Callable[[], float] = time.monotonic) -> None:
        recipe = stage.order.recipe
        stall = recipe.watchdog.stall_minutes
        self._stage = stage
        self._dog = Watchdog(
            None if stall is None else stall * 60,
            recipe.watchdog.start_minutes * 60,
            kind=recipe.trainer.kind,
            steps_per_rollout=stage.progress.steps_per_rollout,
            clock=clock,
        )

    def hear_line(self, line: str) -> None:
        """Take a line of the trainer's log."""
        self._dog.hear_line(line)

    def hear_rest(self, rest: str) -> None:
        """Take the log's last line, not ended yet, when the log has grown."""
        self._dog.hear_rest(rest)

    def take(self, point: Point) -> None:
        """Take a point that is heard for the first time."""
        self._dog.take(point)

    def check(self, tail: Sequence[str]) -> None:
        """Put a warning into the heartbeat when a stall is near. Raises TrainerFailed on a stall."""
        stage = self._stage
        warning = self._dog.warning()
        if warning is not None and stage.progress.stalled is None:
            stage.log(f"WARNING {warning}")
        stage.progress.stalled = warning
        if (stall := self._dog.stall()) is not None:
            raise stood_still(stage, stall, tail)

    def end(self) -> None:
        """The trainer has ended: there is nothing to warn of any more."""
        self._stage.progress.stalled = None
