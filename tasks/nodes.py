"""More than one node: what a recipe of several must have, how nodes are called, and the stage's wait for all of them.

Prefect sees one stage, which runs on node 0 with Ray's head; Ray carries its trainer to the others (`cluster_link.py`
starts it there). All nodes write parts of one checkpoint, so the stage's folders lie on a file system that they share.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.recipe import Recipe
from plugins.errors import UserError
from plugins.lium.clusters import IMAGE
from plugins.lium.pods import PodRow
from plugins.rayjobs.jobs import RayJobs
from plugins.rayjobs.settings import LOOPBACK
from plugins.slime.nodes import interface_of, multi_node_env
from tasks.lium_account import rents_locally

if TYPE_CHECKING:
    from tasks.stage_attempt import Stage

RAY_STATE = "~/trainstack/ray"
NODES, MASTER = "TRAINSTACK_NODES", "TRAINSTACK_MASTER_ADDR"
NODES_READY_S = 180.0


def check_nodes(recipe: Recipe) -> None:
    """Raise UserError for a recipe of several nodes that could not be rented, or whose checkpoints would be torn."""
    pod = recipe.pod
    if pod.nodes == 1:
        return
    where = f"Recipe '{recipe.name}': pod"
    if not pod.shared_dir:
        raise UserError(
            f"{where}.shared_dir: missing; with pod.nodes {pod.nodes} every rank writes its own part of a checkpoint, "
            "and on disks of their own no node would have a whole one. Name a folder that all nodes see under the same "
            "path (a shared file system), or set pod.nodes to 1."
        )
    if not Path(pod.shared_dir).is_absolute():
        raise UserError(f"{where}.shared_dir: {pod.shared_dir!r} must be an absolute path, the same on every node.")
    if pod.volume:
        raise UserError(
            f"{where}.volume: a Lium volume serves one pod at a time, and a cluster is rented without one. Leave it "
            "out; shared_dir is what the nodes share."
        )
    if pod.image and not pod.image.startswith(IMAGE):
        raise UserError(
            f"{where}.image: Lium rents clusters with its own image {IMAGE} only, not {pod.image!r}. Leave image out "
            "(the newest is taken), or name a version of that one."
        )
    if not pod.home and not rents_locally(recipe):
        raise UserError(
            f"{where}.home: missing; the image {IMAGE} has neither trainstack nor slime. Put both on the file system "
            "that the nodes share, name trainstack's folder here, and slime's in trainer.slime_dir, megatron_dir and "
            "python."
        )
    if pod.keep_warm_minutes:
        raise UserError(f"{where}.keep_warm_minutes: a cluster is not held warm; set it to 0.")


def node_name(index: int) -> str:
    """What Ray calls a node of a cluster."""
    return f"node-{index}"


def node_env(pod: PodRow) -> dict[str, str]:
    """What the services of node 0 must know of the cluster; nothing on a single pod."""
    if not pod.members:
        return {}
    return {NODES: str(len(pod.nodes)), MASTER: pod.overlay_ip or LOOPBACK, "TRAINSTACK_RAY_STATE": RAY_STATE}


def stage_root(recipe: Recipe) -> Path:
    """Folder of the stage's files: on the pod's own disk, or what all nodes of a cluster share."""
    pod = recipe.pod
    return Path(pod.shared_dir) if pod.nodes > 1 and pod.shared_dir else Path.home() / "trainstack"


def wait_for_nodes(stage: "Stage", jobs: RayJobs) -> None:
    """Wait until Ray has every node of the recipe; the trainer would wait for a missing one for ever.

    Raises ControlPlaneError that names the missing ones, StageEnded.
    """
    wanted = stage.order.recipe.pod.nodes
    if wanted == 1:
        return
    jobs.wait_nodes([node_name(index) for index in range(wanted)], NODES_READY_S, stage.check_ended)
    stage.log(f"Ray has all {wanted} nodes")


def own_address(recipe: Recipe, env: Mapping[str, str] = os.environ) -> str:
    """Where what node 0 serves is reached, by the other nodes too: slime may place its actors on any of them."""
    return LOOPBACK if recipe.pod.nodes == 1 else env.get(MASTER, LOOPBACK)


def trainer_env(recipe: Recipe, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that a trainer on several nodes needs, worked out on node 0; nothing on a single pod.

    Raises UserError when no interface of this node carries the address that the cluster gave it.
    """
    if recipe.pod.nodes == 1:
        return {}
    address = own_address(recipe, env)
    interface = interface_of(address)
    if interface is None:
        raise UserError(
            f"No network interface of node 0 has {address}, its address in the cluster: is the pod's image "
            f"{IMAGE}, which raises the network between the nodes?"
        )
    return multi_node_env(address, interface)
