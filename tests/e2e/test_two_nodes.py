"""A cluster of two nodes with a real Ray over both: one is killed on the way, and the run ends as if none had been."""

import json
import subprocess
from typing import Any

import httpx
import pytest

from tests.e2e.world import ANY_DISK, KEY, ROOT, World, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("world-a")]
Started = list[subprocess.Popen[bytes]]
SFT = {
    "data": str(ROOT / "deployments" / "recipes" / "data" / "demo_sft.jsonl"),
    "num_rollout": 48,
    "save_interval": 3,
    "extra_args": {"rollout-batch-size": 4, "lr": 0.003},
}


def cluster(world: World, **changes: Any) -> dict[str, Any]:
    """The recipe's pod section: two nodes of eight GPUs each."""
    return {
        "gpu": "B200",
        "gpu_count": 8,
        "nodes": 2,
        "shared_dir": str(world.folder / "state" / "shared"),
        "max_price_per_gpu_hour": 9.0,
        "budget_usd": 400.0,
        "dead_man_minutes": 5,
        "preflight": ANY_DISK,
        **changes,
    }


def members(world: World, run_id: str) -> list[tuple[str, int]]:
    """Name and node index of the run's pods on the emulator."""
    return sorted((row["pod_name"], row["cluster_node_index"]) for row in world.pod_rows(run_id))


def ledger(world: World, run_id: str) -> list[dict[str, Any]]:
    """The run's pods as it wrote them down."""
    found = httpx.post(f"{world.api}/artifacts/latest/filter", json={"limit": 200}, timeout=30).json()
    return list(json.loads(next(row["data"] for row in found if row["key"] == f"{run_id}-pods")))


def lose_node_1(world: World, run_id: str, how: str) -> None:
    (row,) = [row for row in world.pod_rows(run_id) if row["cluster_node_index"] == 1]
    body = {"how": how, "reason": "spot reclaim: outbid"}
    httpx.post(f"{world.control}/pods/{row['id']}/kill", json=body, timeout=60).raise_for_status()


def two_of(name: str) -> list[tuple[str, int]]:
    return [(name, 0), (name, 1)]


@pytest.mark.timeout(600)
def test_a_run_on_two_nodes_outlives_losses_of_one_and_ends_with_the_weights_of_a_run_on_one(
    world: World, started: Started
) -> None:
    done = world.cli("run", str(world.recipe("one-node", sft=SFT)), "--run-id", "one-node")
    assert done.returncode == 0, done.stderr

    pod = cluster(world, unreachable_after_s=10)
    recipe = world.recipe("two", sft=SFT, pod=pod, env={"TINYSLIME_STEP_DELAY_S": "0.5"}, max_attempts=5)
    process = world.start("run", str(recipe), "--run-id", "two")
    started.append(process)
    eventually(lambda: world.sealed("two"), "attempt 1 to seal something")
    assert members(world, "two") == two_of("ts-two-sft-a1")
    assert "2 nodes of 8x NVIDIA B200" in world.cli("ps").stdout
    rows = [
        httpx.get(f"{world.lium}/pods/{row['id']}", headers=KEY, timeout=30).json() for row in world.pod_rows("two")
    ]
    assert [bool(row["removal_scheduled_at"]) for row in rows] == [True, True], "each ends by itself if we die"

    lose_node_1(world, "two", "vanish")  # its row is gone
    eventually(lambda: members(world, "two") == two_of("ts-two-sft-a2"), "another cluster, and nothing of the first")
    executors = {row["executor_id"] for row in world.pod_rows("two", removed=True)}
    assert len(executors) == 4, "the hosts of a lost cluster rest, all of them"
    assert world.cli("hosts", "--forget", "all").returncode == 0
    before = world.sealed("two")[-1]
    eventually(lambda: world.sealed("two")[-1] > before, "attempt 2 to seal something")

    lose_node_1(world, "two", "silent")  # its row goes on saying RUNNING, and the trainer dies of it
    eventually(lambda: members(world, "two") == two_of("ts-two-sft-a3"), "a third cluster")
    assert process.wait(timeout=240) == 0

    assert world.weights("two") == world.weights("one-node")
    (stage,) = world.status("two")["stages"]
    assert stage["attempts"] == 3 and len(world.flow_runs("run:two", "stage:sft")) == 3, "one flow run for an attempt"
    assert "holding 2 nodes" in world.cli("logs", "two", "--stage", "sft", "--attempt", "3").stdout
    first, second, third = ledger(world, "two")
    assert "node 1" in first["why"] and "spot reclaim: outbid" in first["why"] and third["why"] == ""
    assert "node 1" in second["why"] and "SSH" in second["why"]
    assert all(row["cost_usd"] > 0 and len(row["nodes"]) == 2 for row in (first, second, third))
    assert world.pods("two") == [] and world.left_running("two") == []
    assert world.cli("hosts", "--forget", "all").returncode == 0
