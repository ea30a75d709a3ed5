"""Whether a pod still lives: the table of DESIGN 5.1 as one pure function.

Systems that read one failed listing as "all pods are gone" have killed healthy jobs and rented replacements for
them. So every answer here needs positive evidence, and whatever is not known is `unknown`: keep going, keep asking.
Collecting the evidence (listing, look-up, heartbeat, SSH) is the caller's; this module reads no clock and no network.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from plugins.lium.pods import RUNNING, TERMINAL_STATUSES


class Lookup(StrEnum):
    """What `GET /pods/{id}` said, asked after the row was absent from the listing."""

    NOT_ASKED = "not asked"
    FOUND = "found"
    GONE = "gone"
    NO_ANSWER = "no answer"


class Probe(StrEnum):
    """What was seen of the stage's process over SSH, after its heartbeat got old."""

    NOT_ASKED = "not asked"
    RUNNING = "running"
    GONE = "gone"
    NO_ANSWER = "no answer"


class Life(StrEnum):
    """The five verdicts."""

    ALIVE = "alive"
    LOST = "lost"
    FAILED = "failed"
    PROBE = "probe"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Evidence:
    """What is known about one pod. Times are seconds of the same clock as `now`.

    status: the row's status in the newest good listing; None if that listing has no such row.
    good_listings_absent: good listings in a row that did not have the row (a failed listing does not count).
    listing_error: what went wrong when the newest listing failed (5xx, 429, time-out); None if it was good.
    lookup: the single look-up; it counts only if it was asked after the second absence.
    heartbeat_at: the stage's last heartbeat; None if there was none yet.
    probe, ssh_dead_since: the SSH probe and since when SSH has not answered (None: it answers, or was not tried).
    cause: why the pod ended, from its events.
    """

    status: str | None = None
    good_listings_absent: int = 0
    listing_error: str | None = None
    lookup: Lookup = Lookup.NOT_ASKED
    heartbeat_at: float | None = None
    probe: Probe = Probe.NOT_ASKED
    ssh_dead_since: float | None = None
    cause: str | None = None


@dataclass(frozen=True)
class Verdict:
    """One of the five verdicts and the sentence that goes into logs and messages."""

    life: Life
    reason: str = field(compare=False)


def wants_lookup(evidence: Evidence) -> bool:
    """Whether the single look-up is the next thing to ask."""
    return evidence.listing_error is None and evidence.status is None and evidence.good_listings_absent >= 2


def verdict(evidence: Evidence, now: float, *, fresh_s: float = 30.0, unreachable_after_s: float = 180.0) -> Verdict:
    """Decide by DESIGN 5.1.

    `fresh_s`: how old a fresh heartbeat may be; `unreachable_after_s`: for how long SSH may not answer before an old
    heartbeat means that the pod is lost.
    """
    if evidence.listing_error is not None:
        return Verdict(Life.UNKNOWN, f"the pod listing failed: {evidence.listing_error}")
    if evidence.status is None:
        return _absent(evidence)
    status = evidence.status.upper()
    if status in TERMINAL_STATUSES:
        return Verdict(Life.LOST, f"the pod is {status}: {evidence.cause or 'Lium gives no cause'}")
    if status != RUNNING:
        return Verdict(Life.UNKNOWN, f"the pod's status is {status}")
    return _running(evidence, now, fresh_s, unreachable_after_s)


def _absent(evidence: Evidence) -> Verdict:
    if evidence.good_listings_absent < 2:
        return Verdict(Life.UNKNOWN, f"no row in {evidence.good_listings_absent} good listing(s); two are needed")
    if evidence.lookup is Lookup.GONE:
        cause = evidence.cause or "Lium gives no cause"
        return Verdict(Life.LOST, f"the pod is in no listing and its look-up says 404: {cause}")
    if evidence.lookup is Lookup.FOUND:
        return Verdict(Life.UNKNOWN, "the pod is in no listing, but its look-up finds it")
    return Verdict(Life.UNKNOWN, f"the pod is in no listing; look-up: {evidence.lookup}")


def _running(evidence: Evidence, now: float, fresh_s: float, unreachable_after_s: float) -> Verdict:
    if evidence.heartbeat_at is not None and now - evidence.heartbeat_at <= fresh_s:
        return Verdict(Life.ALIVE, "the pod runs and the stage's heartbeat is fresh")
    age = "no heartbeat yet" if evidence.heartbeat_at is None else f"heartbeat {now - evidence.heartbeat_at:.0f} s old"
    if evidence.probe is Probe.GONE:
        return Verdict(Life.FAILED, f"the pod runs, but the stage's process is gone ({age})")
    if evidence.probe is Probe.RUNNING:
        return Verdict(Life.ALIVE, f"the stage's process was seen over SSH ({age})")
    if evidence.ssh_dead_since is not None and now - evidence.ssh_dead_since >= unreachable_after_s:
        return Verdict(Life.LOST, f"SSH has not answered for {now - evidence.ssh_dead_since:.0f} s ({age})")
    return Verdict(Life.PROBE, f"the pod runs, {age}: look over SSH")
