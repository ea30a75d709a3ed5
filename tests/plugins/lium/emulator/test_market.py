"""Capacity that comes and goes, the listing limit, a meter that runs fast, and keys that may not rent. Real clients."""

import time

import httpx
import pytest
from lium.sdk.exceptions import (
    LiumError,
    LiumInsufficientBalanceError,
    LiumRateLimitError,
    LiumScopeError,
)

pytestmark = pytest.mark.filterwarnings("ignore:Pinning:UserWarning")

H200 = {"gpu": "NVIDIA H200", "price_per_gpu": 2.0, "gpu_count": 8, "vram_mib": 143771}
L40S = {"gpu": "NVIDIA L40S", "price_per_gpu": 0.5, "gpu_count": 2, "vram_mib": 46068}


@pytest.fixture
def sdk(start_emulator, connect):
    return connect(start_emulator("--listings-per-minute", "100000", machines=[H200, L40S]))


def listed(sdk):
    return {node.machine_name: node for node in sdk.lium.ls()}


def test_an_offline_machine_is_not_listed_and_not_rented_and_its_pods_live_on(sdk):
    pod, node = sdk.pod(gpu_type="H200"), listed(sdk)["NVIDIA H200"]
    assert sdk.emulator.machine(node.id, offline=True).json()["free"] == 0
    assert list(listed(sdk)) == ["NVIDIA L40S"]
    with pytest.raises(LiumError, match="rentable GPU counts: none now"):
        sdk.lium.rent(gpu_type="H200", name="off")
    headers = {"Idempotency-Key": "k"}
    body = {"pod_name": "x", "gpu_count": 1, "user_public_key": ["ssh-ed25519 A"]}
    refused = sdk.call("POST", f"/executors/{node.id}/rent", json=body, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_matching_node")
    assert sdk.out(pod, "echo alive") == "alive"
    assert sdk.lium.ps()[0].status == "RUNNING"
    assert sdk.emulator.machine(node.id, offline=False).json()["free"] == 7
    assert listed(sdk)["NVIDIA H200"].available_gpu_count == 7


def test_others_take_and_return_gpus(sdk):
    ours, node = sdk.pod(gpu_type="H200", gpu_count=3), listed(sdk)["NVIDIA H200"]
    assert sdk.emulator.machine(node.id, free=2).json()["free"] == 2
    with pytest.raises(LiumError, match=r"gpu_count=3: .* rentable GPU counts: 1, 2$"):
        sdk.lium.rent(gpu_type="H200", gpu_count=3, name="too-many")
    second = sdk.pod(gpu_type="H200", gpu_count=2)
    assert "NVIDIA H200" not in listed(sdk)
    sdk.lium.down(ours)
    assert listed(sdk)["NVIDIA H200"].available_gpu_count == 3, "our GPUs are free again, those of others are not"
    wrong = sdk.emulator.machine(node.id, free=7)
    assert wrong.status_code == 400 and "0 to 6 GPUs that can be free" in wrong.json()["message"]
    assert sdk.emulator.machine(node.id, free=6).json()["free"] == 6
    assert len(sdk.out(second, "nvidia-smi -L").splitlines()) == 2


def test_a_new_price_is_for_new_pods(sdk):
    old, node = sdk.pod(gpu_type="H200"), listed(sdk)["NVIDIA H200"]
    sdk.emulator.machine(node.id, price_per_gpu=3.25)
    with pytest.raises(LiumError, match="max_price_per_gpu_hour"):
        sdk.lium.rent(gpu_type="H200", name="dear", max_price_per_gpu_hour=2.0)
    new = sdk.pod(gpu_type="H200")
    prices = {row["id"]: row["price"] for row in sdk.call("GET", "/pods").json()}
    assert (prices[old.id], prices[new.id], listed(sdk)["NVIDIA H200"].price_per_gpu) == (2.0, 3.25, 3.25)


def test_wrong_orders_for_a_machine_are_refused(sdk):
    node = listed(sdk)["NVIDIA H200"]
    for wrong, said in (
        ({"colour": 1}, "unknown order"),
        ({"free": -1}, "free is -1"),
        ({"free": True}, "free is True"),
    ):
        answer = sdk.emulator.machine(node.id, **wrong)
        assert answer.status_code == 400 and said in answer.json()["message"]
    for wrong in ({"offline": "yes"}, {"price_per_gpu": -1}, {"price_per_gpu": "1"}):
        assert sdk.emulator.machine(node.id, **wrong).status_code == 400
    assert sdk.emulator.machine("nowhere", free=0).status_code == 404
    assert listed(sdk)["NVIDIA H200"].available_gpu_count == 8


def test_an_inventory_can_plan_a_change(start_emulator, connect, wait_until):
    plan = [{"after_s": 0.5, "price_per_gpu": 9.0}]
    sdk = connect(start_emulator("--listings-per-minute", "100000", machines=[H200 | {"changes": plan}, L40S]))
    wait_until(lambda: listed(sdk)["NVIDIA H200"].price_per_gpu == 9.0, "it is dearer")


def test_the_61st_listing_in_a_minute_is_refused_for_this_account_only(start_emulator, connect):
    emulator = start_emulator(machines=[L40S])
    sdk, other = connect(emulator), connect(emulator)
    began = time.monotonic()
    answers = [sdk.call("GET", "/pods") for _ in range(61)]
    assert [answer.status_code for answer in answers] == [200] * 60 + [429]
    refused = answers[-1]
    passed_s = time.monotonic() - began
    assert max(1, 60 - passed_s) <= int(refused.headers["Retry-After"]) <= 60, "until the first listing is a minute old"
    assert refused.json()["error"]["code"] == "rate_limited"
    assert other.call("GET", "/pods").status_code == 200
    assert sdk.call("GET", "/executors").status_code == 200, "the limit is for listings of pods"
    with pytest.raises(LiumRateLimitError) as raised:
        sdk.lium.ps()
    assert 1 <= raised.value.retry_after <= 60


def test_the_limit_is_a_setting(start_emulator, connect):
    sdk = connect(start_emulator("--listings-per-minute", "2", machines=[L40S]))
    assert [sdk.call("GET", "/pods").status_code for _ in range(3)] == [200, 200, 429]


def test_billing_can_run_faster_and_nothing_else_does(start_emulator, connect, wait_until):
    options = ("--billing-scale", "3600", "--listings-per-minute", "100000")
    sdk = connect(start_emulator(*options, machines=[H200, L40S]))
    pod = sdk.pod(gpu_type="L40S", termination_hours=1)
    wait_until(lambda: sdk.lium.pod_record(pod.id)["total"] > 1.0, "a pod for $0.5 an hour costs a dollar in 2 s")
    assert [row.id for row in sdk.lium.ps()] == [pod.id], "its hour of real time is not over"
    sdk.lium.down(pod)
    record = sdk.lium.pod_record(pod.id)
    spent = 1000 - sdk.call("GET", "/users/me").json()["balance"]
    assert record["total"] == pytest.approx(record["billed_seconds"] / 3600 * 0.5, abs=1e-5)
    assert spent == pytest.approx(record["total"], abs=1e-5)


def test_a_key_without_the_right_to_rent_may_look_and_not_rent(sdk, connect, ssh_key):
    limited = connect(sdk.emulator, "norent-1")
    assert limited.lium.ps() == [] and len(limited.lium.ls()) == 2
    with pytest.raises(LiumScopeError) as raised:
        limited.lium.rent(gpu_type="L40S", name="no")
    assert raised.value.scope == "rent"
    answer = limited.call("POST", "/executors/rent-by-spec", json={"gpu_type": "L40S"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_scope")


def test_a_poor_account_cannot_pay_for_a_pod(sdk, connect):
    poor = connect(sdk.emulator, "poor-1")
    assert poor.call("GET", "/users/me").json()["balance"] == 0.01
    with pytest.raises(LiumInsufficientBalanceError) as raised:
        poor.lium.rent(gpu_type="L40S", name="no")
    assert (raised.value.required, raised.value.available) == (0.12, 0.01)
    assert poor.lium.ps() == []


def test_a_volume_of_another_pod_and_a_country_without_machines(sdk):
    volume = sdk.lium.volume_create("one")
    sdk.pod(gpu_type="L40S", volume_id=volume.id)
    with pytest.raises(LiumError, match=r"API error 409.*attached to pod"):
        sdk.lium.rent(gpu_type="L40S", name="second", volume_id=volume.id)
    with pytest.raises(LiumError, match="country=ZZ: none of the 1 node"):
        sdk.lium.rent(gpu_type="L40S", country="ZZ", name="nowhere")


def test_a_one_time_template_goes_with_its_pod_and_another_stays(sdk):
    body = {"name": "t", "docker_image": "me/img", "docker_image_tag": "1"}
    once = sdk.call("POST", "/templates", json=body | {"one_time_template": True}).json()["id"]
    kept = sdk.call("POST", "/templates", json=body).json()["id"]
    first, second, third = (sdk.pod(gpu_type="H200", template_id=template) for template in (once, once, kept))
    sdk.lium.down(first)
    assert sdk.call("GET", f"/templates/{once}").status_code == 200, "another pod has it"
    sdk.emulator.kill_pod(second.id)
    sdk.lium.down(third)
    assert sdk.call("GET", f"/templates/{once}").status_code == 404
    assert sdk.call("GET", f"/templates/{kept}").status_code == 200
    assert sdk.lium.pod_record(second.id)["image"] == "me/img:1", "the record keeps what the template said"
    assert httpx.get(f"{sdk.emulator.control}/info").json()["pods"] == 0


def test_a_test_may_look_at_all_pods_without_using_listings_up(start_emulator, connect):
    sdk = connect(start_emulator("--listings-per-minute", "3", machines=[L40S]))
    body = {"gpu_type": "L40S", "pod_name": "seen", "user_public_key": ["ssh-ed25519 A"]}
    pod_id = sdk.call("POST", "/executors/rent-by-spec", json=body).json()["pod_id"]
    for _ in range(10):
        rows = httpx.get(f"{sdk.emulator.control}/pods").json()
    assert [(row["id"], row["pod_name"], row["removed"]) for row in rows] == [(pod_id, "seen", False)]
    sdk.call("DELETE", f"/pods/{pod_id}")
    after = httpx.get(f"{sdk.emulator.control}/pods").json()[0]
    assert (after["removed"], after["close_reason"]) == (True, "unrent")
    assert [sdk.call("GET", "/pods").status_code for _ in range(4)] == [200, 200, 200, 429]
