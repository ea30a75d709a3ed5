"""The account on the emulator: what it reads, what a rent makes and refuses. Lost rents are `test_rent.py`'s."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from plugins.errors import CapacityError, ControlPlaneError, Refused, UserError
from plugins.lium.boundary import RateLimited
from plugins.lium.client import LiumAccount, LiumSettings, RentOrder, guard
from plugins.lium.poller import PodPoller, wait_ready
from tests.plugins.lium.road import LISTING, Answer


def rents(world) -> list[str]:
    return [call for call in world.calls() if call.startswith("POST /api/executors/")]


def test_a_pod_is_rented_found_extended_and_given_back(world, name: str) -> None:
    account = world.account
    row = world.rent(name)
    assert (row.name, row.terminal) == (name, False)
    assert row.price_per_hour and row.executor_id and row.gpu_name == "NVIDIA GeForce RTX 4090" and row.gpu_count == 1
    poller = PodPoller(account)
    ready = wait_ready(account, row, 30, poller)
    poller.close()
    assert ready.id == row.id and ready.reachable and ready.ssh_host == "127.0.0.1"
    assert account.find(name) == ready
    assert [item.name for item in account.pods("ts-")] == [name]
    assert account.pods("other-") == []
    until_time = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=10)
    assert account.extend(row.id, until_time) is True
    seen = account.look_up(row.id)
    assert seen is not None and seen.removal_scheduled_at == until_time
    assert account.release(name) == [row.id]
    assert account.find(name) is None
    assert account.look_up(row.id) is None
    assert account.extend(row.id, until_time) is False
    record = account.record(row.id)
    assert record is not None and record.cost_usd >= 0 and record.name == name and record.removed_at is not None
    assert [event.to_status for event in account.events(row.id) if event.to_status == "RUNNING"] == ["RUNNING"]


def test_an_address_without_api_at_its_end_is_named_where_it_leads_nowhere(world) -> None:
    own = world.account.settings
    there = LiumSettings(own.base_url.removesuffix("/api"), own.api_key, own.ssh_key_path)
    with pytest.raises(ControlPlaneError, match=r"ends in /api: http://127\.0\.0\.1:\d+\)"):
        LiumAccount(there).hosts()


def test_a_pod_is_rented_on_the_host_and_with_the_gpus_that_were_ordered(world, name: str) -> None:
    order = world.order(name, gpu="A100", gpu_count=2)
    row = world.account.rent(order, world.intents.append)
    assert (row.executor_id, row.gpu_count, row.gpu_name) == (order.executor_id, 2, "NVIDIA A100-SXM4-80GB")
    assert rents(world) == [f"POST /api/executors/{order.executor_id}/rent"]


def test_a_rented_pod_has_a_server_side_end_from_its_boot_on(world, name: str) -> None:
    before = datetime.now(UTC)
    row = world.rent(name, termination_hours=2)
    assert world.intents[0].payload["termination_hours"] == 2  # it goes with the rent: no moment without an end
    poller = PodPoller(world.account)
    ready = wait_ready(world.account, row, 30, poller)
    poller.close()
    assert ready.removal_scheduled_at is not None
    assert ready.removal_scheduled_at - before > timedelta(hours=1, minutes=59)


def test_another_process_finds_the_pod_by_its_name(world, name: str) -> None:
    first = world.rent(name)
    second = LiumAccount(world.settings).find(name)
    assert second is not None and second.id == first.id
    assert len(rents(world)) == 1


def test_every_host_is_listed_and_an_unknown_gpu_gets_the_known_names(world) -> None:
    hosts = world.account.hosts()
    assert {"NVIDIA H200", "NVIDIA GeForce RTX 4090"} <= {host.gpu for host in hosts}
    assert all(host.executor_id and host.price_per_gpu_hour for host in hosts)
    known = world.account.unknown_gpu("H20O")
    assert known is not None and "H200" in known
    assert world.account.unknown_gpu("RTX 4090") is None


@pytest.mark.usefixtures("hasty_sdk")
def test_no_answer_does_not_make_a_gpu_unknown(world, road) -> None:
    road.put("GET /api/machines", Answer(503, {}))
    assert LiumAccount(road.settings(world.settings)).unknown_gpu("H20O") is None


def test_the_balance_is_told_in_dollars(world, road) -> None:
    full = world.account.balance()
    assert full is not None and full > 1
    road.put("GET /api/users/me", Answer(200, {"id": "u", "balance": 0.25}), 1)
    road.put("GET /api/users/me", Answer(200, {"id": "u"}))
    account = LiumAccount(road.settings(world.settings))
    assert account.balance() == 0.25
    assert account.balance() is None


def test_a_boot_is_estimated_and_silence_is_no_error(world, road, name: str) -> None:
    executor = world.order(name).executor_id
    template = world.account.template_for("example/trainer:1")
    found = world.account.estimate(executor, template)
    assert found is not None and found.seconds is not None and found.seconds >= 0 and found.cached is not None
    assert world.account.estimate(executor, None) is None
    road.put("GET /api/executors/deployment-estimate", Answer(404, {"message": "no"}), 1)
    road.put("GET /api/executors/deployment-estimate", Answer(200, {"estimated_seconds": "soon"}))
    account = LiumAccount(road.settings(world.settings))
    assert account.estimate(executor, template) is None
    unread = account.estimate(executor, template)
    assert unread is not None and (unread.seconds, unread.cached) == (None, None)


def test_an_image_gets_a_template_that_the_rent_uses_and_the_next_one_finds(world, name: str) -> None:
    template = world.account.template_for("example/trainer:1")
    assert world.account.template_for("example/trainer:1") == template
    assert world.calls().count("POST /api/templates") == 1
    world.rent(name, template_id=template)
    assert world.intents[0].payload["template_id"] == template


# -- what is refused --------------------------------------------------------------------------------------------------


def test_no_capacity_is_a_capacity_error(world, name: str) -> None:
    order = world.order(name)
    world.emulator.faults({"no_capacity": 1})
    with pytest.raises(CapacityError, match=f"rent pod {name}: no machine fits now"):
        world.account.rent(order, world.intents.append)
    with pytest.raises(CapacityError, match="rentable GPU counts"):
        world.rent(name, gpu_count=64)
    assert world.account.find(name) is None


def test_a_host_that_left_the_listing_is_a_capacity_error_and_nothing_is_sent(world, name: str) -> None:
    with pytest.raises(CapacityError, match=f"rent pod {name}: the host is rented or offline by now"):
        world.account.rent(RentOrder(name, "00000000-0000-4000-8000-000000000000"), world.intents.append)
    assert (rents(world), world.intents) == ([], [])


def test_a_refused_key_is_the_users_error(world) -> None:
    account = LiumAccount(LiumSettings(world.settings.base_url, "bad-key-of-somebody", world.settings.ssh_key_path))
    with pytest.raises(UserError, match="check the Lium API key") as caught:
        account.pods()
    assert "bad-key-of-somebody" not in str(caught.value)


def test_a_missing_public_key_is_the_users_error(world, name: str, tmp_path: Path) -> None:
    account = LiumAccount(LiumSettings(world.settings.base_url, world.settings.api_key, tmp_path / "none"))
    with pytest.raises(UserError, match="ssh-keygen"):
        account.rent(world.order(name), world.intents.append)
    assert (rents(world), world.intents) == ([], [])


@pytest.mark.usefixtures("hasty_sdk")
def test_a_dead_api_is_a_control_plane_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    account = LiumAccount(LiumSettings("http://127.0.0.1:9/api", "key", tmp_path / "key"))
    with pytest.raises(ControlPlaneError, match="does not answer"):
        account.pods()


@pytest.mark.usefixtures("hasty_sdk")
def test_rate_limits_are_waited_out_as_long_as_lium_asks(world, clock) -> None:
    account = LiumAccount(world.settings, clock=clock)
    world.emulator.faults({"429:GET /api/pods": 6})  # the SDK itself tries three times
    assert account.pods() == []
    assert len(clock.pauses) == 2 and all(2.0 <= pause <= 30.0 for pause in clock.pauses)


@pytest.mark.usefixtures("hasty_sdk")
def test_a_rate_limit_without_end_is_given_up_within_its_patience(world, road, clock) -> None:
    road.put(LISTING, Answer(429, {}))
    with pytest.raises(RateLimited, match="list pods"):
        LiumAccount(road.settings(world.settings), clock=clock).pods()
    assert 0 < clock.monotonic() <= 60.0


@pytest.mark.usefixtures("hasty_sdk")
def test_an_impatient_listing_raises_the_rate_limit_at_once(world, clock) -> None:
    world.emulator.faults({"429:GET /api/pods": 3})
    with pytest.raises(RateLimited):
        LiumAccount(world.settings, clock=clock).pods(patient=False)
    assert clock.pauses == []


# -- volumes ----------------------------------------------------------------------------------------------------------


def test_a_volume_is_made_once_and_found_by_name_and_id(world, name: str) -> None:
    account, volume = world.account, f"vol-{name}"
    made = account.volume_for(f"new:name={volume},desc=runs")
    assert {account.volume_for(wanted) for wanted in (f"new:name={volume}", volume, f"id:{made}")} == {made}
    assert world.calls().count("POST /api/volumes") == 1
    world.rent(name, volume_id=made)
    assert world.intents[0].payload["volume_id"] == made
    with pytest.raises(UserError, match=rf"no volume is called 'nope'.*{volume}"):
        account.volume_for("nope")
    with pytest.raises(UserError, match="new:name=NAME"):
        account.volume_for("new:size=3")


def test_a_volume_held_by_another_pod_is_refused_before_and_by_the_rent(world, name: str) -> None:
    volume = world.account.volume_for(f"new:name=vol-{name}")
    world.rent(name, volume_id=volume)
    with pytest.raises(UserError, match=f"vol-{name} is held by pod {name}"):
        world.account.volume_for(f"vol-{name}")
    assert world.account.volume_for(f"vol-{name}", [name]) == volume  # our own pod's: it is adopted
    with pytest.raises(UserError, match=r"attached to pod .*wait for that pod's end, or use another volume"):
        world.rent(f"{name}1", volume_id=volume)
    assert world.account.find(f"{name}1") is None


# -- real money -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "key", "price", "budget", "missing"),
    [
        ("https://lium.io/api", "", 2.5, 10.0, "an API key"),
        ("https://lium.io/api", "k", None, 10.0, "a price ceiling"),
        ("https://lium.io/api", "k", 2.5, None, "a budget"),
        ("https://lium.io/api", "k", 2.5, 0.0, "a budget"),
        ("http://localhost.example.com/api", "", None, None, "an API key, a price ceiling, a budget"),
        ("http://10.0.0.1/api", "k", None, 1.0, "a price ceiling"),
    ],
)
def test_real_money_needs_key_ceiling_and_budget(url, key, price, budget, missing) -> None:
    with pytest.raises(Refused, match=f"lack {missing}$"):
        guard(LiumSettings(url, key, Path("k")), price, budget)


def test_the_guard_lets_the_emulator_and_complete_recipes_pass() -> None:
    guard(LiumSettings("https://lium.io/api", "k", Path("k")), 2.5, 10.0)
    for host in ("127.0.0.1:8799", "localhost", "[::1]:1"):
        guard(LiumSettings(f"http://{host}/api", "", Path("k")), None, None)


class NoSdk:
    """Stands for the SDK where no request may be made: it has nothing that could be called."""


@pytest.mark.parametrize(("key", "ceiling"), [("k", None), ("k", 0.0), ("", 2.5)])
def test_rent_itself_refuses_real_money_without_key_or_ceiling(name: str, key: str, ceiling: float | None) -> None:
    account = LiumAccount(LiumSettings("https://lium.invalid/api", key, Path("k")), lium=NoSdk())
    with pytest.raises(Refused, match="costs real money"):
        account.rent(RentOrder(name, "some-host", ceiling=ceiling), lambda _: None)


def test_the_api_key_is_not_in_the_settings_text() -> None:
    assert "sk_very_secret" not in repr(LiumSettings("http://localhost/api", "sk_very_secret", Path("k")))
