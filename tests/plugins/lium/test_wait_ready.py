"""Waiting for a rented pod: ready, failed, gone, or not known for a while."""

from collections.abc import Callable, Iterator

import pytest

from plugins.errors import PodLost, UserError
from plugins.lium.client import LiumAccount
from plugins.lium.pods import PodRow
from plugins.lium.poller import PodPoller, wait_ready
from tests.plugins.lium.listings import DOWN, Listings, pod
from tests.plugins.lium.road import LISTING, ONE_POD, RENT, Answer
from tests.plugins.lium.still_clock import StillClock


@pytest.fixture
def poll(clock: StillClock) -> Callable[..., tuple[PodPoller, Listings]]:
    def make(*answers) -> tuple[PodPoller, Listings]:
        listings = Listings(clock, *answers)
        return PodPoller(listings, clock=clock), listings

    return make


def booting(**more) -> PodRow:
    return pod(status="PENDING", ssh_host=None, **more)


def test_ready_is_the_row_that_can_be_reached(poll) -> None:
    poller, listings = poll([], [booting()], [pod(ssh_host=None)], [pod(ssh_port=40001)])
    assert wait_ready(listings, booting(), 60, poller) == pod(ssh_port=40001)


def test_a_check_that_raises_ends_the_wait(poll, clock: StillClock) -> None:
    poller, listings = poll([booting()])
    calls = []

    def check() -> None:
        calls.append(clock.monotonic())
        if len(calls) == 5:
            raise UserError("the run was cancelled")

    with pytest.raises(UserError, match="the run was cancelled"):
        wait_ready(listings, booting(), 60, poller, check)
    assert len(calls) == 5 and clock.monotonic() < 10


def test_a_pod_that_is_never_ready_is_lost_when_its_time_is_over(poll, clock: StillClock) -> None:
    poller, listings = poll([booting(phase="pulling image")])
    with pytest.raises(PodLost, match=r"pod a was not ready within 60 s \(PENDING pulling image\)"):
        wait_ready(listings, booting(), 60, poller)
    assert 60 <= clock.monotonic() < 62


@pytest.mark.parametrize(
    ("answer", "found", "said"),
    [
        (DOWN, None, "Server error: 503"),
        ([], booting(), "never listed"),
        ([pod(status="MIGRATING")], None, "MIGRATING"),
    ],
    ids=["listing fails", "listing is empty", "unknown status"],
)
def test_what_is_not_known_is_waited_out_to_the_end(poll, clock: StillClock, answer, found, said: str) -> None:
    poller, listings = poll(answer)
    listings.found = found
    with pytest.raises(PodLost, match=rf"was not ready within 60 s \({said}"):
        wait_ready(listings, booting(), 60, poller)
    assert clock.monotonic() >= 60


@pytest.mark.parametrize("found", [booting(), DOWN], ids=["found", "no answer"])
def test_a_pod_that_the_listing_lacks_is_waited_for_while_its_look_up_does_not_say_gone(poll, found) -> None:
    poller, listings = poll([booting()], *[[]] * 10, [pod()])
    listings.found = found
    assert wait_ready(listings, booting(), 60, poller) == pod()
    assert listings.looked_up > 0


def test_one_listing_without_the_pod_asks_for_no_look_up(poll) -> None:
    poller, listings = poll([booting()], [], [pod()])
    assert wait_ready(listings, booting(), 60, poller) == pod()
    assert listings.looked_up == 0


def test_a_pod_whose_look_up_says_gone_is_lost_with_its_cause(poll, clock: StillClock) -> None:
    poller, listings = poll([booting()], [])
    with pytest.raises(PodLost, match="pod a vanished while it booted: cause of id-a"):
        wait_ready(listings, booting(), 600, poller)
    assert clock.monotonic() < 10


def test_a_pod_that_failed_is_lost_at_once_with_its_cause(poll, clock: StillClock) -> None:
    poller, listings = poll([booting()], [pod(status="CREATION_FAILED")])
    with pytest.raises(PodLost, match="pod a is CREATION_FAILED: cause of id-a"):
        wait_ready(listings, booting(), 600, poller)
    assert clock.monotonic() < 10


# -- on the emulator --------------------------------------------------------------------------------------------------


@pytest.fixture
def watching() -> Iterator[Callable[[LiumAccount], PodPoller]]:
    made: list[PodPoller] = []

    def make(account: LiumAccount) -> PodPoller:
        made.append(PodPoller(account, boot_interval_s=0.2))
        return made[-1]

    yield make
    for poller in made:
        poller.close()


def test_a_pod_that_fails_to_boot_is_lost_with_liums_cause(world, name: str, watching) -> None:
    world.emulator.faults({"boot_fail": 1})
    row = world.rent(name)
    with pytest.raises(PodLost, match=f"pod {name} is CREATION_FAILED: .+") as caught:
        wait_ready(world.account, row, 30, watching(world.account))
    cause = world.account.cause(row.id)
    assert cause and cause in str(caught.value)


def test_a_pod_that_vanishes_while_it_boots_is_lost(world, name: str, watching, until) -> None:
    row, poller = world.rent(name), watching(world.account)
    until(lambda: poller.snapshot(name).row, "the pod is listed")
    world.emulator.kill_pod(row.id, "vanish", "spot reclaim")
    until(lambda: poller.snapshot(name).row is None, "the pod is gone from the listing")
    with pytest.raises(PodLost, match=f"pod {name} vanished while it booted: .*spot reclaim"):
        wait_ready(world.account, row, 30, poller)


@pytest.mark.usefixtures("hasty_sdk")
@pytest.mark.parametrize("answer", [Answer(200, []), Answer(500, {})], ids=["empty", "failing"])
def test_ready_survives_listings_that_are_wrong(world, road, name: str, watching, answer: Answer) -> None:
    row = world.rent(name)
    road.put(LISTING, answer, 5)
    account = LiumAccount(road.settings(world.settings))
    ready = wait_ready(account, row, 60, watching(account))
    assert ready.id == row.id and ready.reachable
    assert road.seen(ONE_POD) == [], "a pod that was never listed may just be late"


def test_a_pod_that_is_listed_late_is_waited_for(world, name: str, watching) -> None:
    order = world.order(name)
    world.emulator.faults({f"late:{RENT}": 1})
    row = world.account.rent(order, world.intents.append)
    ready = wait_ready(world.account, row, 60, watching(world.account))
    assert ready.id == row.id and ready.reachable
