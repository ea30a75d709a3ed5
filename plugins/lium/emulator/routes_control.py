"""The control interface, which the real service does not have: how a test makes things happen to its pods.

POST /_emulator/faults                  see `faults.py`             GET: what is left
POST /_emulator/pods/{id}/kill          {"how": "vanish" | "broken" | "silent", "reason": "..."}
POST /_emulator/pods/{id}/network       {"up": false, "how": "refuse" | "hang"}, and {"up": true}
POST /_emulator/pods/{id}/gpu           {"utilization": 0..100, "memory_used_mib": n}
POST /_emulator/machines/{id}           {"free": n, "offline": true, "price_per_gpu": 1.5}
GET  /_emulator/log  /_emulator/info    what was called; mode, pods, free GPUs
"""

from typing import Any

from fastapi import APIRouter, Request

from plugins.lium.emulator.caller import Body, Emulated
from plugins.lium.emulator.market import NotFound, Unprocessable
from plugins.lium.emulator.pods import Pods
from plugins.lium.emulator.state import Pod, iso

router = APIRouter()
Row = dict[str, Any]
PERCENT = 100


@router.post("/faults")
async def order_faults(pods: Emulated, body: Body) -> dict[str, int]:
    """Order faults; answers all that are left."""
    return pods.faults.order(body)


@router.get("/faults")
async def faults_left(pods: Emulated) -> dict[str, int]:
    """The faults still to happen."""
    return pods.faults.order({})


@router.get("/log")
async def journal(request: Request) -> list[Row]:
    """The last calls of the API, oldest first."""
    rows: list[Row] = request.app.state.journal.rows()
    return rows


@router.get("/info")
async def info(pods: Emulated) -> Row:
    """How pods are kept apart, how many there are, what is free."""
    return {"mode": pods.settings.mode, "pods": len(pods.state.present()), "free_gpus": pods.market.free_gpus()}


@router.get("/pods")
async def all_pods(pods: Emulated) -> list[Row]:
    """What a test may look at as often as it likes, without taking listings from the client it watches."""
    return [
        {
            "id": pod.id,
            "pod_name": pod.name,
            "status": pod.status,
            "api_key_id": pods.state.accounts[pod.account].api_key_id,
            "executor_id": pod.executor_id,
            "removed": pod.removed,
            "close_reason": pod.close_reason,
            "created_at": iso(pod.created_at_s),
            "removed_at": iso(pod.removed_at_s),
            "network": pod.network,
            "cluster_node_index": pod.cluster_node_index,
        }
        for pod in pods.state.pods.values()
    ]


@router.post("/pods/{pod_id}/kill")
async def kill(pod_id: str, pods: Emulated, body: Body) -> Row:
    """End a pod as a lost host does."""
    pod = _pod(pods, pod_id)
    await pods.reclaim(pod, str(body.get("reason", "spot reclaim")), str(body.get("how", "vanish")))
    return {"success": True, "status": pod.status}


@router.post("/pods/{pod_id}/network")
async def network(pod_id: str, pods: Emulated, body: Body) -> Row:
    """Take a pod's network away or give it back."""
    pod, up = _pod(pods, pod_id), body.get("up")
    if not isinstance(up, bool):
        raise Unprocessable(f"up is {up!r}, not true or false")
    await pods.set_network(pod, "up" if up else str(body.get("how", "refuse")))
    return {"success": True, "network": pod.network}


@router.post("/pods/{pod_id}/gpu")
async def gpu(pod_id: str, pods: Emulated, body: Body) -> Row:
    """Set what `nvidia-smi` says in the pod."""
    pod = _pod(pods, pod_id)
    total = pods.machines[pod.executor_id].vram_mib
    pods.set_gpu(pod, _whole(body, "utilization", PERCENT), _whole(body, "memory_used_mib", total))
    return {"success": True, "utilization": pod.gpu_utilization, "memory_used_mib": pod.gpu_memory_used_mib}


@router.post("/machines/{executor_id}")
async def machine(executor_id: str, pods: Emulated, body: Body) -> Row:
    """Change what a machine offers."""
    pods.market.order(executor_id, body)
    return {"success": True, "free": pods.market.free_gpus()[executor_id]}


def _pod(pods: Pods, pod_id: str) -> Pod:
    pod = pods.state.pods.get(pod_id)
    if pod is None or pod.removed:
        raise NotFound(f"Pod {pod_id} not found")
    return pod


def _whole(body: Row, name: str, most: int) -> int | None:
    value = body.get(name)
    if value is not None and (type(value) is not int or not 0 <= value <= most):
        raise Unprocessable(f"{name} is {value!r}, not a whole number from 0 to {most}")
    return value
