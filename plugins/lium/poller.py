"""One listing poller for all pods of this process.

Lium allows 60 listings a minute for a whole account, so every waiting loop asks the poller what it saw instead of
asking Lium. It looks each second while a watched pod boots, more slowly afterwards, and backs off on errors as long
as Lium asks. It only reports; what an absence means is `liveness.py`'s.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from plugins.errors import ControlPlaneError, PodLost, TrainstackError
from plugins.lium import clusters
from plugins.lium.boundary import RateLimited
from plugins.lium.client import LiumAccount
from plugins.lium.clock import Background, Clock, SystemClock
from plugins.lium.liveness import Evidence, Lookup, Probe
from plugins.lium.pods import PodRow

PER_MINUTE = 60
FIRST_LOOKS = 3
FIRST_INTERVAL_S = 0.3
LONGEST_BACKOFF_S = 30.0
NEVER_LISTED_S = 20.0  # the SDK's MISSING_GRACE_SECONDS


class Listing(Protocol):
    """What the poller needs of an account."""

    def pods(self, prefix: str = "", *, patient: bool = True) -> Sequence[PodRow]:
        """List the pods."""
        ...


@dataclass(frozen=True)
class Sighting:
    """What the listings showed of one pod since it is watched. Times are `time.time()` seconds.

    `row` is the row of the newest good listing (None: it had none), `last_row` the newest row ever seen, `error` what
    went wrong if the newest listing failed. `good_listings_absent` counts good listings in a row without the pod. A
    cluster of which a node is absent is absent; `missing` is the id of that node.
    """

    row: PodRow | None = None
    last_row: PodRow | None = None
    good_listings_absent: int = 0
    last_good_at: float | None = None
    error: str | None = None
    missing: str | None = None

    def evidence(
        self,
        *,
        lookup: Lookup = Lookup.NOT_ASKED,
        heartbeat_at: float | None = None,
        probe: Probe = Probe.NOT_ASKED,
        ssh_dead_since: float | None = None,
        cause: str | None = None,
    ) -> Evidence:
        """Put this sighting together with the other sources for `liveness.verdict`."""
        return Evidence(
            status=self.row.status if self.row else None,
            good_listings_absent=self.good_listings_absent,
            listing_error=self.error,
            lookup=lookup,
            heartbeat_at=heartbeat_at,
            probe=probe,
            ssh_dead_since=ssh_dead_since,
            cause=cause,
        )


class PodPoller:
    """Lists the account's pods from one duty, for every pod that is watched."""

    def __init__(
        self,
        account: Listing,
        *,
        interval_s: float = 3.0,
        boot_interval_s: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        self._account = account
        self._interval_s = interval_s
        self._boot_interval_s = boot_interval_s
        self.clock: Clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._sightings: dict[str, Sighting] = {}
        self._expected: dict[str, tuple[str, ...]] = {}
        self._looks: deque[float] = deque(maxlen=PER_MINUTE)
        self._quick_looks = 0
        self._failures = 0
        self._asked_pause_s = 0.0
        self._closed = False
        self._duty: Background | None = None

    def watch(self, name: str) -> None:
        """Begin to report on the pod of this name; the first look is at once. Watching twice is watching once."""
        with self._lock:
            if self._closed:
                raise ControlPlaneError("the pod poller is closed")
            if name in self._sightings:
                return
            self._sightings[name] = Sighting()
            self._quick_looks = FIRST_LOOKS
            if self._duty is None:
                self._duty = self.clock.duty("pod-poller", self._turn)
            else:
                self._duty.wake()

    def expect(self, pod: PodRow) -> None:
        """Watch a pod of which all these nodes must be listed; for a single pod the name is enough."""
        if pod.members:
            with self._lock:
                self._expected[pod.name] = pod.ids
        self.watch(pod.name)

    def unwatch(self, name: str) -> None:
        """Stop reporting on a pod; without any watched pod nothing is listed."""
        with self._lock:
            self._sightings.pop(name, None)
            self._expected.pop(name, None)

    def snapshot(self, name: str) -> Sighting:
        """Return what is known now, without asking Lium. An unwatched name is watched from here on."""
        self.watch(name)
        with self._lock:
            return self._sightings.get(name, Sighting())

    def wait(self, timeout_s: float) -> None:
        """Wait for the next listing, good or failed, or until the time is over."""
        self._news.clear()
        self.clock.sleep(timeout_s, self._news)

    def close(self) -> None:
        """End the duty (at once, or after the listing that is on its way). May be called again."""
        self._closed = True
        if self._duty is not None:
            self._duty.stop()

    def _turn(self) -> float:
        """Look if it is time to; returns the seconds until the next look."""
        with self._lock:
            if self._closed or (pause_s := self._pause_s()) > 0:
                return 3600.0 if self._closed else pause_s
            self._looks.append(self.clock.monotonic())
            self._quick_looks = max(0, self._quick_looks - 1)
        try:
            rows = list(self._account.pods(patient=False))
        except TrainstackError as error:
            self._note_failure(error)
        else:
            self._note_rows(rows)
        self._news.set()
        with self._lock:
            return self._pause_s()

    def _pause_s(self) -> float:
        """How long until the next look; the window of 60 looks a minute holds whatever the rhythm is."""
        if not self._sightings:
            return 3600.0
        if not self._looks:
            return 0.0
        now = self.clock.monotonic()
        due = self._looks[-1] + self._rhythm_s()
        if len(self._looks) == PER_MINUTE:
            due = max(due, self._looks[0] + 60.0)
        return due - now

    def _rhythm_s(self) -> float:
        if self._failures:
            return max(self._asked_pause_s, min(2.0**self._failures, LONGEST_BACKOFF_S))
        if self._quick_looks:
            return FIRST_INTERVAL_S
        booting = any(s.row is None or not s.row.reachable for s in self._sightings.values())
        return self._boot_interval_s if booting else self._interval_s

    def _note_failure(self, error: TrainstackError) -> None:
        with self._lock:
            self._failures += 1
            self._asked_pause_s = (error.retry_after_s or 0.0) if isinstance(error, RateLimited) else 0.0
            for name, sighting in self._sightings.items():
                self._sightings[name] = replace(sighting, error=str(error))

    def _note_rows(self, rows: Sequence[PodRow]) -> None:
        with self._lock:
            self._failures = 0
            for name, before in self._sightings.items():
                found = sorted((row for row in rows if row.name == name), key=lambda row: row.terminal)
                row = found[0] if found else None
                expected = self._expected.get(name, ())
                there = row.ids if row else ()
                missing = next((one for one in expected if one not in there), None)
                row = row if missing is None else None
                self._sightings[name] = Sighting(
                    row=row,
                    last_row=row or before.last_row,
                    good_listings_absent=0 if row else before.good_listings_absent + 1,
                    last_good_at=self.clock.now(),
                    missing=missing,
                )


def wait_ready(
    account: LiumAccount, pod: PodRow, timeout_s: float, poller: PodPoller, check: Callable[[], None] = lambda: None
) -> PodRow:
    """Wait until the pod runs and says where its SSH server is; `check` is called all the while and may raise.

    PodLost: the pod failed (with Lium's cause), is gone, or was not ready within `timeout_s`. A listing that fails, or
    that does not have the pod while its look-up finds it, is no reason to give up before that.
    """
    began, asked_at = poller.clock.monotonic(), 0
    poller.expect(pod)
    while True:
        check()
        seen = poller.snapshot(pod.name)
        if seen.row is not None and seen.row.reachable:
            return seen.row
        if seen.row is not None and seen.row.terminal:
            ended = clusters.trouble(seen.row) or pod
            what = clusters.called(seen.row, ended) or f"pod {pod.name}"
            raise PodLost(f"{what} is {seen.row.status}: {account.cause(ended.id) or 'Lium gives no cause'}")
        waited_s = poller.clock.monotonic() - began
        asked_at = 0 if seen.row is not None else asked_at
        late = seen.last_row is None and waited_s < NEVER_LISTED_S  # a rented pod may be listed a little later
        if seen.error is None and not late and seen.good_listings_absent >= max(2, asked_at + 1):
            asked_at = seen.good_listings_absent
            _raise_if_gone(account, pod)
        if waited_s >= timeout_s:
            state = f"{seen.last_row.status} {seen.last_row.phase or ''}".strip() if seen.last_row else "never listed"
            raise PodLost(f"pod {pod.name} was not ready within {timeout_s:.0f} s ({seen.error or state})")
        poller.wait(min(1.0, timeout_s - waited_s))


def _raise_if_gone(account: LiumAccount, pod: PodRow) -> None:
    try:
        gone = next((node for node in pod.nodes if account.look_up(node.id) is None), None)
    except ControlPlaneError:
        return
    if gone is not None:
        what = clusters.called(pod, gone) or f"pod {pod.name}"
        raise PodLost(f"{what} vanished while it booted: {account.cause(gone.id) or 'no cause given'}")
