"""Live progress of a stage for the person who started it: a bar on a terminal, a line now and then elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tasks.run import Run
from tasks.stage_contract import Heartbeat, describe

LINE_EVERY_S = 15.0


class Display:
    """Shows heartbeats of one stage while its attempt is waited for. Use as a context manager."""

    def __init__(self, run: Run, stage: str) -> None:
        self._run, self._stage = run, stage
        self._bar: Progress | None = None
        self._shown: str | None = None
        self._next_line = 0.0
        if sys.stderr.isatty():
            columns = (
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[words]}", markup=False),
            )
            self._bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(f"{run.run_id} {stage}", total=None, words="waiting for the worker")

    def __enter__(self) -> "Display":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, beat: Heartbeat | None) -> None:
        """Show the newest heartbeat; cheap to call often."""
        if beat is None:
            return
        words = describe(beat)
        if self._bar:
            done = 0 if beat.iteration is None else beat.iteration + 1
            self._bar.update(self._task, total=beat.of, completed=done, words=words)
        elif words != self._shown and time.monotonic() >= self._next_line:
            self._run.log(f"{self._stage}: {words}")
            self._shown, self._next_line = words, time.monotonic() + LINE_EVERY_S
