"""What a recipe of several nodes must have, and what the stage on node 0 is told of the others."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from blocks.recipe import LiumSection, Recipe
from plugins.errors import UserError
from plugins.lium.pods import PodRow
from tasks.nodes import check_nodes, node_env, own_address, stage_root, trainer_env, wait_for_nodes
from tasks.pod_link import boot_document, ray_argv


def recipe(kind: str = "tinyslime", **pod: object) -> Recipe:
    section = {"gpu": "H200", "gpu_count": 8, **pod}
    values = {
        "name": "small",
        "lium": {"base_url": "emulator"},
        "pod": section,
        "trainer": {"kind": kind},
        "sft": {"data": "/d", "num_rollout": 1},
    }
    return Recipe.model_validate(values)


SECOND = PodRow("b", "ts-r-sft-a1", "RUNNING", overlay_ip="10.42.0.2")
ROW = PodRow("a", "ts-r-sft-a1", "RUNNING", overlay_ip="10.42.0.1", members=(SECOND,))


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        ({}, r"pod\.shared_dir: missing.*every rank writes its own part"),
        ({"shared_dir": "data"}, "must be an absolute path"),
        ({"shared_dir": "/data", "volume": "v"}, "one pod at a time"),
        ({"shared_dir": "/data", "image": "me/slime:1"}, "daturaai/lium-cluster only"),
        ({"shared_dir": "/data", "keep_warm_minutes": 5}, "not held warm"),
    ],
)
def test_what_several_nodes_cannot_do_is_refused_before_renting(pod: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=f"(?s){words}"):
        check_nodes(recipe(nodes=2, **pod))
    check_nodes(recipe(**pod))


def test_a_cluster_that_is_really_rented_needs_what_its_image_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIUM_BASE_URL", raising=False)
    real = {"lium": LiumSection()}
    with pytest.raises(UserError, match=r"pod\.home: missing; the image daturaai/lium-cluster has neither"):
        check_nodes(recipe(nodes=2, shared_dir="/data").model_copy(update=real))
    check_nodes(recipe(nodes=2, shared_dir="/data", home="/data/trainstack").model_copy(update=real))


def test_the_files_of_a_stage_on_several_nodes_lie_where_all_see_them() -> None:
    check_nodes(recipe(nodes=2, shared_dir="/data"))
    assert stage_root(recipe(nodes=2, shared_dir="/data")) == Path("/data")
    assert stage_root(recipe()) == Path.home() / "trainstack"


def test_ray_of_a_cluster_is_reached_over_the_overlay_and_its_nodes_have_names() -> None:
    head = " ".join(ray_argv(recipe(nodes=2), "head", ROW, ROW))
    worker = " ".join(ray_argv(recipe(nodes=2), "worker", ROW, ROW.members[0]))
    assert "plugins.rayjobs.head" in head and "--node-name node-0 --node-ip 10.42.0.1" in head
    assert "plugins.rayjobs.worker" in worker and "--node-name node-1 --node-ip 10.42.0.2" in worker
    assert node_env(ROW)["TRAINSTACK_MASTER_ADDR"] == "10.42.0.1" and node_env(ROW.members[0]) == {}


def test_a_single_pod_s_ray_stays_on_loopback() -> None:
    words = ray_argv(recipe(), "head", PodRow("a", "n", "RUNNING"), PodRow("a", "n", "RUNNING"))
    assert "--node-ip" not in words and "--node-name" not in words


@pytest.mark.parametrize(("gpus", "asked", "given"), [(8, 2, 12), (1, 2, 5), (1, 64, 64)])
def test_ray_has_the_cpus_that_slime_s_bundles_need(gpus: int, asked: int, given: int) -> None:
    pod = PodRow("a", "n", "RUNNING")
    words = ray_argv(recipe("slime", gpu_count=gpus, ray_cpus=asked), "head", pod, pod)
    assert words[words.index("--num-cpus") + 1] == str(given)


def test_the_services_of_node_0_know_of_the_cluster() -> None:
    env = boot_document(recipe(nodes=2, shared_dir="/data"), "r", ROW, {})["env"]
    assert (env["TRAINSTACK_NODES"], env["TRAINSTACK_RAY_STATE"]) == ("2", "~/trainstack/ray")
    assert "TRAINSTACK_NODES" not in boot_document(recipe(), "r", PodRow("a", "n", "RUNNING"), {})["env"]


def test_the_trainer_is_told_the_interface_that_carries_the_address() -> None:
    many = recipe(nodes=2, shared_dir="/data")
    env = trainer_env(many, {"TRAINSTACK_MASTER_ADDR": "127.0.0.1"})
    assert env["MASTER_ADDR"] == "127.0.0.1" and env["NCCL_SOCKET_IFNAME"] == env["GLOO_SOCKET_IFNAME"] == "lo"
    assert trainer_env(recipe(), {}) == {}
    with pytest.raises(UserError, match=r"No network interface of node 0 has 192\.0\.2\.1"):
        trainer_env(many, {"TRAINSTACK_MASTER_ADDR": "192.0.2.1"})


def test_what_node_0_serves_is_reached_by_the_others_too() -> None:
    env = {"TRAINSTACK_MASTER_ADDR": "10.42.0.1"}
    assert own_address(recipe(nodes=2, shared_dir="/data"), env) == "10.42.0.1"
    assert own_address(recipe(), env) == "127.0.0.1"


def test_the_stage_waits_for_every_node_by_name() -> None:
    asked: list[object] = []
    jobs = SimpleNamespace(wait_nodes=lambda names, *rest: asked.append(list(names)))
    said: list[str] = []

    def stage(found: Recipe) -> SimpleNamespace:
        return SimpleNamespace(order=SimpleNamespace(recipe=found), check_ended=lambda: None, log=said.append)

    wait_for_nodes(stage(recipe()), jobs)  # type: ignore[arg-type]
    wait_for_nodes(stage(recipe(nodes=3, shared_dir="/data")), jobs)  # type: ignore[arg-type]
    assert asked == [["node-0", "node-1", "node-2"]] and said == ["Ray has all 3 nodes"]
