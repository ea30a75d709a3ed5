"""Exactly one rent: the intent before the request, lost requests and answers, and what became of them."""

import socket
from dataclasses import replace

import pytest

from plugins.errors import CapacityError, ControlPlaneError, UserError
from plugins.lium.boundary import RateLimited
from plugins.lium.client import KEY_KEPT_S, SETTLE_TIMEOUT_S, Intent, LiumAccount, LiumSettings
from tests.plugins.lium.road import (
    FOR_EVER,
    LISTING,
    LOST_ANSWER,
    LOST_REQUEST,
    ONE_POD,
    RENT,
    Answer,
    Road,
    refusal,
)

pytestmark = pytest.mark.usefixtures("hasty_sdk")
EMPTY_LISTING = Answer(200, [])
NOT_HERE = Answer(503, {})


class Killed(BaseException):
    """The process ends, as by `kill -9`: nothing catches it."""


@pytest.fixture
def far(world, road: Road, clock) -> LiumAccount:
    """The world's account by the road, with the still clock."""
    return LiumAccount(road.settings(world.settings), clock=clock)


def ids(world, name: str) -> list[str]:
    """What is really rented, past every obstacle."""
    return [row.id for row in world.account.pods(name)]


def intent_of_a_killed_process(world, name: str, *, sent: bool) -> Intent:
    """A process is killed right before or right after the request leaves."""
    intents: list[Intent] = []

    def journal(intent: Intent) -> None:
        intents.append(intent)
        if not sent:
            raise Killed

    try:
        world.account.rent(world.order(name), journal)
    except Killed:
        pass
    assert len(ids(world, name)) == sent
    return intents[0]


# -- the intent -------------------------------------------------------------------------------------------------------


def test_the_intent_is_journalled_before_the_request_leaves_and_is_that_request(world, road, far, name: str) -> None:
    seen: list[tuple[Intent, int]] = []
    order = world.order(name, termination_hours=3)
    far.rent(order, lambda intent: seen.append((intent, len(road.seen(RENT)))))
    ((intent, sent_before),) = seen
    (crossing,) = road.seen(RENT)
    assert sent_before == 0
    assert (intent.name, intent.executor_id) == (name, order.executor_id)
    assert (intent.key, intent.payload) == (crossing.key, crossing.body)
    assert crossing.call.endswith(f"/api{intent.endpoint}")
    assert (intent.payload["pod_name"], intent.payload["termination_hours"]) == (name, 3)


def test_every_rent_has_a_key_of_its_own(world, name: str) -> None:
    for number in range(2):
        world.rent(f"{name}{number}")
    assert len({intent.key for intent in world.intents}) == 2


@pytest.mark.parametrize(
    "problem",
    [
        ControlPlaneError("the journal does not answer"),
        UserError("the journal refuses"),
        pytest.param(
            OSError("no space left"),
            marks=pytest.mark.xfail(strict=True, reason="the boundary takes it for a lost answer, and settle rents"),
        ),
    ],
)
def test_nothing_is_rented_when_the_intent_cannot_be_journalled(world, name: str, problem: Exception) -> None:
    def journal(_: Intent) -> None:
        raise problem

    with pytest.raises(type(problem), match=str(problem)):
        world.account.rent(world.order(name), journal)
    assert not [call for call in world.calls() if call.startswith("POST /api/executors/")]
    assert ids(world, name) == []


# -- lost on the way --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listing", [None, EMPTY_LISTING, NOT_HERE], ids=["listed", "empty listing", "no listing"])
@pytest.mark.parametrize(
    ("trouble", "times"),
    [
        (LOST_ANSWER, 1),
        (LOST_ANSWER, 2),
        (LOST_REQUEST, 1),
        (LOST_REQUEST, 2),
        (NOT_HERE, 2),
        (replace(NOT_HERE, forward=True), 2),
        (Answer(200, {"success": True}, forward=True), 1),
        (Answer(200, "half an answ", forward=True), 2),
    ],
    ids=["answer", "answers", "request", "requests", "503s", "late 503s", "no id", "nonsense"],
)
def test_a_rent_without_an_answer_makes_exactly_one_pod(
    world, road, far, name: str, trouble: Answer, times: int, listing: Answer | None
) -> None:
    order = world.order(name)
    road.put(RENT, trouble, times)
    if listing is EMPTY_LISTING:
        road.put(LISTING, listing)
    elif listing is not None:
        road.put(LISTING, listing, 24)  # it comes back: without any listing nothing can be settled
    row = far.rent(order, world.intents.append)
    assert [row.id] == ids(world, name)
    assert (row.name, row.terminal) == (name, False)
    assert len(world.intents) == 1
    assert {crossing.key for crossing in road.seen(RENT)} == {world.intents[0].key}


