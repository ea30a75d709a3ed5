"""Exactly one rent: the intent before the request, lost requests and answers, refusals with their remedies."""

from dataclasses import replace

import pytest

from plugins.errors import CapacityError, ControlPlaneError, TrainstackError, UserError
from plugins.lium.boundary import RateLimited
from plugins.lium.client import SETTLE_TIMEOUT_S, Intent, LiumAccount
from tests.plugins.lium.road import EMPTY, LISTING, LOST_ANSWER, LOST_REQUEST, NOT_HERE, RENT, Answer, refusal

pytestmark = pytest.mark.usefixtures("hasty_sdk")


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
        OSError("no space left"),
    ],
)
def test_nothing_is_rented_when_the_intent_cannot_be_journalled(world, name: str, problem: Exception) -> None:
    def journal(_: Intent) -> None:
        raise problem

    expected = type(problem) if isinstance(problem, TrainstackError) else ControlPlaneError
    with pytest.raises(expected, match=str(problem)):
        world.account.rent(world.order(name), journal)
    assert not [call for call in world.calls() if call.startswith("POST /api/executors/")]
    assert world.rented(name) == []


# -- lost on the way --------------------------------------------------------------------------------------------------


LOSSES = {
    "answer lost": (LOST_ANSWER, 1),
    "both answers lost": (LOST_ANSWER, 2),
    "request lost": (LOST_REQUEST, 1),
    "both requests lost": (LOST_REQUEST, 2),
    "503 twice": (NOT_HERE, 2),
    "rented and 503 twice": (replace(NOT_HERE, forward=True), 2),
    "answered without an id": (Answer(200, {"success": True}, forward=True), 1),
    "half an answer, twice": (Answer(200, '{"succ', forward=True), 2),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("listing", [None, EMPTY], ids=["listed", "empty listing"])
def test_a_rent_without_an_answer_makes_exactly_one_pod(
    world, road, far, name: str, loss: str, listing: Answer | None
) -> None:
    order = world.order(name)
    road.put(RENT, *LOSSES[loss])
    if listing is not None:
        road.put(LISTING, listing)
    row = far.rent(order, world.intents.append)
    assert [row.id] == world.rented(name)
    assert (row.name, row.terminal) == (name, False)
    assert len(world.intents) == 1
    assert {crossing.key for crossing in road.seen(RENT)} == {world.intents[0].key}


def test_a_lost_rent_is_settled_once_the_listing_is_back(world, road, far, name: str) -> None:
    order = world.order(name)
    road.put(RENT, LOST_ANSWER, 2)
    road.put(LISTING, NOT_HERE, 24)
    row = far.rent(order, world.intents.append)
    assert [row.id] == world.rented(name)


def test_an_answer_that_cannot_be_read_leaves_an_intent_to_settle(world, road, far, name: str) -> None:
    order = world.order(name)
    road.put(RENT, Answer(200, ["not", "an", "object"], forward=True), 1)
    with pytest.raises(ControlPlaneError, match="answer cannot be read"):
        far.rent(order, world.intents.append)
    row = far.settle(world.intents[0])
    assert row is not None and [row.id] == world.rented(name)


@pytest.mark.parametrize(
    "faults",
    [
        {"lose_rent_answer": 1},
        {f"lost:{RENT}": 1},
        {f"lost:{RENT}": 2, "empty:GET /api/pods": 100},
    ],
    ids=lambda faults: " and ".join(faults),
)
def test_an_answer_that_the_server_loses_makes_exactly_one_pod(world, name: str, faults: dict) -> None:
    order = world.order(name)
    world.emulator.faults(faults)
    row = world.account.rent(order, world.intents.append)
    world.emulator.clear_faults(faults)
    assert (row.name, row.terminal) == (name, False)
    assert world.rented(name) == [row.id]


@pytest.mark.parametrize("losses", [0, 1, 2])
def test_a_pod_that_is_listed_late_is_rented_once(world, road, far, name: str, losses: int) -> None:
    order, before = world.order(name), world.emulator.pod_count()
    road.put(RENT, LOST_ANSWER, losses)
    world.emulator.faults({f"late:{RENT}": 1})
    row = far.rent(order, world.intents.append)
    assert (row.name, row.terminal) == (name, False)
    assert world.emulator.pod_count() == before + 1
    assert far.release(name, [row.id]) == [row.id]
    assert world.emulator.pod_count() == before


def test_a_rent_that_never_arrives_says_that_it_is_not_known(world, road, far, name: str, clock) -> None:
    order = world.order(name)
    road.put(RENT, NOT_HERE)
    with pytest.raises(ControlPlaneError, match=f"whether pod {name} was rented is not known .* ends by itself"):
        far.rent(order, world.intents.append)
    assert SETTLE_TIMEOUT_S <= clock.monotonic() < SETTLE_TIMEOUT_S + 20
    assert len({crossing.key for crossing in road.seen(RENT)}) == 1
    road.clear()
    row = far.settle(world.intents[0])  # the next process asks again
    assert row is not None and [row.id] == world.rented(name)


def test_a_refusal_whose_answer_was_lost_is_no_capacity(world, road, far, name: str) -> None:
    order = world.order(name)
    world.emulator.faults({"no_capacity": 1})
    road.put(RENT, LOST_ANSWER, 1)
    with pytest.raises(CapacityError, match="the request was lost and rented nothing"):
        far.rent(order, world.intents.append)
    assert world.rented(name) == []


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
    assert (len(road.seen(RENT)), world.rented(name)) == (2, [])


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_key_without_the_right_to_rent_and_an_empty_account_are_told_apart(world, name: str) -> None:
    order = world.order(name)
    for kind, remedy in (("norent", "the API key lacks a right"), ("poor", "the balance is too low; top the account")):
        settings = replace(world.settings, api_key=f"{kind}-{world.settings.api_key}")
        with pytest.raises(UserError, match=f"rent pod {name}: .*{remedy}"):
            LiumAccount(settings).rent(order, world.intents.append)


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
    road.put(RENT, answer)
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
    road.put(RENT, answer)
    with pytest.raises(CapacityError, match=said):
        far.rent(order, world.intents.append)
    assert len(road.seen(RENT)) == 1
