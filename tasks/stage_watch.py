"""The watchdog of one attempt: it hears what the trainer says, looks at what Ray's workers draw, and stops a trainer
that stands still.
"""

import time
from collections.abc import Callable, Sequence

from plugins.slime.progress import Point
from plugins.slime.watchdog import Watchdog
from plugins.slime.worker_logs import bars
from tasks.stage_attempt import Stage
from tasks.stage_failure import ray_logs, stood_still

LOOK_S = 10.0


class StageWatch:
    """Made when the trainer is submitted. clock: monotonic seconds."""

    def __init__(self, stage: Stage, *, clock: Callable[[], float] = time.monotonic) -> None:
        recipe = stage.order.recipe
        stall = recipe.watchdog.stall_minutes
        self._stage, self._clock = stage, clock
        self._dog = Watchdog(
            None if stall is None else stall * 60,
            recipe.watchdog.start_minutes * 60,
            kind=recipe.trainer.kind,
            steps_per_rollout=stage.progress.steps_per_rollout,
            clock=clock,
        )
        self._since, self._next_look = time.time(), 0.0

    def hear_line(self, line: str) -> None:
        """Take a line of the trainer's log."""
        self._dog.hear_line(line)

    def take(self, point: Point) -> None:
        """Take a point that is heard for the first time."""
        self._dog.take(point)

    def check(self, tail: Sequence[str]) -> None:
        """Put a warning into the heartbeat when a stall is near. Raises TrainerFailed on a stall."""
        stage = self._stage
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + LOOK_S
            logs = ray_logs(stage)
            for drawn in bars(logs, self._since) if logs else ():
                self._dog.see_bar(*drawn)
        warning = self._dog.warning()
        if warning is not None and stage.progress.stalled is None:
            stage.log(f"WARNING {warning}")
        stage.progress.stalled = warning
        if (stall := self._dog.stall()) is not None:
            raise stood_still(stage, stall, tail)