def test_the_servers_own_lost_answer_makes_exactly_one_pod(world, name: str) -> None:
    world.emulator.faults({"lose_rent_answer": 1})
    row = world.rent(name)
    assert ids(world, name) == [row.id]


def test_a_rent_that_never_arrives_says_that_it_is_not_known(world, road, far, name: str, clock) -> None:
    order = world.order(name)
    road.put(RENT, NOT_HERE)
    with pytest.raises(ControlPlaneError, match=f"whether pod {name} was rented is not known .* ends by itself"):
        far.rent(order, world.intents.append)
    assert SETTLE_TIMEOUT_S <= clock.monotonic() < SETTLE_TIMEOUT_S + 20
    assert len({crossing.key for crossing in road.seen(RENT)}) == 1
    road.clear()
    row = far.settle(world.intents[0])  # the next process asks again
    assert row is not None and [row.id] == ids(world, name)


def test_a_refusal_whose_answer_was_lost_is_no_capacity(world, road, far, name: str) -> None:
    order = world.order(name)
    world.emulator.faults({"no_capacity": 1})
    road.put(RENT, LOST_ANSWER, 1)
    with pytest.raises(CapacityError, match="the request was lost and rented nothing"):
        far.rent(order, world.intents.append)
    assert ids(world, name) == []


@pytest.mark.xfail(strict=True, raises=CapacityError, reason="OutcomeUnknown before the send is taken for a lost rent")
def test_no_answer_before_the_request_is_no_lack_of_capacity(world, road, far, name: str) -> None:
    order = world.order(name)
    road.put("GET /api/executors", NOT_HERE)
    with pytest.raises(ControlPlaneError, match="Lium does not answer"):
        far.rent(order, world.intents.append)


def test_a_rent_that_meets_the_rate_limit_twice_rents_nothing(world, road, far, name: str) -> None:
    order = world.order(name)
    road.put(RENT, Answer(429, {}), 2)
    with pytest.raises(RateLimited):
        far.rent(order, world.intents.append)
    assert (len(road.seen(RENT)), ids(world, name)) == (2, [])


# -- what became of it ------------------------------------------------------------------------------------------------


