"""Renting and giving back on the emulator, with the faults that cost other systems money."""

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from plugins.errors import CapacityError, ControlPlaneError, PodLost, Refused, UserError
from plugins.lium.boundary import RateLimited
from plugins.lium.client import LiumAccount, LiumSettings, PodSpec, guard
from plugins.lium.poller import PodPoller, wait_ready

RENT = "POST /api/executors/rent-by-spec"


@pytest.fixture
def name() -> Iterator[str]:
    return f"ts-{uuid.uuid4().hex[:8]}-sft-a1"


@pytest.fixture
def hasty_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's pauses between its own tries are fixed (up to 20 s in all); the order of calls is what is tested."""
    real = time.sleep
    monkeypatch.setattr(time, "sleep", lambda pause_s: real(min(pause_s, 0.05)))


def spec(name: str, **changes) -> PodSpec:
    return PodSpec(name=name, **{"gpu_type": "RTX4090", "dead_man_s": 600.0, **changes})


def test_a_pod_is_rented_found_extended_and_given_back(world, name: str) -> None:
    account = world.account
    row = account.rent(spec(name))
    assert (row.name, row.terminal) == (name, False)
    assert row.price_per_hour and row.executor_id and row.gpu_name == "NVIDIA GeForce RTX 4090" and row.gpu_count == 1
    ready = wait_ready(account, name, 30)
    assert ready is not None and ready.id == row.id and ready.reachable and ready.ssh_host == "127.0.0.1"
    assert account.find(name) == ready
    assert [item.name for item in account.pods("ts-")] == [name]
    assert account.pods("other-") == []
    until_time = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=10)
    assert account.extend(row.id, until_time) is True
    seen = account.look_up(row.id)
    assert seen is not None and seen.removal_scheduled_at == until_time
    assert [item.id for item in account.release(name)] == [row.id]
    assert account.find(name) is None
    assert account.look_up(row.id) is None
    assert account.extend(row.id, until_time) is False
    record = account.record(row.id)
    assert record is not None and record.cost_usd >= 0 and record.name == name and record.removed_at is not None
    assert [event.to_status for event in account.events(row.id) if event.to_status == "RUNNING"] == ["RUNNING"]


def test_a_rented_pod_has_a_server_side_end_at_once(world, name: str) -> None:
    before = datetime.now(UTC)
    world.account.rent(spec(name, dead_man_s=300))
    calls = world.calls()
    rent, end = calls.index(RENT), next(i for i, call in enumerate(calls) if call.endswith("/schedule-removal"))
    assert rent < end
    row = world.account.find(name)
    assert row is not None and row.removal_scheduled_at is not None
    assert row.removal_scheduled_at > before + timedelta(seconds=250)


def test_renting_again_adopts_the_pod(world, name: str) -> None:
    first = world.account.rent(spec(name))
    second = LiumAccount(world.settings).rent(spec(name))
    assert second.id == first.id
    assert world.calls().count(RENT) == 1


@pytest.mark.usefixtures("hasty_sdk")
def test_a_lost_rent_answer_makes_one_pod(world, name: str) -> None:
    world.emulator.faults({"lose_rent_answer": 1})
    row = world.account.rent(spec(name))
    assert [item.id for item in world.account.pods(name)] == [row.id]


@pytest.mark.usefixtures("hasty_sdk")
def test_a_rent_that_nobody_answers_is_not_sent_again_and_says_so(world, name: str) -> None:
    faults = {f"503:{RENT}": 9}
    world.emulator.faults(faults)
    account = LiumAccount(world.settings, sleep=lambda _: None)
    try:
        with pytest.raises(ControlPlaneError, match=r"3 good listings show no pod .* a pod that appears is adopted"):
            account.rent(spec(name))
    finally:
        world.emulator.clear_faults(faults)
    assert world.calls().count(RENT) == 2  # the SDK's own resend, with the same idempotency key
    assert account.pods(name) == []


@pytest.mark.usefixtures("hasty_sdk")
def test_nothing_is_rented_while_the_listing_does_not_answer(world, name: str) -> None:
    faults = {"500:GET /api/pods": 3}
    world.emulator.faults(faults)
    with pytest.raises(ControlPlaneError, match="list pods: Lium does not answer: Server error: 500"):
        world.account.rent(spec(name))
    assert RENT not in world.calls()


def test_no_capacity_is_a_capacity_error(world, name: str) -> None:
    world.emulator.faults({"no_capacity": 1})
    with pytest.raises(CapacityError, match=f"rent pod {name}"):
        world.account.rent(spec(name))
    with pytest.raises(CapacityError):
        world.account.rent(spec(name, max_price_per_gpu_hour=0.0001))
    assert world.account.find(name) is None


def test_an_unknown_gpu_names_near_ones(world, name: str) -> None:
    with pytest.raises(UserError, match=r"no GPU called 'H20O': did you mean .*H200"):
        world.account.rent(spec(name, gpu_type="H20O"))
    assert RENT not in world.calls()


def test_a_refused_key_is_the_users_error(world, name: str) -> None:
    account = LiumAccount(LiumSettings(world.settings.base_url, "bad-key-of-somebody", world.settings.ssh_key_path))
    with pytest.raises(UserError, match="check the Lium API key") as caught:
        account.pods()
    assert "bad-key-of-somebody" not in str(caught.value)


