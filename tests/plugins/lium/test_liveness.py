"""DESIGN 5.1's table, row by row: what is not known is never a loss."""

import pytest

from plugins.lium.liveness import Evidence, Life, Lookup, Probe, verdict, wants_lookup
from plugins.lium.pods import TERMINAL_STATUSES

NOW = 10_000.0
FRESH = NOW - 5
OLD = NOW - 300

BEATS = [FRESH, OLD, None]


def of(evidence: Evidence) -> Life:
    return verdict(evidence, NOW).life


def test_running_with_a_fresh_heartbeat_is_alive() -> None:
    assert of(Evidence(status="RUNNING", heartbeat_at=FRESH)) is Life.ALIVE
    assert of(Evidence(status="running", heartbeat_at=NOW - 30)) is Life.ALIVE
    # even while SSH does not answer: the heartbeat comes another way
    assert of(Evidence(status="RUNNING", heartbeat_at=FRESH, ssh_dead_since=NOW - 999)) is Life.ALIVE


@pytest.mark.parametrize("beat", [OLD, None])
@pytest.mark.parametrize(
    ("probe", "ssh_dead_since", "expected"),
    [
        (Probe.NOT_ASKED, None, Life.PROBE),
        (Probe.RUNNING, None, Life.ALIVE),
        (Probe.GONE, None, Life.FAILED),
        (Probe.NO_ANSWER, NOW - 1, Life.PROBE),
        (Probe.NO_ANSWER, NOW - 179, Life.PROBE),
        (Probe.NO_ANSWER, NOW - 180, Life.LOST),
    ],
)
def test_running_with_an_old_heartbeat_is_looked_at_over_ssh(beat, probe, ssh_dead_since, expected) -> None:
    evidence = Evidence(status="RUNNING", heartbeat_at=beat, probe=probe, ssh_dead_since=ssh_dead_since)
    assert of(evidence) is expected


def test_the_limits_can_be_set() -> None:
    evidence = Evidence(status="RUNNING", heartbeat_at=NOW - 8, probe=Probe.NO_ANSWER, ssh_dead_since=NOW - 8)
    assert verdict(evidence, NOW, fresh_s=10).life is Life.ALIVE
    assert verdict(evidence, NOW, fresh_s=5).life is Life.PROBE
    assert verdict(evidence, NOW, fresh_s=5, unreachable_after_s=6).life is Life.LOST


@pytest.mark.parametrize("beat", BEATS)
@pytest.mark.parametrize("status", sorted(TERMINAL_STATUSES))
def test_a_terminal_status_is_lost_with_its_cause(status, beat) -> None:
    found = verdict(Evidence(status=status, heartbeat_at=beat, cause="reclaimed by its owner"), NOW)
    assert found.life is Life.LOST
    assert found.reason == f"the pod is {status}: reclaimed by its owner"


@pytest.mark.parametrize("beat", BEATS)
def test_absent_twice_and_404_is_lost(beat) -> None:
    found = verdict(Evidence(good_listings_absent=2, lookup=Lookup.GONE, heartbeat_at=beat, cause="why"), NOW)
    assert found.life is Life.LOST and "404: why" in found.reason


@pytest.mark.parametrize("beat", BEATS)
@pytest.mark.parametrize(
    ("absent", "lookup"),
    [
        (0, Lookup.NOT_ASKED),  # nothing was ever listed well: the process has just started
        (0, Lookup.GONE),
        (1, Lookup.GONE),  # one listing is not enough
        (2, Lookup.NOT_ASKED),  # the list was empty, nobody looked the pod up yet
        (2, Lookup.FOUND),  # the list was empty or short, the pod is there
        (50, Lookup.FOUND),
        (50, Lookup.NO_ANSWER),
    ],
)
def test_absent_without_proof_is_unknown(absent, lookup, beat) -> None:
    assert of(Evidence(good_listings_absent=absent, lookup=lookup, heartbeat_at=beat)) is Life.UNKNOWN


@pytest.mark.parametrize("beat", BEATS)
@pytest.mark.parametrize("status", ["RUNNING", "FAILED", None])
@pytest.mark.parametrize("error", ["Server error: 503", "rate limit", "timed out"])
def test_a_listing_that_failed_is_unknown_whatever_was_seen_before(error, status, beat) -> None:
    evidence = Evidence(
        status=status,
        listing_error=error,
        good_listings_absent=0 if status else 9,
        lookup=Lookup.GONE,
        heartbeat_at=beat,
        probe=Probe.NO_ANSWER,
        ssh_dead_since=NOW - 9999,
    )
    assert of(evidence) is Life.UNKNOWN
    assert not wants_lookup(evidence)


@pytest.mark.parametrize("beat", BEATS)
@pytest.mark.parametrize("status", ["PENDING", "START_PENDING", "REBOOT_PENDING", "STOP_PENDING", "MIGRATING", ""])
def test_statuses_that_are_neither_running_nor_terminal_are_unknown(status, beat) -> None:
    assert of(Evidence(status=status, heartbeat_at=beat, ssh_dead_since=NOW - 9999)) is Life.UNKNOWN


def test_the_lookup_is_asked_after_the_second_absence() -> None:
    assert not wants_lookup(Evidence(good_listings_absent=1))
    assert wants_lookup(Evidence(good_listings_absent=2))
    assert not wants_lookup(Evidence(status="RUNNING"))
