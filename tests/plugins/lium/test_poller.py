"""One poller for all pods: what it reports when listings fail, are empty, or come late."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from plugins.errors import ControlPlaneError, PodLost
from plugins.lium.boundary import RateLimited
from plugins.lium.client import PodSpec
from plugins.lium.liveness import Life, Lookup, verdict
from plugins.lium.pods import PodRow
from plugins.lium.poller import PER_MINUTE, PodPoller, Sighting, wait_ready


class Listings:
    """A listing whose answers the test writes; the last one is repeated."""

    def __init__(self, *answers: Sequence[PodRow] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[float] = []
        self.threads: set[int] = set()

    def pods(self, prefix: str = "", *, patient: bool = True) -> Sequence[PodRow]:
        assert not patient
        self.asked.append(time.monotonic())
        self.threads.add(threading.get_ident())
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def pod(name: str = "a", status: str = "RUNNING", **more) -> PodRow:
    return PodRow(id=f"id-{name}", name=name, status=status, ssh_host="127.0.0.1", **more)


@pytest.fixture
def poll() -> Iterator[Callable[..., PodPoller]]:
    made: list[PodPoller] = []

    def make(listings: Listings, **more) -> PodPoller:
        made.append(PodPoller(listings, **{"interval_s": 0.01, "boot_interval_s": 0.01, **more}))
        return made[-1]

    yield make
    for poller in made:
        poller.close()


def until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def test_one_listing_serves_every_watched_pod(poll) -> None:
    listings = Listings([pod("a"), pod("b", "PENDING"), pod("c")])
    poller = poll(listings)
    poller.watch("a")
    poller.watch("b")
    until(lambda: poller.snapshot("a").row and poller.snapshot("b").row, "both are seen")
    assert poller.snapshot("a").row == pod("a")
    assert poller.snapshot("a").last_good_at is not None
    assert len(listings.threads) == 1


def test_absences_are_counted_in_good_listings_only(poll) -> None:
    down = ControlPlaneError("Server error: 503")
    poller = poll(Listings([pod()], [], down, down, []))
    poller._rhythm_s = lambda: 0.01  # type: ignore[method-assign]  # do not wait out the back-off
    seen = []

    def look() -> bool:
        sighting = poller.snapshot("a")
        seen.append((sighting.good_listings_absent, sighting.error))
        return sighting.good_listings_absent >= 2 and sighting.error is None

    until(look, "two good listings without the pod")
    sighting = poller.snapshot("a")
    assert sighting.row is None and sighting.last_row == pod()
    assert verdict(sighting.evidence(), 0.0).life is Life.UNKNOWN
    assert verdict(sighting.evidence(lookup=Lookup.GONE), 0.0).life is Life.LOST


def test_a_failed_listing_keeps_the_last_row_and_says_what_failed(poll) -> None:
    poller = poll(Listings([pod()], ControlPlaneError("Server error: 503")))
    until(lambda: poller.snapshot("a").error, "the failure is reported")
    sighting = poller.snapshot("a")
    assert sighting.row == pod() and sighting.error == "Server error: 503"
    assert verdict(sighting.evidence(), 0.0).life is Life.UNKNOWN


def test_errors_are_answered_with_growing_pauses_and_what_lium_asks(poll) -> None:
    poller = poll(Listings([]))  # nothing is watched: no thread looks in between
    poller._note_failure(ControlPlaneError("x"))
    first = poller._rhythm_s()
    poller._note_failure(ControlPlaneError("x"))
    assert first == 2.0 and poller._rhythm_s() == 4.0
    poller._note_failure(RateLimited("slow down", 45.0))
    assert poller._rhythm_s() == 45.0
    for _ in range(20):
        poller._note_failure(ControlPlaneError("x"))
    assert poller._rhythm_s() == 30.0


def test_no_more_than_sixty_listings_a_minute_whatever_the_rhythm(poll) -> None:
    listings = Listings([pod()])
    poller = poll(listings, interval_s=0.0)
    poller.watch("a")
    until(lambda: len(listings.asked) == PER_MINUTE, "the window is full")
    with poller._changed:
        assert poller._pause_s() > 30.0
    assert len(listings.asked) == PER_MINUTE


def test_a_booting_pod_is_looked_at_faster(poll) -> None:
    poller = poll(Listings([pod(status="PENDING")]), interval_s=3.0, boot_interval_s=1.0)
    poller._sightings["a"] = Sighting()  # without its thread
    assert poller._rhythm_s() == 1.0
    poller._note_rows([pod(status="PENDING")])
    assert poller._rhythm_s() == 1.0
    poller._note_rows([pod()])
    assert poller._rhythm_s() == 3.0


def test_without_a_watched_pod_nothing_is_listed(poll) -> None:
    listings = Listings([pod()])
    poller = poll(listings)
    poller.watch("a")
    until(lambda: listings.asked, "the first look")
    poller.unwatch("a")
    with poller._changed:
        assert poller._pause_s() > 1000


def test_close_is_idempotent_and_a_closed_poller_says_so(poll) -> None:
    poller = poll(Listings([pod()]))
    poller.watch("a")
    poller.close()
    poller.close()
    with pytest.raises(ControlPlaneError, match="closed"):
        poller.watch("b")


def test_a_pod_that_vanishes_while_it_boots_is_lost(world) -> None:
    name = "ts-vanish-sft-a1"
    row = world.account.rent(PodSpec(name=name, gpu_type="RTX4090"))
    poller = PodPoller(world.account, boot_interval_s=0.05)
    try:
        until(lambda: poller.snapshot(name).row, "the pod is listed")
        world.emulator.kill_pod(row.id, "vanish", "spot reclaim")
        until(lambda: poller.snapshot(name).row is None, "the pod is gone from the listing")
        with pytest.raises(PodLost, match=f"pod {name} vanished while it booted: .*spot reclaim"):
            wait_ready(world.account, name, 30, poller=poller)
    finally:
        poller.close()


def test_ready_survives_listings_that_fail(world) -> None:
    name = "ts-flaky-sft-a1"
    world.account.rent(PodSpec(name=name, gpu_type="RTX4090"))
    world.emulator.faults({"500:GET /api/pods": 2})  # the SDK's own third try gets through
    ready = wait_ready(world.account, name, 60)
    assert ready is not None and ready.reachable
