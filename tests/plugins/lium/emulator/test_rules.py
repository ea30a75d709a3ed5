"""The rules that need no process: choosing a machine, prices, faults, paths, the fake nvidia-smi, the state file."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from plugins.errors import UserError
from plugins.lium.emulator import billing, inventory
from plugins.lium.emulator.faults import Faults
from plugins.lium.emulator.inventory import DEFAULT_FLEET, NothingFits, choose, same_gpu
from plugins.lium.emulator.market import BalanceTooLow
from plugins.lium.emulator.nvidia_smi import answer
from plugins.lium.emulator.pod_files import lay_out
from plugins.lium.emulator.pods import Pods, Settings
from plugins.lium.emulator.state import Pod, StateFile, iso, parse_iso

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
    for wrong in ({"999": 1}, {"boot_fail": -1}, {"boot_fail": "2"}):
        with pytest.raises(UserError):
            faults.order(wrong)


def test_nvidia_smi_formats():
    gpus = DEFAULT_FLEET[0].nvidia_smi("p", [3])
    assert answer(["--query-gpu=name,memory.total", "--format=csv"], gpus)[1] == (
        "name, memory.total [MiB]\nNVIDIA H200, 143771 MiB"
    )
    assert answer(["--query-gpu=index,memory.used", "--format=csv,noheader,nounits"], gpus) == (0, "0, 4")
    assert answer(["--query-gpu=colour", "--format=csv"], gpus)[0] == 2


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
        await pods.remove_due()
        assert not pod.removed
        clock["now"] += 1
        await pods.remove_due()
        assert pod.close_reason == "scheduled termination"
        assert pods.market.balance(account) == pytest.approx(1000 - 2 * 8 * DEFAULT_FLEET[0].price_per_gpu)

        dear = pods.rent(account, DEFAULT_FLEET[0], 8, body | {"termination_hours": None})
        await pods.booted(dear)
        clock["now"] += 100 * 3600
        await pods.remove_due()
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