def test_a_pod_rented_by_a_killed_process_is_found_without_another_request(world, road, far, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    row = far.settle(intent)
    assert row is not None and [row.id] == ids(world, name)
    assert road.seen(RENT) == []


def test_a_pod_that_the_listing_does_not_show_is_found_by_asking_again(world, road, far, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    road.put(LISTING, EMPTY_LISTING)
    row = far.settle(intent)
    assert row is not None and [row.id] == ids(world, name)
    (crossing,) = road.seen(RENT)
    assert (crossing.key, crossing.body) == (intent.key, intent.payload)


def test_a_rent_that_was_never_sent_is_rented_once_however_often_it_is_settled(world, road, far, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=False)
    road.put(LISTING, EMPTY_LISTING)
    settled = [far.settle(intent) for _ in range(3)]
    assert len(ids(world, name)) == 1
    assert {row.id for row in settled if row is not None} == set(ids(world, name))


def test_a_pod_that_has_ended_since_is_told_as_ended(world, far, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    (pod_id,) = world.account.release(name)
    row = far.settle(intent)
    assert row is not None and (row.id, row.terminal) == (pod_id, True)
    assert ids(world, name) == []


def test_a_pod_whose_look_up_does_not_answer_counts_as_living(world, road, far, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    road.put(LISTING, EMPTY_LISTING)
    road.put(ONE_POD, NOT_HERE)
    row = far.settle(intent)
    assert row is not None and ([row.id], row.terminal) == (ids(world, name), False)


def test_a_refused_rent_made_no_pod(world, road, far, name: str) -> None:
    order = world.order(name)
    world.emulator.faults({"no_capacity": 1})
    with pytest.raises(CapacityError):
        world.account.rent(order, world.intents.append)
    assert far.settle(world.intents[0]) is None
    assert (len(road.seen(RENT)), ids(world, name)) == (1, [])  # one replay; its stored answer is believed


@pytest.mark.xfail(strict=True, raises=ControlPlaneError, reason="a stored 404 is asked for again until time is over")
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
    road.put(LISTING, EMPTY_LISTING)
    road.put(RENT, refusal(409, code, "the first request is still running"), 5)
    row = far.settle(intent)
    assert row is not None and [row.id] == ids(world, name)


def test_an_intent_older_than_its_key_is_never_sent_again(world, road, far, clock, name: str) -> None:
    sent = intent_of_a_killed_process(world, name, sent=True)
    unsent = intent_of_a_killed_process(world, f"{name}1", sent=False)
    old = clock.now() - KEY_KEPT_S - 1
    row = far.settle(replace(sent, at=old))  # the listing still tells
    assert row is not None and [row.id] == ids(world, name)
    assert far.settle(replace(unsent, at=old)) is None
    assert road.seen(RENT) == []
    assert len(road.seen(LISTING)) == 1 + 3


def test_one_listing_that_fails_does_not_settle_an_old_intent(world, road, far, clock, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    road.put(LISTING, NOT_HERE, 6)  # the SDK asks three times for each
    row = far.settle(replace(intent, at=clock.now() - KEY_KEPT_S - 1))
    assert row is not None and [row.id] == ids(world, name)


@pytest.mark.xfail(strict=True, reason="a refusal of the listing is taken for the stored answer of the rent")
def test_a_refused_listing_does_not_settle_a_rent(world, road, far, name: str) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    road.put(LISTING, refusal(401, "invalid_api_key", "Invalid API key"))
    with pytest.raises((UserError, ControlPlaneError)):
        far.settle(intent)


def test_nothing_that_answers_is_said_within_its_time(world, name: str, clock) -> None:
    intent = intent_of_a_killed_process(world, name, sent=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/api"
    account = LiumAccount(LiumSettings(url, world.settings.api_key, world.settings.ssh_key_path), clock=clock)
    with pytest.raises(ControlPlaneError, match=f"whether pod {name} was rented is not known .*does not answer"):
        account.settle(intent)
    assert SETTLE_TIMEOUT_S <= clock.monotonic() < SETTLE_TIMEOUT_S + 20


# -- refusals ---------------------------------------------------------------------------------------------------------

BUDGET = {"window": "daily", "budget_usd": 5.0, "spent_usd": 5.0, "api_key_id": "key-1"}


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        (
            refusal(403, "insufficient_balance", "This pod requires at least $2.49, your balance is $0.10"),
            "the balance is too low; top the account up",
        ),
        (refusal(403, "missing_scope", "This key does not have the 'rent' scope"), "the API key lacks a right; make"),
        (
            refusal(402, "API_KEY_BUDGET_EXCEEDED", "The key's daily budget is used up", **BUDGET),
            "the API key's own budget is used up; raise it",
        ),
        (refusal(403, "forbidden", "Not for you"), "check the balance, the key's budget and its scopes"),
        (refusal(401, "invalid_api_key", "Invalid API key"), "check the Lium API key"),
        (
            refusal(409, "volume_in_use", "Volume v is attached to pod p"),
            "wait for that pod's end, or use another volume",
        ),
        (refusal(422, "validation_error", "termination_hours: 721 is too many"), "Lium refuses the request: .*721"),
    ],
    ids=["balance", "scope", "budget", "other", "key", "volume", "request"],
)
def test_a_refusal_of_the_users_names_its_remedy(world, road, far, name: str, answer: Answer, remedy: str) -> None:
    order = world.order(name)
    road.put(RENT, answer, FOR_EVER)
    with pytest.raises(UserError, match=f"(?s)rent pod {name}: .*{remedy}"):
        far.rent(order, world.intents.append)
    assert len(road.seen(RENT)) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refusal(409, "no_matching_node", "rentable GPU counts: none now"), "no machine fits now"),
        (refusal(404, "not_found", "Executor not found"), "host, template or volume is gone"),
    ],
)
def test_a_host_that_refuses_is_a_capacity_error(world, road, far, name: str, answer: Answer, said: str) -> None:
    order = world.order(name)
    road.put(RENT, answer, FOR_EVER)
    with pytest.raises(CapacityError, match=said):
        far.rent(order, world.intents.append)
    assert len(road.seen(RENT)) == 1
