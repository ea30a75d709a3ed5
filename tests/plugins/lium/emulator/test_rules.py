"""The rules that need no process: choosing a machine, prices, faults, paths, the fake nvidia-smi, the state file."""

import asyncio
import json
import random
import re
import uuid
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from plugins.errors import UserError
from plugins.lium.emulator import billing, inventory
from plugins.lium.emulator.faults import Faults
from plugins.lium.emulator.inventory import DEFAULT_FLEET, NothingFits, choose, same_gpu
from plugins.lium.emulator.limiter import SlidingMinute, TooMany
from plugins.lium.emulator.market import BalanceTooLow
from plugins.lium.emulator.nvidia_smi import answer
from plugins.lium.emulator.patrol import Patrol
from plugins.lium.emulator.pod_files import lay_out
from plugins.lium.emulator.pods import Pods, Settings
from plugins.lium.emulator.state import Pod, StateFile, iso, parse_iso

NEW_POD_FIELDS = {"image", "billing_scale", "listed_from_s", "network", "network_timed"} | {
    "gpu_utilization",
    "gpu_memory_used_mib",
}
FREE = {machine.id: machine.gpu_count for machine in DEFAULT_FLEET}


@pytest.mark.parametrize(
    ("asked", "full", "same"),
    [
        ("H200", "NVIDIA H200", True),
        ("nvidia h200", "NVIDIA H200", True),
        ("H100", "NVIDIA H100 80GB HBM3", True),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", True),
        ("4090", "NVIDIA GeForce RTX 4090", True),
        ("RTX4090", "NVIDIA GeForce RTX 4090", True),
        ("RTX 4090", "NVIDIA GeForce RTX 4090", True),
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("L40", "NVIDIA L40S", False),
        ("H20", "NVIDIA H200", False),
        ("H200", "NVIDIA H100 80GB HBM3", False),
        ("", "NVIDIA H200", False),
    ],
)
def test_short_and_full_gpu_names(asked, full, same):
    assert same_gpu(asked, full) is same


def test_the_cheapest_machine_that_fits_is_chosen():
    fitting = choose(DEFAULT_FLEET, FREE, {"gpu_type": "H200"})
    assert [machine.price_per_gpu for machine in fitting] == [1.89, 2.49]
    assert choose(DEFAULT_FLEET, FREE, {"gpu_type": "H200", "country": "us"})[0].price_per_gpu == 2.49


def test_a_ceiling_equal_to_the_price_admits_the_machine():
    assert choose(DEFAULT_FLEET, FREE, {"gpu_type": "H200", "max_price_per_gpu_hour": 1.89})


def test_a_machine_whose_gpus_are_taken_is_passed_over():
    cheapest = choose(DEFAULT_FLEET, FREE, {"gpu_type": "H200"})[0]
    assert choose(DEFAULT_FLEET, FREE | {cheapest.id: 3}, {"gpu_type": "H200", "gpu_count": 4})[0] is not cheapest
    with pytest.raises(NothingFits, match="rentable GPU counts: 1, 2, 3, 4"):
        choose(DEFAULT_FLEET, FREE, {"gpu_type": "A100", "gpu_count": 5})


def test_an_inventory_file_is_read_and_its_ids_stay_the_same(tmp_path):
    path = tmp_path / "fleet.json"
    path.write_text('[{"gpu": "NVIDIA H200", "price_per_gpu": 1, "gpu_count": 1, "vram_mib": 1}]')
    assert inventory.load(path) == inventory.load(path)
    with pytest.raises(UserError, match=r"missing\.json is not an inventory"):
        inventory.load(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"reclaim_after_s": 5}, "need tier spot, not secure"),
        ({"tier": "spot", "reclaims_per_hour": -1}, "reclaims_per_hour is -1, not a number from 0"),
        ({"tier": "spot", "reclaim_how": "loudly"}, "reclaim_how is 'loudly'"),
        ({"boot_delay_s": "long"}, "boot_delay_s is 'long'"),
        ({"changes": [{"offline": True}]}, "has no after_s"),
        ({"changes": [{"after_s": 1, "free": 2}]}, "free is 2; .* 0 to 1 GPUs"),
        ({"changes": [{"after_s": 1, "colour": 2}]}, "unknown order 'colour' for a machine"),
    ],
)
def test_a_machine_that_contradicts_itself_is_refused(tmp_path, more, said):
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps([{"gpu": "NVIDIA H200", "price_per_gpu": 1, "gpu_count": 1, "vram_mib": 1} | more]))
    with pytest.raises(UserError, match=said):
        inventory.load(path)


