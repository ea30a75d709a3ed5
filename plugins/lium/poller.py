"""One listing poller for all pods of this process.

Lium allows 60 listings a minute for a whole account, so every waiting loop asks the poller what it saw instead of
asking Lium. It looks each second while a watched pod boots, more slowly afterwards, and backs off on errors as long
as Lium asks. It only reports; what an absence means is `liveness.py`'s.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from plugins.errors import ControlPlaneError, PodLost, TrainstackError
from plugins.lium.boundary import RateLimited
from plugins.lium.client import LiumAccount
from plugins.lium.liveness import Evidence, Lookup, Probe
from plugins.lium.pods import PodRow

PER_MINUTE = 60
FIRST_LOOKS = 3
FIRST_INTERVAL_S = 0.3
LONGEST_BACKOFF_S = 30.0
NEVER_LISTED_S = 20.0  # the SDK's MISSING_GRACE_SECONDS: a rented pod that no listing shows so long is gone


class Listing(Protocol):
    """What the poller needs of an account."""

    def pods(self, prefix: str = "", *, patient: bool = True) -> Sequence[PodRow]:
        """List the pods."""
        ...


@dataclass(frozen=True)
class Sighting:
    """What the listings showed of one pod since it is watched. Times are `time.time()` seconds.

    `row` is the row of the newest good listing (None: it had none), `last_row` the newest row ever seen, `error` what
    went wrong if the newest listing failed. `good_listings_absent` counts good listings in a row without the pod.
    """

    row: PodRow | None = None
    last_row: PodRow | None = None
    good_listings_absent: int = 0
    last_good_at: float | None = None
    error: str | None = None

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
    """Lists the account's pods from one thread, for every pod that is watched."""

    def __init__(self, account: Listing, *, interval_s: float = 3.0, boot_interval_s: float = 1.0) -> None:
        self._account = account
        self._interval_s = interval_s
        self._boot_interval_s = boot_interval_s
        self._changed = threading.Condition()
        self._sightings: dict[str, Sighting] = {}
        self._looks: deque[float] = deque(maxlen=PER_MINUTE)
        self._quick_looks = 0
        self._failures = 0
        self._asked_pause_s = 0.0
        self._closed = False
        self._thread: threading.Thread | None = None

    def watch(self, name: str) -> None:
        """Begin to report on the pod of this name; the first look is at once. Watching twice is watching once."""
        with self._changed:
            if self._closed:
                raise ControlPlaneError("the pod poller is closed")
            if name in self._sightings:
                return
            self._sightings[name] = Sighting()
            self._quick_looks = FIRST_LOOKS
            if self._thread is None:
                self._thread = threading.Thread(target=self._poll, name="pod-poller", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def unwatch(self, name: str) -> None:
        """Stop reporting on a pod; without any watched pod nothing is listed."""
        with self._changed:
            self._sightings.pop(name, None)

    def snapshot(self, name: str) -> Sighting:
        """Return what is known now, without asking Lium. An unwatched name is watched from here on."""
        self.watch(name)
        with self._changed:
            return self._sightings.get(name, Sighting())

    def wait(self, timeout_s: float) -> None:
        """Wait for the next listing, good or failed, or until the time is over."""
        with self._changed:
            self._changed.wait(timeout_s)

    def close(self) -> None:
        """End the thread (at once, or after the listing that is on its way). May be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(2.0)

    def _poll(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (pause_s := self._pause_s()) > 0:
                    self._changed.wait(pause_s)
                if self._closed:
                    return
                self._looks.append(time.monotonic())
                self._quick_looks = max(0, self._quick_looks - 1)
            try:
                rows = list(self._account.pods(patient=False))
            except TrainstackError as error:
                self._note_failure(error)
            else:
                self._note_rows(rows)

    def _pause_s(self) -> float:
        """How long until the next look; the window of 60 looks a minute holds whatever the rhythm is."""
        if not self._sightings:
            return 3600.0
        if not self._looks:
            return 0.0
        now = time.monotonic()
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
        with self._changed:
            self._failures += 1
            self._asked_pause_s = (error.retry_after_s or 0.0) if isinstance(error, RateLimited) else 0.0
            for name, sighting in self._sightings.items():
                self._sightings[name] = replace(sighting, error=str(error))
            self._changed.notify_all()

    def _note_rows(self, rows: Sequence[PodRow]) -> None:
        with self._changed:
            self._failures = 0
            for name, before in self._sightings.items():
                found = sorted((row for row in rows if row.name == name), key=lambda row: row.terminal)
                row = found[0] if found else None
                self._sightings[name] = Sighting(
                    row=row,
                    last_row=row or before.last_row,
                    good_listings_absent=0 if row else before.good_listings_absent + 1,
                    last_good_at=time.time(),
                )
            self._changed.notify_all()


def wait_ready(
    account: LiumAccount,
    name: str,
    timeout_s: float,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    poller: PodPoller | None = None,
) -> PodRow | None:
    """Wait until the pod runs and says where its SSH server is; None if `cancelled()` came first.

    Without `poller` one is made for this wait. PodLost: the pod failed (with Lium's cause), vanished, or was not ready
    within `timeout_s`. A listing that fails is no reason to give up before that.
    """
    used = poller or PodPoller(account)
    try:
        return _wait_ready(account, used, name, timeout_s, cancelled)
    finally:
        if poller is None:
            used.close()


def _wait_ready(
    account: LiumAccount, poller: PodPoller, name: str, timeout_s: float, cancelled: Callable[[], bool]
) -> PodRow | None:
    started = time.monotonic()
    while not cancelled():
        seen = poller.snapshot(name)
        if seen.row is not None and seen.row.reachable:
            return seen.row
        waited_s = time.monotonic() - started
        _raise_if_gone(account, name, seen, waited_s)
        if waited_s >= timeout_s:
            state = f"{seen.last_row.status} {seen.last_row.phase or ''}".strip() if seen.last_row else "never listed"
            raise PodLost(f"pod {name} was not ready within {timeout_s:.0f} s ({seen.error or state})")
        poller.wait(min(0.25, timeout_s - waited_s))
    return None


def _raise_if_gone(account: LiumAccount, name: str, seen: Sighting, waited_s: float) -> None:
    if seen.row is not None and seen.row.terminal:
        raise PodLost(f"pod {name} is {seen.row.status}: {account.cause(seen.row.id) or 'Lium gives no cause'}")
    if seen.error is not None or seen.row is not None or seen.good_listings_absent < 2:
        return
    if seen.last_row is None:
        if waited_s >= NEVER_LISTED_S:
            raise PodLost(f"pod {name} was in none of {seen.good_listings_absent} listings of {waited_s:.0f} s")
        return
    try:
        gone = account.look_up(seen.last_row.id) is None
    except ControlPlaneError:
        return
    if gone:
        raise PodLost(f"pod {name} vanished while it booted: {account.cause(seen.last_row.id) or 'no cause given'}")
