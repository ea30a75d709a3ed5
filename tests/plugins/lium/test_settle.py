"""What became of a rent whose answer nobody has: found, replayed once, refused, or not known."""

import socket
from contextlib import suppress
from dataclasses import replace

import pytest

from plugins.errors import CapacityError, ControlPlaneError
from plugins.lium.client import KEY_KEPT_S, SETTLE_TIMEOUT_S, Intent, LiumAccount, LiumSettings
from tests.plugins.lium.road import EMPTY, LISTING, NOT_HERE, ONE_POD, RENT, refusal

pytestmark = pytest.mark.usefixtures("hasty_sdk")


class Killed(BaseException):
    """The process ends, as by `kill -9`: nothing catches it."""


def intent_of_a_killed_process(world, name: str, *, sent: bool) -> Intent:
    """A process is killed right before or right after the request leaves."""
    intents: list[Intent] = []

    def journal(intent: Intent) -> None:
        intents.append(intent)
        if not sent:
            raise Killed

    with suppress(Killed):
        world.account.rent(world.order(name), journal)
    assert len(world.rented(name)) == sent
    return intents[0]


def test_a_pod_rented_by_a_killed_process_is_found_without_another_request(world, road, far, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    row = far.settle(intent)
    assert row is not None and [row.id] == world.rented(name)
    assert road.seen(RENT) == []


def test_a_pod_that_the_listing_does_not_show_is_found_by_asking_again(world, road, far, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    road.put(LISTING, EMPTY)
    row = far.settle(intent)
    assert row is not None and [row.id] == world.rented(name)
    (crossing,) = road.seen(RENT)
    assert (crossing.key, crossing.body) == (intent.key, intent.payload)


def test_a_rent_that_was_never_sent_is_rented_once_however_often_it_is_settled(world, road, far, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=False)
    road.put(LISTING, EMPTY)
    settled = [far.settle(intent) for _ in range(3)]
    assert len(world.rented(name)) == 1
    assert {row.id for row in settled if row is not None} == set(world.rented(name))


def test_a_pod_that_has_ended_since_is_told_as_ended(world, far, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    (pod_id,) = world.account.release(name)
    row = far.settle(intent)
    assert row is not None and (row.id, row.terminal) == (pod_id, True)
    assert world.rented(name) == []


def test_a_pod_whose_look_up_does_not_answer_counts_as_living(world, road, far, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    road.put(LISTING, EMPTY)
    road.put(ONE_POD, NOT_HERE)
    row = far.settle(intent)
    assert row is not None and ([row.id], row.terminal) == (world.rented(name), False)


def test_a_refused_rent_made_no_pod(world, road, far, name: str) -> None:
    order = world.order(name)
    world.emulator.faults({"no_capacity": 1})
    with pytest.raises(CapacityError):
        world.account.rent(order, world.intents.append)
    assert far.settle(world.intents[0]) is None
    assert (len(road.seen(RENT)), world.rented(name)) == (1, [])  # one replay; its stored answer is believed


def test_a_rent_on_a_host_that_is_gone_made_no_pod(world, far, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=False)
    nowhere = "00000000-0000-4000-8000-000000000000"
    assert far.settle(replace(intent, executor_id=nowhere, endpoint=f"/executors/{nowhere}/rent")) is None


def test_three_fresh_refusals_and_no_pod_listed_mean_that_nothing_was_rented(world, road, far, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=False)
    road.put(RENT, refusal(403, "insufficient_balance", "insufficient balance"))
    assert far.settle(intent) is None
    assert len(road.seen(RENT)) == 3


@pytest.mark.parametrize("code", ["idempotency_in_progress", "idempotency_outcome_unknown"])
def test_a_rent_still_under_way_is_waited_for(world, road, far, name: str, code: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    road.put(LISTING, EMPTY)
    road.put(RENT, refusal(409, code, "the first request is still running"), 5)
    row = far.settle(intent)
    assert row is not None and [row.id] == world.rented(name)


def test_an_intent_older_than_its_key_is_never_sent_again(world, road, far, clock, name: str) -> None:
    sent = intent_of_a_killed_process(world, name, sent=True)
    unsent = intent_of_a_killed_process(world, f"{name}1", sent=False)
    old = clock.now() - KEY_KEPT_S - 1
    row = far.settle(replace(sent, at=old))  # the listing still tells
    assert row is not None and [row.id] == world.rented(name)
    assert far.settle(replace(unsent, at=old)) is None
    assert road.seen(RENT) == []
    assert len(road.seen(LISTING)) == 1 + 3


def test_one_listing_that_fails_does_not_settle_an_old_intent(world, road, far, clock, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    road.put(LISTING, NOT_HERE, 6)  # the SDK asks three times for each
    row = far.settle(replace(intent, at=clock.now() - KEY_KEPT_S - 1))
    assert row is not None and [row.id] == world.rented(name)


def test_a_refused_listing_does_not_settle_a_rent(world, road, far, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    road.put(LISTING, refusal(401, "invalid_api_key", "Invalid API key"))
    row = far.settle(intent)
    assert row is not None and [row.id] == world.rented(name), "the replay tells, whatever the listing says"


def test_nothing_that_answers_is_said_within_its_time(world, name: str, clock) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/api"
    account = LiumAccount(LiumSettings(url, world.settings.api_key, world.settings.ssh_key_path), clock=clock)
    with pytest.raises(ControlPlaneError, match=f"pod {name} was rented is not known .*not establish its outcome"):
        account.settle(intent)
    assert SETTLE_TIMEOUT_S <= clock.monotonic() < SETTLE_TIMEOUT_S + 20
