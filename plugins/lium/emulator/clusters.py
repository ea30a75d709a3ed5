"""Clusters: whole machines on one fast network, rented together, all or none.

A machine belongs to the `fabric` that its inventory names. The pods of a cluster are pods like any other (they boot,
break and are billed one by one) that share name and `cluster_id`.
"""

import uuid
from collections.abc import Mapping
from typing import Any

from plugins.lium.emulator.inventory import NothingFits
from plugins.lium.emulator.machine import Machine, Row
from plugins.lium.emulator.market import NotFound, Unprocessable
from plugins.lium.emulator.pods import Pods
from plugins.lium.emulator.state import Account, Pod, iso
from plugins.lium.emulator.templates import CLUSTER_IMAGE, template_of

FEWEST = 2


def offers(pods: Pods) -> list[Row]:
    """Fabrics that have a machine whose GPUs are all free, each with those machines (lium.md 4.8)."""
    fabrics: dict[str, list[Machine]] = {}
    for machine in pods.machines.values():
        if machine.fabric is not None:
            fabrics.setdefault(machine.fabric, []).append(machine)
    free, now = pods.market.free_gpus(), str(iso(pods.now()))
    found = []
    for fabric, machines in fabrics.items():
        nodes = [machine.row(free[machine.id], now) for machine in machines if _whole(machine, free)]
        if nodes:
            found.append(
                {
                    "fabric_id": fabric,
                    "fabric_type": machines[0].fabric_type,
                    "link_rate": machines[0].link_rate,
                    "fabric_measured": True,
                    "node_count": len(machines),
                    "nodes": nodes,
                }
            )
    return found


def rent(pods: Pods, account: Account, body: Mapping[str, Any]) -> list[Pod]:
    """Rent whole machines of one fabric as the nodes of a cluster, in the order given, and begin to boot them.

    Raises Unprocessable, NotFound, NothingFits, BalanceTooLow; then nothing is rented.
    """
    machines = _asked(pods, body)
    _check_image(pods, account, body)
    _check_free(pods, machines)
    pods.market.check_balance(account, sum(machine.price_per_gpu * machine.gpu_count for machine in machines))
    cluster_id = str(uuid.uuid4())
    single = {name: body.get(name) for name in ("pod_name", "template_id", "user_public_key")}
    rented = []
    for index, machine in enumerate(machines):
        pod = pods.market.rent(account, machine, machine.gpu_count, single)
        pod.cluster_id, pod.cluster_node_index = cluster_id, index
        rented.append(pod)
    for pod in rented:
        pods.boot_later(pod)
    pods.file.save()
    return rented


async def remove(pods: Pods, account: Account, cluster_id: str) -> list[Row]:
    """End every pod of a cluster; a row for each. Raises NotFound when none is left."""
    members = pods.state.cluster(account.id, cluster_id)
    if not members:
        raise NotFound(f"Cluster {cluster_id} not found")
    rows = []
    for pod in members:
        await pods.remove(pod, "unrent")
        row = {"pod_id": pod.id, "pod_name": pod.name, "cluster_node_index": pod.cluster_node_index}
        rows.append(row | {"success": True, "message": "deleted"})
    return rows


def _asked(pods: Pods, body: Mapping[str, Any]) -> list[Machine]:
    ids = body.get("executor_uuids")
    if not isinstance(ids, list) or len(ids) < FEWEST or len(set(map(str, ids))) != len(ids):
        raise Unprocessable(f"executor_uuids: a cluster is of {FEWEST} or more different nodes, not {ids!r}")
    if not body.get("user_public_key"):
        raise Unprocessable("user_public_key: at least one SSH public key is needed")
    machines = [pods.market.machine(str(executor_id)) for executor_id in ids]
    fabrics = sorted({str(machine.fabric) for machine in machines})
    if machines[0].fabric is None or len(fabrics) > 1:
        raise Unprocessable(f"the nodes of a cluster must be on one fabric; these are on {', '.join(fabrics)}")
    return machines


def _check_image(pods: Pods, account: Account, body: Mapping[str, Any]) -> None:
    template = template_of(pods.state, str(body.get("template_id")), account.id)
    if template is None:
        raise NotFound(f"Template {body.get('template_id')} not found")
    if not str(template["docker_image"]).startswith(CLUSTER_IMAGE):
        raise Unprocessable(f"a cluster needs a template of image {CLUSTER_IMAGE}, not {template['docker_image']}")


def _check_free(pods: Pods, machines: list[Machine]) -> None:
    free = pods.market.free_gpus()
    taken = [machine.id for machine in machines if not _whole(machine, free)]
    if pods.faults.take("no_capacity"):
        taken = [machine.id for machine in machines]
    if taken:
        raise NothingFits(f"nodes {', '.join(taken)} are not free now; a cluster takes whole nodes, all or none")


def _whole(machine: Machine, free: Mapping[str, int]) -> bool:
    return free[machine.id] == machine.gpu_count
