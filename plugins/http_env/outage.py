"""Keeps one failed sample and a dead environment apart.

A failed sample is dropped and said so. When nothing but failures came for a long time the job must fail: dropped
samples carry no gradient, and a run that trains on nothing would end as a success.
"""

import logging
import time
from collections.abc import Callable

from plugins.errors import UserError

log = logging.getLogger(__name__)


class Outage:
    """Failures in a row in this process. Says the first and then every fiftieth: an outage must not fill the log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._since = 0.0

    def success(self) -> None:
        """A sample went through."""
        if self._failures > 1:
            log.info("http_env: working again after %d dropped samples", self._failures)
        self._failures = 0

    def failure(self, reason: str, *, give_up_s: float, give_up_samples: int) -> None:
        """A sample was dropped for `reason`; raises UserError when that has gone on for too long."""
        if not self._failures:
            self._since = self._clock()
        self._failures += 1
        lasted_s = self._clock() - self._since
        if self._failures % 50 == 1:
            log.warning("http_env: sample dropped, not scored (%d in a row): %s", self._failures, reason)
        if self._failures >= give_up_samples and lasted_s >= give_up_s:
            raise UserError(
                f"{self._failures} samples in a row were dropped in {lasted_s:.0f} s, so nothing is learnt; "
                f"the last one: {reason}. "
                "Bring the environment back, then start the run again: it resumes"
            )
