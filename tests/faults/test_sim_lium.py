"""The simulated client against the rules of the API and the shape of the real SDK."""

import inspect
from dataclasses import replace

import pytest
import requests
from lium import Lium
from lium.sdk.exceptions import LiumError, LiumNotFoundError, LiumRateLimitError, LiumRentOutcomeUnknownError

from tests.faults.machines import iso
from tests.faults.plan import CallFault, Schedule, Window, calm
from tests.faults.sim_lium import SimLium
from tests.faults.virtual_clock import START
from tests.faults.world import World

USED = [
    "ls",
    "ps",
    "pod",
    "pod_record",
    "pod_events",
    "unknown_gpu_type",
    "balance",
    "balance_or_none",
    "me",
    "get_deployment_estimate",
    "templates",
    "volumes",
    "create_template",
    "volume_create",
    "schedule_termination",
    "down",
    "up",
    "_replay_rent",
]


def client(plan: Schedule) -> tuple[World, SimLium]:
    world = World(plan)
    return world, SimLium(world, world.start_process())


def rent(lium: SimLium, key: str = "key-1", name: str = "ts-sim0-sft-a1", **more: object) -> dict[str, object]:
    host = lium.ls()[0].id
    arguments = {"executor_id": host, "name": name, "gpu_count": 1, "termination_hours": 1} | more
    return lium.up(**arguments, idempotency_key=key, confirmed_only=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", USED)
def test_every_call_has_the_real_clients_name_and_parameters(name: str) -> None:
    real = inspect.signature(getattr(Lium, name)).parameters
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    ours = inspect.signature(getattr(SimLium, name)).parameters.values()
    assert {parameter.name for parameter in ours if parameter.kind not in kinds} <= set(real)


def test_a_pod_boots_is_billed_from_running_and_ends_at_its_scheduled_time() -> None:
    world, lium = client(calm())
    pod = world.market.pods[str(rent(lium)["id"])]
    assert lium.pod(pod.id)["status"] == "PENDING"
    world.clock.sleep(100.0)
    assert lium.pod(pod.id)["status"] == "RUNNING"
    assert pod.removal_at == pod.running_at + 3600.0
    lium.schedule_termination(pod.id, termination_time=iso(world.clock.now() + 500.0))
    world.clock.sleep(600.0)
    with pytest.raises(LiumNotFoundError):
        lium.pod(pod.id)
    record = lium.pod_record(pod.id)
    assert record["total"] == pytest.approx((pod.ended_at - pod.running_at) / 3600 * 2.0)
    assert lium.pod_events(pod.id)[-1]["reason"] == "removed at its scheduled time"


def test_the_same_key_and_request_is_one_rent_and_another_request_is_refused() -> None:
    world, lium = client(calm())
    first = rent(lium)
    assert rent(lium)["id"] == first["id"]
    with pytest.raises(LiumError, match="409"):
        rent(lium, name="ts-sim0-sft-a2")
    world.clock.sleep(25 * 3600)
    assert rent(lium)["id"] != first["id"]


@pytest.mark.parametrize("done", [True, False])
def test_a_rent_without_an_answer_is_settled_by_its_replay(done: bool) -> None:
    faults = tuple(CallFault("rent", call, "connection", done) for call in (1, 2))
    world, lium = client(replace(calm(), calls=faults))
    with pytest.raises(LiumRentOutcomeUnknownError) as unknown:
        rent(lium)
    assert world.watch.rents == done
    replayed = lium._replay_rent(unknown.value)
    assert [replayed["id"]] == list(world.market.pods)
    assert world.watch.rents == 1


def test_a_stored_refusal_is_replayed_as_such() -> None:
    plan = replace(calm(), calls=tuple(CallFault("rent", call, "connection", True) for call in (1, 2)))
    world, lium = client(plan)
    with pytest.raises(LiumRentOutcomeUnknownError) as unknown:
        rent(lium, gpu_count=99)
    with pytest.raises(LiumError, match="409") as refused:
        lium._replay_rent(unknown.value)
    assert not isinstance(refused.value, LiumRentOutcomeUnknownError)
    assert world.market.pods == {}


def test_more_than_sixty_listings_a_minute_are_refused() -> None:
    world, lium = client(calm())
    with pytest.raises(LiumRateLimitError) as limited:
        for _ in range(300):
            lium.ps()
    assert limited.value.retry_after is not None
    world.clock.sleep(60.0)
    assert lium.ps() == []


def test_a_window_of_trouble_meets_only_its_target_and_its_time() -> None:
    world, lium = client(replace(calm(), lium=(Window(0, 100, "timeout", "list", 1.0),)))
    lium.ls()
    with pytest.raises(requests.Timeout):
        lium.ps()
    assert world.clock.now() - START > 90
    world.clock.sleep(100.0)
    assert lium.ps() == []


def test_a_lying_listing_is_not_the_look_up() -> None:
    world, lium = client(replace(calm(), lium=(Window(0, 1000, "empty", "list", 1.0),)))
    pod_id = str(rent(lium)["id"])
    world.clock.sleep(100.0)
    assert lium.ps() == []
    assert lium.pod(pod_id)["status"] == "RUNNING"


def test_a_call_that_a_sleeping_laptop_cut_in_two_has_no_answer() -> None:
    world, lium = client(calm())
    host = next(iter(world.market.hosts.values()))
    pod = world.market.place("ts-sim0-sft-a1", host, 1, 2.0, 1)
    process = world.processes[0]
    world.clock.after(0.01, lambda: process.suspend(600.0))
    with pytest.raises(requests.ConnectionError):
        lium.down(pod)
    assert world.clock.now() - START >= 600.0