def test_a_rate_of_reclaims_is_met_on_average_and_is_the_same_for_a_pod_at_each_look():
    machine = replace(DEFAULT_FLEET[1], reclaims_per_hour=4.0)
    ids = [str(uuid.UUID(int=random.Random(seed).getrandbits(128))) for seed in range(2000)]
    assert sum(machine.reclaimed_after_s(pod_id) for pod_id in ids) / len(ids) == pytest.approx(900, rel=0.1)
    assert machine.reclaimed_after_s(ids[0]) == machine.reclaimed_after_s(ids[0])
    assert replace(machine, reclaim_after_s=0.0).reclaimed_after_s(ids[0]) == 0
    assert DEFAULT_FLEET[1].reclaimed_after_s(ids[0]) is None


def test_a_sliding_minute_admits_so_many_and_says_in_whole_seconds_when_the_next_may_come():
    clock = {"now": 100.0}
    minute = SlidingMinute(3, lambda: clock["now"])
    for now in (100.0, 110.5, 120.0):
        clock["now"] = now
        minute.count("a")
    with pytest.raises(TooMany) as refused:
        minute.count("a")
    assert refused.value.retry_after_s == 40
    minute.count("b")
    clock["now"] = 159.999
    with pytest.raises(TooMany) as refused:
        minute.count("a")
    assert refused.value.retry_after_s == 1
    clock["now"] = 160.0
    minute.count("a")  # the refused ones did not count
    with pytest.raises(TooMany) as refused:
        minute.count("a")
    assert refused.value.retry_after_s == 11


def pod_row(**more):
    wanted = {
        "id": "11111111-2222-3333-4444-555555555555",
        "account": "a",
        "name": "p",
        "executor_id": DEFAULT_FLEET[0].id,
        "gpu_indices": [0, 1],
        "price_per_gpu": 2.0,
        "template_id": "t",
        "public_keys": ["k"],
        "created_at_s": 100.0,
        "updated_at_s": 100.0,
    }
    return Pod(**wanted | more)


def test_a_pod_costs_from_its_first_run_to_its_removal():
    assert billing.cost(pod_row(), 5000.0) == 0
    assert billing.cost(pod_row(billed_from_s=1000.0), 1000.0 + 1800) == pytest.approx(2.0)
    assert billing.cost(pod_row(billed_from_s=1000.0, removed_at_s=1900.0), 99_999.0) == pytest.approx(1.0)


def test_a_scaled_meter_bills_faster():
    pod = pod_row(billed_from_s=1000.0, removed_at_s=1900.0, billing_scale=60.0)
    assert billing.billed_seconds(pod, 99_999.0) == 54_000 and billing.cost(pod, 99_999.0) == pytest.approx(60.0)


