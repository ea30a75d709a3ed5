"""Giving pods back: every pod of the name, whatever the listing shows, until it is certain."""

import pytest

from plugins.errors import ControlPlaneError
from plugins.lium.client import LiumAccount
from tests.plugins.lium.road import LISTING, ONE_POD, Answer


def test_release_is_idempotent_and_takes_every_pod_of_the_name(world, name: str) -> None:
    twins = {world.rent(name).id, world.rent(name).id}
    assert len(twins) == len(world.account.pods(name)) == 2
    assert set(world.account.release(name)) == twins
    assert world.account.release(name) == []
    assert world.account.pods(name) == []


def test_release_leaves_pods_of_other_names_alone(world, name: str) -> None:
    row, other = world.rent(name), world.rent(f"{name}1")
    assert world.account.release(name) == [row.id]
    assert [item.id for item in world.account.pods()] == [other.id]


def test_release_goes_on_over_errors_until_the_pod_is_gone(world, name: str, clock) -> None:
    row = world.rent(name)
    world.emulator.faults({"500:DELETE /api/pods/*": 1, "404:DELETE /api/pods/*": 1})
    assert LiumAccount(world.settings, clock=clock).release(name) == [row.id]
    assert world.account.look_up(row.id) is None


def test_a_pod_that_ended_a_moment_before_its_delete_counts_as_given_back(world, road, far, name: str) -> None:
    row = world.rent(name)
    road.put("DELETE *", Answer(404, {}, forward=True), 1)
    assert far.release(name) == [row.id]
    assert world.account.look_up(row.id) is None


def test_release_ends_a_pod_that_the_listing_does_not_show(world, road, far, name: str) -> None:
    row = world.rent(name)
    road.put(LISTING, Answer(200, []))
    assert far.release(name) == []  # nobody said its id
    assert world.account.look_up(row.id) is not None
    assert far.release(name, [row.id]) == [row.id]
    assert world.account.look_up(row.id) is None
    assert far.release(name, [row.id]) == []


@pytest.mark.usefixtures("hasty_sdk")
def test_release_does_not_take_a_look_up_without_an_answer_for_an_end(world, road, name: str, clock) -> None:
    row = world.rent(name)
    road.put(LISTING, Answer(200, []))
    road.put(ONE_POD, Answer(503, {}), 3)  # the SDK asks three times
    assert LiumAccount(road.settings(world.settings), clock=clock).release(name, [row.id]) == [row.id]
    assert world.account.look_up(row.id) is None


def test_release_says_when_it_is_not_certain(world, road, name: str, clock) -> None:
    row = world.rent(name)
    road.put("DELETE *", Answer(500, {}))
    account = LiumAccount(road.settings(world.settings), clock=clock)
    with pytest.raises(ControlPlaneError, match=f"pod {name} could not be given back .* may still cost money"):
        account.release(name, [row.id], timeout_s=60.0)
    assert 60.0 <= clock.monotonic() < 70.0
