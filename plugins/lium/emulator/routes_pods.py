"""The pod endpoints: list, look, end, reboot, schedule, history, bill, log."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from plugins.lium.emulator import billing
from plugins.lium.emulator.caller import Body, Caller, Emulated
from plugins.lium.emulator.limiter import SlidingMinute
from plugins.lium.emulator.market import NotFound, Unprocessable
from plugins.lium.emulator.pods import PENDING, Pods
from plugins.lium.emulator.state import Event, Pod, iso, parse_iso
from plugins.lium.emulator.templates import template_of

router = APIRouter()
Row = dict[str, Any]
LOG_LOOK_S = 0.2
OVERLAY = "127.0.0.1"  # nodes of a cluster share this machine's network; the real addresses are 10.42.0.<rank + 1>


@router.get("/pods")
async def list_pods(request: Request, pods: Emulated, account: Caller, api_key_id: str = "") -> list[Row]:
    """The account's pods; a removed one is absent. As often as the real service allows it."""
    limiter: SlidingMinute = request.app.state.listings
    limiter.count(account.id)
    present = pods.state.present(account.id) if api_key_id in ("", account.api_key_id) else []
    rows = [_row(pods, pod) for pod in present if (pod.listed_from_s or 0) <= pods.now()]
    word = pods.faults.status_word()
    return [row | {"status": word} for row in rows] if word else rows


@router.get("/pods/{pod_id}")
async def get_pod(pod_id: str, pods: Emulated, account: Caller) -> Row:
    """One pod, with its last event."""
    pod = pods.get(account, pod_id)
    row = _row(pods, pod)
    row["executor"]["disk_health_ok"] = True
    return row | {"last_event": event_row(pod, pod.events[-1])}


@router.delete("/pods/{pod_id}")
async def delete_pod(pod_id: str, pods: Emulated, account: Caller) -> Row:
    """End a pod; answered when no process of it is left."""
    await pods.remove(pods.get(account, pod_id), "unrent")
    return {"success": True}


@router.post("/pods/{pod_id}/reboot")
async def reboot(pod_id: str, pods: Emulated, account: Caller, body: Body) -> Row:
    """A new container on the same directories."""
    pod = pods.get(account, pod_id)
    await pods.reboot(account, pod, body.get("volume_id"))
    return _row(pods, pod)


@router.post("/pods/{pod_id}/schedule-removal")
async def schedule_removal(pod_id: str, pods: Emulated, account: Caller, body: Body) -> Row:
    """Set the time at which the pod ends by itself; a new time replaces the old one."""
    pod = pods.get(account, pod_id)
    try:
        at_s = parse_iso(str(body.get("removal_scheduled_at")))
    except ValueError as error:
        raise Unprocessable("removal_scheduled_at is not an ISO time") from error
    pods.schedule(pod, at_s)
    return {"success": True, "removal_scheduled_at": iso(at_s)}


@router.delete("/pods/{pod_id}/schedule-removal")
async def cancel_removal(pod_id: str, pods: Emulated, account: Caller) -> Row:
    """Take the scheduled end back."""
    pods.schedule(pods.get(account, pod_id), None)
    return {"success": True, "removal_scheduled_at": None}


@router.get("/pods/{pod_id}/events")
async def events(pod_id: str, pods: Emulated, account: Caller) -> list[Row]:
    """What happened to the pod, oldest first, also after its end."""
    pod = pods.get(account, pod_id, removed=True)
    return [event_row(pod, event) for event in pod.events]


@router.get("/pods/{pod_id}/record")
async def record(pod_id: str, pods: Emulated, account: Caller) -> Row:
    """The bill of the pod, also after its end."""
    pod = pods.get(account, pod_id, removed=True)
    machine = pods.machines.get(pod.executor_id)
    if machine is None:
        raise NotFound(f"The machine of pod {pod_id} is no longer in the inventory")
    return billing.record(pod, machine, pods.now())


@router.get("/pods/{pod_id}/logs")
async def logs(
    pod_id: str, pods: Emulated, account: Caller, tail: int = 100, follow: bool = False
) -> StreamingResponse:
    """The container's log (its boots), as server-sent events."""
    pod = pods.get(account, pod_id)
    return StreamingResponse(_log_lines(pods, pod, tail, follow), media_type="text/event-stream")


async def _log_lines(pods: Pods, pod: Pod, tail: int, follow: bool) -> AsyncIterator[str]:
    sent = max(0, len(pods.logs.get(pod.id, [])) - tail)
    while True:
        for line in pods.logs.get(pod.id, [])[sent:]:
            yield f"data: {json.dumps({'log': line})}\n\n"
            sent += 1
        if not follow or pod.removed:
            return
        await asyncio.sleep(LOG_LOOK_S)


def event_row(pod: Pod, event: Event) -> Row:
    """One event as the API answers it."""
    return {
        "created_at": iso(event.at_s),
        "event_type": "pod-lifecycle",
        "sub_event_type": event.kind,
        "from_status": event.from_status,
        "to_status": event.to_status,
        "reason": event.reason,
        "detail": event.detail,
        "error": event.error,
        "pod_name": pod.name,
    }


def _row(pods: Pods, pod: Pod) -> Row:
    machine = pods.machines[pod.executor_id]
    template = template_of(pods.state, pod.template_id, pod.account) or {}
    ready = pod.status == "RUNNING" and pod.ssh_port is not None
    # Pods share the host's network, so a port inside is the same port outside.
    inner = {str(port): port for port in template.get("internal_ports", []) if port != 22}
    row = {
        "id": pod.id,
        "pod_name": pod.name,
        "status": pod.status,
        "gpu_count": str(len(pod.gpu_indices)),  # a string on the real server too
        "gpu_name": machine.gpu,
        "price": pod.price_per_hour,
        "ssh_connect_cmd": f"ssh root@127.0.0.1 -p {pod.ssh_port}" if ready else None,
        "ports_mapping": {"22": pod.ssh_port} | inner if ready else {},
        "created_at": iso(pod.created_at_s),
        "updated_at": iso(pod.updated_at_s),
        "executor": machine.row(pods.market.free_gpus()[machine.id], str(iso(pods.now()))),
        "template": {
            name: template.get(name) for name in ("id", "name", "docker_image", "docker_image_tag", "volumes")
        },
        "removal_scheduled_at": iso(pod.removal_at_s),
        "jupyter_installation_status": None,
        "jupyter_url": None,
        "enable_volume_encryption": False,
        "volume_encryption_status": None,
        "volume_id": pod.volume_id,
        "local_volume_path": "/root",
        "api_key_id": pods.state.accounts[pod.account].api_key_id,
        "api_key_name": "emulator",
    }
    if pod.cluster_id is not None:
        row |= {
            "cluster_id": pod.cluster_id,
            "cluster_node_index": pod.cluster_node_index,
            "cluster_overlay_ip": OVERLAY,
        }
    if pod.status in PENDING:
        left = max(1, round(pod.created_at_s + pods.settings.boot_delay_of(machine) - pods.now()))
        row |= {"phase": pod.phase, "estimated_ready_seconds": left, "eta_basis": "fleet_default"}
    return row