def test_a_state_file_of_before_still_loads(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    old = {name: value for name, value in asdict(pod_row()).items() if name not in NEW_POD_FIELDS}
    state = {"accounts": {}, "pods": {"x": old}, "volumes": {}, "templates": {}, "ssh_keys": [], "answered": {}}
    (folder / "state.json").write_text(json.dumps(state))
    file = StateFile(folder)
    pod = file.state.pods["x"]
    assert (pod.network, pod.billing_scale, pod.gpu_utilization, pod.listed_from_s) == ("up", 1.0, 85, None)
    file.close()


def test_times_without_a_zone_are_utc():
    assert (
        parse_iso("2026-01-02T03:04:05") == parse_iso("2026-01-02T03:04:05Z") == parse_iso("2026-01-02T04:04:05+01:00")
    )
    assert parse_iso(str(iso(1234.5))) == 1234.5


def test_faults_are_used_up_and_match_by_path():
    faults = Faults()
    faults.order({"429:GET /api/pods*": 1, "boot_fail": 2})
    assert faults.http_status("POST", "/api/pods") is None
    assert faults.http_status("GET", "/api/pods/x") == 429 and faults.http_status("GET", "/api/pods/x") is None
    assert [faults.take("boot_fail") for _ in range(3)] == [True, True, False]
    assert faults.order({}) == {}
    faults.order({"lost:POST /api/*": 1, "late:POST /api/executors/*/rent": 1, "status:odd": 1, "timeout:* /api/x": 1})
    assert faults.http_status("POST", "/api/executors/e/rent") is None
    assert not faults.take_for("lost", "GET", "/api/pods") and faults.take_for("lost", "POST", "/api/pods")
    assert [faults.take_for("late", "POST", "/api/executors/e/rent") for _ in range(2)] == [True, False]
    assert faults.take_for("timeout", "DELETE", "/api/x")
    assert [faults.status_word(), faults.status_word()] == ["odd", None]
    for wrong in (
        {"999": 1},
        {"boot_fail": -1},
        {"boot_fail": "2"},
        {"slow:GET /x": 1},
        {"timeout": 1},
        {"status:": 1},
    ):
        with pytest.raises(UserError):
            faults.order(wrong)


def test_nvidia_smi_formats():
    gpus = DEFAULT_FLEET[0].nvidia_smi([3], 85, 4)
    assert answer(["--query-gpu=name,memory.total", "--format=csv"], gpus)[1] == (
        "name, memory.total [MiB]\nNVIDIA H200, 143771 MiB"
    )
    assert answer(["--query-gpu=index,memory.used", "--format=csv,noheader,nounits"], gpus) == (0, "0, 4")
    every = "index,name,uuid,driver_version,memory.total,memory.used,memory.free,utilization.gpu,compute_cap,clocks.sm"
    cells = answer([f"--query-gpu={every}", "--format=csv,noheader,nounits"], gpus)[1].split(", ")
    assert cells[3:9] == ["580.95.05", "143771", "4", "143767", "85", "9.0"]
    for unknown in ("colour", "_cuda"):
        wanted = (2, f'Field "{unknown}" is not a valid field to query.')
        assert answer([f"--query-gpu=name,{unknown}", "--format=csv"], gpus) == wanted
    assert re.search(r"Driver Version: 580\.95\.05 +CUDA Version: 13\.0 ", answer([], gpus)[1])
    assert answer(["-L"], []) == (6, "No devices were found")


@pytest.mark.parametrize("namespace", [True, False])
def test_a_pods_paths_lead_to_its_own_directories(tmp_path, namespace):
    share = tmp_path / "share"
    files = lay_out(tmp_path / "state", "p" * 8, "vol", [], shares=(share,), namespace=namespace)
    try:
        assert files.to_host("/root/a") == files.home / "a"
        assert files.to_host("/mnt/a") == tmp_path / "state" / "volumes" / "vol" / "a"
        assert files.to_host("/usr/bin") == Path("/usr/bin")
        assert files.to_host("/rooted") == Path("/rooted")
        (files.home / "link").symlink_to("/root/target/../x")
        assert files.resolve("/root/link/y", follow_last=True) == files.home / "x" / "y"
        assert files.resolve("/root/link", follow_last=False) == files.home / "link"
        assert files.resolve("/root/../../mnt/.//z", follow_last=True) == files.volume / "z"
        (files.home / "loop").symlink_to("/root/loop")
        with pytest.raises(OSError, match="symbolic links"):
            files.resolve("/root/loop", follow_last=True)
        if namespace and share.is_relative_to("/tmp"):
            assert files.to_host(str(share / "x")) == share / "x"
    finally:
        files.remove()
    assert not files.home.exists() and not files.tmp.exists()


def test_time_and_money_end_pods(tmp_path):
    clock = {"now": 1000.0}

    async def run():
        file = StateFile(tmp_path / "state")
        pods = Pods(file, DEFAULT_FLEET, Settings("plain"), Faults(), now=lambda: clock["now"])
        account = file.state.account_of("key")
        body = {"user_public_key": ["ssh-ed25519 AAAA"], "pod_name": "p", "termination_hours": 2}
        pod = pods.rent(account, DEFAULT_FLEET[0], 8, body)
        await pods.booted(pod)
        assert pod.removal_at_s == 1000.0 + 2 * 3600
        clock["now"] += 2 * 3600 - 1
        await Patrol(pods).look()
        assert not pod.removed
        clock["now"] += 1
        await Patrol(pods).look()
        assert pod.close_reason == "scheduled termination"
        assert pods.market.balance(account) == pytest.approx(1000 - 2 * 8 * DEFAULT_FLEET[0].price_per_gpu)

        dear = pods.rent(account, DEFAULT_FLEET[0], 8, body | {"termination_hours": None})
        await pods.booted(dear)
        clock["now"] += 100 * 3600
        await Patrol(pods).look()
        assert dear.close_reason == "insufficient balance"
        with pytest.raises(BalanceTooLow, match=r"requires at least \$4.98, your balance is \$-"):
            pods.rent(account, DEFAULT_FLEET[0], 8, body)
        await pods.stop()
        file.close()
        return pod.id

    pod_id = asyncio.run(run())
    loaded = StateFile(tmp_path / "state")
    assert loaded.state.pods[pod_id].close_reason == "scheduled termination"
    assert loaded.state.pods[pod_id].events[-1].reason == "scheduled termination"


def test_a_machine_removed_from_the_inventory_ends_its_pods(tmp_path):
    async def run():
        file = StateFile(tmp_path / "state")
        file.state.account_of("key")
        account = next(iter(file.state.accounts))
        file.state.pods["x"] = replace(pod_row(id="x", account=account, status="RUNNING"), executor_id="gone")
        pods = Pods(file, DEFAULT_FLEET, Settings("plain"), Faults())
        await pods.start()
        assert file.state.pods["x"].close_reason == "its machine is no longer in the inventory"
        await pods.stop()

    asyncio.run(run())


def test_planned_capacity_comes_and_goes_at_its_time_and_leaves_rented_gpus_alone(tmp_path):
    clock = {"now": 1000.0}
    plan = (
        {"after_s": 60, "offline": True},
        {"after_s": 120, "offline": False, "free": 8},
        {"after_s": 180, "free": 3, "price_per_gpu": 9.0},
    )
    machine = replace(DEFAULT_FLEET[0], changes=plan)

    async def run():
        file = StateFile(tmp_path / "state")
        account = file.state.account_of("key")
        file.state.pods["x"] = pod_row(id="x", account=account.id, status="RUNNING")
        pods = Pods(file, [machine], Settings("plain"), Faults(), now=lambda: clock["now"])
        patrol, seen = Patrol(pods), []
        for now in (1059.9, 1060.0, 1119.9, 1120.0, 1180.0):
            clock["now"] = now
            await patrol.look()
            seen.append(pods.market.free_gpus()[machine.id])
        assert seen == [6, 0, 0, 6, 3], "two of the eight are rented here, so eight cannot be free"
        assert pods.machines[machine.id].price_per_gpu == 9.0 and file.state.pods["x"].status == "RUNNING"
        file.close()

    asyncio.run(run())
