"""Hosts that are not as they should be: reclaimed, slow, failing, lying, cut off. Seen through the unmodified SDK."""

import time

import pytest
from lium.sdk.exceptions import LiumError

pytestmark = pytest.mark.filterwarnings("ignore:Pinning:UserWarning")

MACHINES = [
    {"gpu": "NVIDIA L40S", "tier": "spot", "reclaim_after_s": 0.5},
    {"gpu": "NVIDIA L40", "tier": "spot", "reclaims_per_hour": 1e6, "reclaim_how": "broken"},
    {"gpu": "NVIDIA A10", "boot_delay_s": 1.0},
    {"gpu": "NVIDIA A40", "boot_fail": True},
    {"gpu": "NVIDIA H200", "gpu_count": 8, "vram_mib": 143771}
    | {"really_gpu": "NVIDIA A10G", "really_gpu_count": 2, "really_vram_mib": 23028},
    {"gpu": "NVIDIA A100-SXM4-80GB", "network_lost_after_s": 1.0},
    {"gpu": "NVIDIA GeForce RTX 4090"},
]


@pytest.fixture(scope="module")
def emulator(start_for_module):
    usual = {"price_per_gpu": 1.0, "gpu_count": 1, "vram_mib": 24564}
    return start_for_module("--listings-per-minute", "100000", machines=[usual | machine for machine in MACHINES])


def rows(sdk):
    return {row["id"]: row for row in sdk.call("GET", "/pods").json()}


def test_a_spot_pod_is_taken_back_and_the_events_say_why(sdk, wait_until):
    # Not waited for: on a busy machine one may be gone before anybody saw it run.
    vanishes, breaks = (sdk.lium.rent(gpu_type=gpu, name=gpu.lower()).pod["id"] for gpu in ("L40S", "L40"))
    stays = sdk.pod(gpu_type="4090")
    wait_until(lambda: vanishes not in rows(sdk), "the first is gone")
    wait_until(lambda: rows(sdk)[breaks]["status"] == "BROKEN", "the second is broken")
    assert sdk.lium.pod_record(vanishes)["billed_seconds"] >= 0.5
    assert rows(sdk)[stays.id]["status"] == "RUNNING"
    for pod, word in ((vanishes, "STOPPED"), (breaks, "BROKEN")):
        last = sdk.lium.pod_events(pod)[-1]
        assert (last["to_status"], last["reason"]) == (word, "spot reclaim: the host took its GPUs back")
    with pytest.raises(Exception, match="spot reclaim") as raised:
        sdk.lium.wait_ready(breaks, timeout=5)
    assert type(raised.value).__name__ == "PodStartError"


def test_a_slow_host_is_pending_and_says_how_long_it_takes(sdk):
    began = time.time()
    rented = sdk.lium.rent(gpu_type="A10", name="slow").pod["id"]
    row = rows(sdk)[rented]
    assert (row["status"], row["ssh_connect_cmd"], row["estimated_ready_seconds"]) == ("PENDING", None, 1)
    sdk.ready(rented)
    events = sdk.lium.pod_events(rented)
    assert [event["to_status"] for event in events] == ["PENDING", "RUNNING"]
    assert time.time() - began >= 1.0


def test_every_boot_of_a_failing_host_fails_and_costs_nothing(sdk):
    for name in ("first", "second"):
        rented = sdk.lium.rent(gpu_type="A40", name=name).pod["id"]
        with pytest.raises(Exception, match="fails every boot"):
            sdk.lium.wait_ready(rented, timeout=20, poll_interval=0.05)
        assert rows(sdk)[rented]["status"] == "CREATION_FAILED"
        assert sdk.lium.pod_record(rented)["total"] == 0


def test_a_lying_host_lists_one_thing_and_shows_another(sdk):
    pod = sdk.pod(gpu_type="H200", gpu_count=8)
    row = rows(sdk)[pod.id]
    details = row["executor"]["specs"]["gpu"]["details"]
    assert (row["gpu_name"], row["gpu_count"], len(details), details[0]["capacity"]) == ("NVIDIA H200", "8", 8, 143771)
    query = "nvidia-smi --query-gpu=name,memory.total,memory.free --format=csv,noheader,nounits"
    assert sdk.out(pod, query).splitlines() == ["NVIDIA A10G, 23028, 23024"] * 2
    assert sdk.out(pod, "nvidia-smi -L").count("NVIDIA A10G") == 2


def test_a_host_loses_its_network_and_goes_on_saying_running(sdk, wait_until):
    pod = sdk.pod(gpu_type="A100")
    sdk.out(pod, "true")

    def cut_off():
        try:
            return sdk.lium.exec(pod, command="true")["exit_code"] != 0
        except (OSError, EOFError, LiumError):
            return True

    wait_until(cut_off, "SSH does not reach the pod")
    assert rows(sdk)[pod.id]["status"] == "RUNNING" and rows(sdk)[pod.id]["ssh_connect_cmd"]
    sdk.emulator.network(pod.id, up=True)
    sdk.lium.close()
    assert sdk.out(pod, "echo back") == "back"
    sdk.lium.reboot(pod)
    assert sdk.out(sdk.ready(pod.id), "echo still back") == "still back", "the loss was once, it does not come again"


def test_the_use_of_the_gpus_can_be_set(sdk):
    pod = sdk.pod()
    query = "nvidia-smi --query-gpu=index,utilization.gpu,memory.used,memory.free --format=csv,noheader,nounits"
    assert sdk.out(pod, query) == "0, 85, 4, 24560"
    assert sdk.emulator.gpu(pod.id, utilization=0).json()["utilization"] == 0
    assert sdk.out(pod, query) == "0, 0, 4, 24560"
    sdk.emulator.gpu(pod.id, utilization=100, memory_used_mib=20000)
    assert sdk.out(pod, query) == "0, 100, 20000, 4564"
    assert sdk.lium.gpu_stats(pod)[0]
    sdk.lium.reboot(pod)
    assert sdk.out(sdk.ready(pod.id), query) == "0, 100, 20000, 4564", "what was set outlives a reboot"
    for wrong in ({"utilization": 101}, {"utilization": "50"}, {"utilization": True}, {"memory_used_mib": -1}):
        refused = sdk.emulator.gpu(pod.id, **wrong)
        assert refused.status_code == 400 and "not a whole number from 0 to" in refused.json()["message"]


def test_an_estimate_knows_the_boot_delay_and_whether_the_image_is_on_the_disk(start_emulator, connect):
    usual = {"price_per_gpu": 1.0, "gpu_count": 1, "vram_mib": 24564, "download_mbps": 720.0, "boot_delay_s": 20}
    machines = [
        usual | {"gpu": "NVIDIA A10", "cached_images": []},
        usual | {"gpu": "NVIDIA A40", "cached_images": ["daturaai/pytorch", "other:1"]},
        usual | {"gpu": "NVIDIA L40", "cached_images": ["daturaai/pytorch:0.1"]},
        usual | {"gpu": "NVIDIA L40S"},
    ]
    sdk = connect(start_emulator("--boot-delay", "3", machines=machines))
    nodes = {node.machine_name: node.id for node in sdk.lium.ls()}

    def estimate(gpu):
        row = sdk.call("GET", "/executors/deployment-estimate", params={"executor_id": nodes[gpu]}).json()
        return row["is_cached_template"], row["estimated_seconds"]

    assert estimate("NVIDIA A10") == estimate("NVIDIA L40") == (False, 120)
    assert estimate("NVIDIA A40") == estimate("NVIDIA L40S") == (True, 20)
