"""The cluster endpoints. There is none to look at a cluster: a client groups the rows of `/pods` by `cluster_id`."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from plugins.lium.emulator import clusters
from plugins.lium.emulator.caller import Body, Caller, Emulated, Renter
from plugins.lium.emulator.rent import once

router = APIRouter()
Row = dict[str, Any]


@router.get("/executors/infiniband-clusters")
async def offers(pods: Emulated) -> list[Row]:
    """Fabrics with free nodes."""
    return clusters.offers(pods)


@router.post("/executors/cluster/rent")
async def rent(request: Request, pods: Emulated, account: Renter, body: Body) -> JSONResponse:
    """Rent several nodes of one fabric, all or none."""

    def act() -> tuple[int, Row]:
        rented = clusters.rent(pods, account, body)
        return 200, {"success": True, "cluster_id": rented[0].cluster_id, "pod_ids": [pod.id for pod in rented]}

    return once(request, pods, account, body, act)


@router.delete("/clusters/{cluster_id}")
async def remove(cluster_id: str, pods: Emulated, account: Caller) -> Row:
    """End all pods of a cluster; answered when no process of them is left."""
    return {"pods": await clusters.remove(pods, account, cluster_id)}
