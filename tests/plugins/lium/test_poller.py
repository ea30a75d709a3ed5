"""One poller for all pods: what it reports when listings fail, are empty, or come late."""

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from plugins.errors import ControlPlaneError
from plugins.lium.boundary import RateLimited
from plugins.lium.liveness import Life, Lookup, verdict
from plugins.lium.pods import PodRow
from plugins.lium.poller import PER_MINUTE, PodPoller, Sighting
from tests.plugins.lium.listings import DOWN, Listings, pod
from tests.plugins.lium.still_clock import StillClock


@pytest.fixture
def poll(clock: StillClock) -> Callable[..., tuple[PodPoller, Listings]]:
    def make(*answers: Sequence[PodRow] | Exception, **more) -> tuple[PodPoller, Listings]:
        listings = Listings(clock, *answers)
        return PodPoller(listings, **{"clock": clock, **more}), listings

    return make


def test_one_listing_serves_every_watched_pod(poll, clock: StillClock) -> None:
    poller, listings = poll([pod("a"), pod("b", "PENDING"), pod("c")])
    poller.watch("a")
    poller.watch("b")
    clock.sleep(0)
    assert len(listings.asked) == 1
    assert poller.snapshot("a").row == pod("a")
    assert poller.snapshot("b").row == pod("b", "PENDING")
    assert poller.snapshot("a").last_good_at == clock.now()


def test_a_snapshot_asks_nobody_and_watches_from_then_on(poll, clock: StillClock) -> None:
    poller, listings = poll([pod()])
    assert poller.snapshot("a") == Sighting()
    assert listings.asked == []
    clock.sleep(1)
    assert poller.snapshot("a").row == pod()


def test_waiting_ends_with_the_next_listing_good_or_failed(poll, clock: StillClock) -> None:
    poller, listings = poll([pod()], DOWN)
    poller.watch("a")
    for number in (1, 2, 3):
        poller.wait(1000)
        assert len(listings.asked) == number
    poller.close()
    before = clock.monotonic()
    poller.wait(5)
    assert clock.monotonic() == before + 5


def test_absences_are_counted_in_good_listings_only(poll, clock: StillClock) -> None:
    poller, _ = poll([pod()], [], DOWN, DOWN, [])
    poller.watch("a")
    seen = []
    for _ in range(5):
        poller.wait(1000)
        sighting = poller.snapshot("a")
        seen.append((sighting.good_listings_absent, sighting.error))
    assert seen == [(0, None), (1, None), (1, str(DOWN)), (1, str(DOWN)), (2, None)]
    sighting = poller.snapshot("a")
    assert sighting.row is None and sighting.last_row == pod()
    assert verdict(sighting.evidence(), 0.0).life is Life.UNKNOWN
    assert verdict(sighting.evidence(lookup=Lookup.GONE), 0.0).life is Life.LOST


def test_a_failed_listing_keeps_the_last_row_and_says_what_failed(poll) -> None:
    poller, _ = poll([pod()], DOWN)
    poller.watch("a")
    poller.wait(1000)
    poller.wait(1000)
    sighting = poller.snapshot("a")
    assert sighting.row == pod() and sighting.error == str(DOWN)
    assert verdict(sighting.evidence(), 0.0).life is Life.UNKNOWN


def gaps(listings: Listings) -> list[float]:
    return [round(after - before, 2) for before, after in zip(listings.asked, listings.asked[1:], strict=False)]


def test_errors_are_answered_with_growing_pauses_and_what_lium_asks(poll, clock: StillClock) -> None:
    slow = RateLimited("slow down", 45.0)
    poller, listings = poll(DOWN, DOWN, slow, DOWN, DOWN, DOWN, DOWN, [pod()])
    poller.watch("a")
    clock.sleep(200)
    assert gaps(listings)[:7] == [2.0, 4.0, 45.0, 16.0, 30.0, 30.0, 30.0]
    assert gaps(listings)[8:] and set(gaps(listings)[8:]) == {3.0}  # all is well again


def test_no_more_than_sixty_listings_in_any_minute_whatever_the_rhythm(poll, clock: StillClock) -> None:
    poller, listings = poll([pod()], interval_s=0.0)
    poller.watch("a")
    clock.sleep(59)
    assert len(listings.asked) == PER_MINUTE
    clock.sleep(300)
    assert len(listings.asked) > 5 * PER_MINUTE
    windows = zip(listings.asked, listings.asked[PER_MINUTE:], strict=False)
    assert all(after - before >= 60.0 - 1e-6 for before, after in windows)


def test_a_booting_pod_is_looked_at_faster(poll, clock: StillClock) -> None:
    booting = [pod(status="PENDING", ssh_host=None)]
    poller, listings = poll(*[booting] * 6, [pod()], interval_s=3.0, boot_interval_s=1.0)
    poller.watch("a")
    clock.sleep(12)
    assert gaps(listings) == [0.3, 0.3, 1.0, 1.0, 1.0, 1.0, 3.0, 3.0]


def test_a_pod_watched_later_is_looked_at_at_once(poll, clock: StillClock) -> None:
    poller, listings = poll([pod("a"), pod("b")], interval_s=100.0)
    poller.watch("a")
    clock.sleep(50)
    before = len(listings.asked)
    poller.watch("b")
    clock.sleep(0)
    assert len(listings.asked) == before + 1
    assert poller.snapshot("b").row == pod("b")


def test_without_a_watched_pod_nothing_is_listed(poll, clock: StillClock) -> None:
    poller, listings = poll([pod()])
    poller.watch("a")
    clock.sleep(1)
    asked = len(listings.asked)
    poller.unwatch("a")
    clock.sleep(10_000)
    assert len(listings.asked) == asked > 0
    poller.watch("a")
    clock.sleep(1)
    assert len(listings.asked) > asked


def test_close_is_idempotent_and_a_closed_poller_says_so(poll, clock: StillClock) -> None:
    poller, listings = poll([pod()])
    poller.watch("a")
    poller.close()
    poller.close()
    clock.sleep(100)
    assert listings.asked == []
    with pytest.raises(ControlPlaneError, match="closed"):
        poller.watch("b")


def test_on_the_real_clock_one_thread_lists_and_ends_with_the_poller() -> None:
    seen: set[threading.Thread] = set()

    class Watched:
        def pods(self, prefix: str = "", *, patient: bool = True) -> list[PodRow]:
            seen.add(threading.current_thread())
            return [pod()]

    poller = PodPoller(Watched(), interval_s=0.01)
    deadline = time.monotonic() + 20
    while poller.snapshot("a").row is None or poller.snapshot("b").last_good_at is None:
        poller.wait(0.5)
        assert time.monotonic() < deadline
    poller.close()
    (thread,) = seen
    thread.join(10)
    assert thread is not threading.current_thread() and not thread.is_alive()