def test_a_missing_public_key_is_the_users_error(world, name: str, tmp_path: Path) -> None:
    account = LiumAccount(LiumSettings(world.settings.base_url, world.settings.api_key, tmp_path / "none"))
    with pytest.raises(UserError, match="ssh-keygen"):
        account.rent(spec(name))


@pytest.mark.usefixtures("hasty_sdk")
def test_a_dead_api_is_a_control_plane_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    account = LiumAccount(LiumSettings("http://127.0.0.1:9/api", "key", tmp_path / "key"))
    with pytest.raises(ControlPlaneError, match="does not answer"):
        account.pods()


@pytest.mark.usefixtures("hasty_sdk")
def test_rate_limits_are_waited_out_as_long_as_lium_asks(world, name: str) -> None:
    pauses: list[float] = []
    account = LiumAccount(world.settings, sleep=pauses.append)
    faults = {"429:GET /api/pods": 6}  # the SDK itself tries three times
    world.emulator.faults(faults)
    assert account.pods() == []
    assert len(pauses) == 2 and all(2.0 <= pause <= 30.0 for pause in pauses)


@pytest.mark.usefixtures("hasty_sdk")
def test_an_impatient_listing_raises_the_rate_limit_at_once(world) -> None:
    faults = {"429:GET /api/pods": 3}
    world.emulator.faults(faults)
    with pytest.raises(RateLimited):
        world.account.pods(patient=False)


def test_release_is_idempotent_and_takes_every_pod_of_the_name(world, name: str) -> None:
    account = world.account
    account.rent(spec(name))
    account._lium.rent(gpu_type="RTX4090", name=name)  # a twin, as a client without idempotency makes it
    assert len(account.pods(name)) == 2
    assert len(account.release(name)) == 2
    assert account.release(name) == []
    assert account.pods(name) == []


def test_release_goes_on_over_errors_until_the_pod_is_gone(world, name: str) -> None:
    account = LiumAccount(world.settings, sleep=lambda _: None)
    row = account.rent(spec(name))
    world.emulator.faults({"500:DELETE /api/pods/*": 1, "404:DELETE /api/pods/*": 1})
    assert [item.id for item in account.release(name)] == [row.id]
    assert account.look_up(row.id) is None


def test_release_says_when_it_is_not_certain(world, name: str) -> None:
    account = LiumAccount(world.settings, sleep=lambda _: None)
    account.rent(spec(name))
    faults = {"500:DELETE /api/pods/*": 10_000}
    world.emulator.faults(faults)
    try:
        with pytest.raises(ControlPlaneError, match=f"pod {name} could not be given back .* may still cost money"):
            account.release(name, timeout_s=0.3)
    finally:
        world.emulator.clear_faults(faults)


def test_a_volume_is_made_once_and_found_by_name_and_id(world, name: str) -> None:
    account = world.account
    volume = f"vol-{name}"
    account.rent(spec(name, volume=f"new:name={volume},desc=runs"))
    account.release(name)
    account.rent(spec(f"{name}1", volume=f"new:name={volume}"))
    account.release(f"{name}1")
    volumes = [item for item in account._lium.volumes() if item.name == volume]
    assert len(volumes) == 1
    for wanted in (volume, f"id:{volumes[0].id}"):
        account.rent(spec(f"{name}2", volume=wanted))
        account.release(f"{name}2")
    with pytest.raises(UserError, match=rf"no volume is called 'nope'.*{volume}"):
        account.rent(spec(f"{name}3", volume="nope"))
    with pytest.raises(UserError, match="new:name=NAME"):
        account.rent(spec(f"{name}3", volume="new:size=3"))


def test_an_image_gets_a_one_time_template_named_after_the_pod(world, name: str) -> None:
    world.emulator.faults({"no_capacity": 1})
    with pytest.raises(CapacityError):
        world.account.rent(spec(name, image="example/trainer:1"))
    world.account.rent(spec(name, image="example/trainer:1"))
    assert world.calls().count("POST /api/templates") == 1


def test_a_pod_that_fails_to_boot_is_lost_with_liums_cause(world, name: str) -> None:
    world.emulator.faults({"boot_fail": 1})
    row = world.account.rent(spec(name))
    with pytest.raises(PodLost, match=f"pod {name} is CREATION_FAILED: .+") as caught:
        wait_ready(world.account, name, 30)
    cause = world.account.cause(row.id)
    assert cause and cause in str(caught.value)
    with pytest.raises(PodLost, match="CREATION_FAILED"):
        world.account.rent(spec(name))


def test_waiting_can_be_cancelled_and_has_an_end(world, name: str) -> None:
    poller = PodPoller(world.account)
    try:
        assert wait_ready(world.account, name, 30, lambda: True, poller=poller) is None
        with pytest.raises(PodLost, match="was not ready within 0 s"):
            wait_ready(world.account, name, 0.4, poller=poller)
    finally:
        poller.close()


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


def test_rent_itself_refuses_real_money_without_a_ceiling(name: str) -> None:
    account = LiumAccount(LiumSettings("https://lium.invalid/api", "k", Path("k")))
    with pytest.raises(Refused, match="costs real money"):
        account.rent(spec(name))
    with pytest.raises(UserError, match="termination_hours"):
        account.rent(spec(name, termination_hours=0))


def test_the_api_key_is_not_in_the_settings_text() -> None:
    assert "sk_very_secret" not in repr(LiumSettings("http://localhost/api", "sk_very_secret", Path("k")))
