"""A limit on how fast checkpoints leave a pod, shared by everything that sends: training needs the network too."""

import threading
import time
from collections.abc import Callable

BURST_S = 0.5


class Throttle:
    """Call it with the number of bytes just sent; it sleeps until the mean speed is under the limit.

    bytes_per_s: None is no limit. It holds over all threads together, not for each.
    """

    def __init__(
        self,
        bytes_per_s: float | None,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bytes_per_s = bytes_per_s
        self._now, self._sleep = now, sleep
        self._lock = threading.Lock()
        self._free_at = now()

    def __call__(self, sent_bytes: int) -> None:
        """Account for bytes that were sent."""
        if self.bytes_per_s is None:
            return
        with self._lock:
            # Time that nobody used is lost but for a short burst: an idle hour must not buy an hour at full speed.
            self._free_at = max(self._free_at, self._now() - BURST_S) + sent_bytes / self.bytes_per_s
            wait_s = self._free_at - self._now()
        if wait_s > 0:
            self._sleep(wait_s)
