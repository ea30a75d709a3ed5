"""Clusters of whole nodes, through the unmodified SDK and CLI: offers, all or none, lost answers, a lost node."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from lium.sdk.exceptions import (
    ClusterNotListedError,
    LiumError,
    LiumInsufficientBalanceError,
    LiumNotFoundError,
    PodStartError,
)

pytestmark = pytest.mark.filterwarnings("ignore:Pinning:UserWarning")

LIUM = str(Path(sys.executable).with_name("lium"))


def node(price, fabric="fab-1", **changes):
    made = {"gpu": "NVIDIA B200", "price_per_gpu": price, "gpu_count": 2, "vram_mib": 183359, "fabric": fabric}
    return made | changes


MACHINES = [
    node(3.0),
    node(2.0),
    node(2.5),
    node(4.0, "fab-2", fabric_type="roce"),
    {"gpu": "NVIDIA L40S", "price_per_gpu": 0.5, "gpu_count": 2, "vram_mib": 46068},
]


@pytest.fixture(scope="module")
def cluster_emulator(start_for_module):
    return start_for_module("--listings-per-minute", "100000", machines=MACHINES)


@pytest.fixture
def sdk(cluster_emulator, connect):
    client = connect(cluster_emulator)
    yield client
    for pod in client.lium.ps():
        client.lium.down(pod)


def fabric(sdk, name="fab-1"):
    return sdk.lium.cluster_offer(name)


def up(sdk, count=2, name="c", **wanted):
    return sdk.lium.up_cluster([one.id for one in fabric(sdk).cheapest(count)], name=name, **wanted)


def ready(sdk, cluster):
    return sdk.lium.wait_cluster_ready(cluster, timeout=30, poll_interval=0.05)


def test_an_offer_is_a_fabric_with_its_free_nodes(sdk):
    first, second = sdk.lium.clusters()
    assert (first.fabric_id, first.fabric_type, first.node_count, first.free_count) == ("fab-1", "infiniband", 3, 3)
    assert (first.gpus_per_node, first.price_per_node_hour, first.fabric_measured) == (2, 4.0, True)
    assert (second.fabric_id, second.fabric_type, second.node_count) == ("fab-2", "roce", 1)


def test_a_cluster_is_rented_used_and_removed(sdk):
    cluster = ready(sdk, up(sdk))
    assert [pod.name for pod in cluster.pods] == ["c", "c"]
    assert [pod.cluster_node_index for pod in cluster.pods] == [0, 1]
    assert cluster.price_per_hour == pytest.approx(9.0) and cluster.master_addr == "127.0.0.1"
    assert [sdk.out(pod, "nvidia-smi -L").count("B200") for pod in cluster.pods] == [2, 2]
    assert fabric(sdk).free_count == 1, "whole nodes are taken"
    removed = sdk.lium.rm_cluster(cluster)
    assert [(row["node_rank"], row["success"]) for row in removed] == [(0, True), (1, True)]
    assert sdk.lium.ps() == [] and fabric(sdk).free_count == 3
    with pytest.raises(LiumNotFoundError):
        sdk.lium.rm_cluster(cluster)


def test_a_node_that_is_not_wholly_free_is_not_offered_and_nothing_is_rented_with_it(sdk):
    cheap = [one.id for one in fabric(sdk).cheapest(2)]
    sdk.lium.up(executor_id=cheap[0], name="single", gpu_count=1)
    assert fabric(sdk).free_count == 2
    with pytest.raises(LiumError, match="not free now"):
        sdk.lium.up_cluster(cheap, name="c")
    assert [pod.name for pod in sdk.lium.ps()] == ["single"]


def test_what_is_no_cluster_is_refused(sdk):
    first, other = fabric(sdk).nodes[0].id, fabric(sdk, "fab-2").nodes[0].id
    plain = sdk.lium.ls(gpu_type="L40S")[0].id
    with pytest.raises(LiumError, match="must be on one fabric"):
        sdk.lium.up_cluster([first, other], name="c")
    with pytest.raises(LiumError, match="must be on one fabric"):
        sdk.lium.up_cluster([plain, first], name="c")
    default = next(row.id for row in sdk.lium.templates() if "pytorch" in row.docker_image)
    with pytest.raises(LiumError, match=r"daturaai/lium-cluster, not daturaai/pytorch"):
        up(sdk, template_id=default)
    assert sdk.lium.ps() == []


def test_an_account_that_cannot_pay_all_nodes_gets_none(cluster_emulator, connect):
    poor = connect(cluster_emulator, "poor-account")
    with pytest.raises(LiumInsufficientBalanceError):
        up(poor)
    assert poor.lium.ps() == []


def test_a_lost_answer_rents_one_cluster(sdk, cluster_emulator):
    cluster_emulator.faults(lose_rent_answer=1)
    cluster = up(sdk)
    assert sorted(pod.id for pod in sdk.lium.ps()) == sorted(pod.id for pod in cluster.pods)
    assert len(sdk.lium.my_clusters()) == 1


def test_a_cluster_that_is_listed_late_is_confirmed_and_said_to_be_rented(sdk, cluster_emulator):
    cluster_emulator.order({"empty:GET /api/pods": 4})
    with pytest.raises(ClusterNotListedError) as raised:
        up(sdk)
    assert raised.value.confirmed and len(raised.value.pod_ids) == 2
    for pod_id in raised.value.pod_ids:
        assert sdk.call("DELETE", f"/pods/{pod_id}").status_code == 200


def test_a_repeated_rent_with_the_same_key_answers_the_same_cluster(sdk):
    body = {
        "pod_name": "c",
        "executor_uuids": [one.id for one in fabric(sdk).cheapest(2)],
        "user_public_key": ["ssh A"],
    }
    body["template_id"] = sdk.lium.cluster_template().id
    headers = {"Idempotency-Key": "k-cluster"}
    first, again = (sdk.call("POST", "/executors/cluster/rent", json=body, headers=headers) for _ in range(2))
    assert first.json() == again.json() and again.headers["Idempotent-Replayed"] == "true"
    assert len(sdk.lium.ps()) == 2


def test_a_member_that_does_not_boot_fails_the_cluster_and_leaves_the_other(sdk, cluster_emulator, wait_until):
    cluster_emulator.faults(boot_fail=1)
    cluster = up(sdk)
    with pytest.raises(PodStartError, match="CREATION_FAILED"):
        ready(sdk, cluster)
    ends = ["CREATION_FAILED", "RUNNING"]
    wait_until(lambda: sorted(pod.status for pod in sdk.lium.ps()) == ends, "the other node runs, and costs money")


def test_one_node_is_lost_and_the_cluster_removes_the_rest(sdk, cluster_emulator):
    cluster = ready(sdk, up(sdk))
    cluster_emulator.kill_pod(cluster.pods[1].id, "vanish")
    assert [pod.cluster_node_index for pod in sdk.lium.ps()] == [0]
    with pytest.raises(PodStartError, match="vanished"):
        ready(sdk, cluster)
    assert [row["node_rank"] for row in sdk.lium.rm_cluster(cluster)] == [0]
    assert sdk.lium.ps() == []


def test_a_cluster_outlives_a_restart_of_the_emulator(start_emulator, connect):
    emulator = start_emulator("--listings-per-minute", "100000", machines=MACHINES)
    sdk = connect(emulator)
    cluster = ready(sdk, up(sdk))
    emulator.stop()
    emulator.start()
    again = connect(emulator, sdk.key)
    (found,) = again.lium.my_clusters()
    assert found.id == cluster.id and ready(again, found).size == 2
    again.lium.rm_cluster(found)
    assert again.lium.ps() == []


def test_a_session_of_the_command_line(cluster_emulator, ssh_key, tmp_path):
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "LIUM_BASE_URL": cluster_emulator.url,
        "LIUM_API_KEY": f"cli-{tmp_path}",
        "LIUM_SSH_KEY_PATH": str(ssh_key),
        "LIUM_SSH_PERSIST": "0",
        "COLUMNS": "160",
    }

    def lium(*argv):
        done = subprocess.run(
            [LIUM, "clusters", *argv], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout

    assert "fab-1" in lium("list")
    rented = json.loads(lium("up", "fab-1", "-N", "2", "-n", "cli", "--ttl", "2h", "--no-wait", "-y", "--json"))
    assert rented["removal_scheduled_at"] and "cli" in lium("ps")
    assert "127.0.0.1 slots=2" in lium("show", "cli", "--hostfile")
    rows = requests.get(f"{cluster_emulator.url}/pods", headers={"X-API-KEY": env["LIUM_API_KEY"]}, timeout=30).json()
    assert [bool(row["removal_scheduled_at"]) for row in rows] == [True, True]
    assert json.loads(lium("rm", "cli", "-y", "--json"))["ok"]
    assert "No clusters" in lium("ps")
