"""The two endpoints that rent one pod, and the idempotency keys that make a repeated rent harmless.

The first answer to a key (also a refusal) is kept 24 hours per account and given again, marked with the header
`Idempotent-Replayed: true`. Renting several pods as one cluster is `routes_clusters.py`'s.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from plugins.lium.emulator.caller import REFUSALS, Body, Emulated, Renter, envelope
from plugins.lium.emulator.inventory import NothingFits
from plugins.lium.emulator.machine import Machine
from plugins.lium.emulator.market import Unprocessable
from plugins.lium.emulator.pods import Pods
from plugins.lium.emulator.state import Account, Answered, iso
from plugins.lium.emulator.templates import DEFAULT_TEMPLATE_ID

router = APIRouter()
KEPT_S = 24 * 3600.0
MAX_TERMINATION_HOURS = 720
LATE_LISTING_S = 5.0  # a pod whose rent was ordered to be late
Answer = tuple[int, dict[str, Any]]


@router.post("/executors/rent-by-spec")
async def rent_by_spec(request: Request, pods: Emulated, account: Renter, body: Body) -> JSONResponse:
    """Choose the best machine for a spec and rent it; `dry_run` chooses and prices only."""
    return once(request, pods, account, body, lambda: _by_spec(pods, account, body))


@router.post("/executors/{executor_id}/rent")
async def rent(executor_id: str, request: Request, pods: Emulated, account: Renter, body: Body) -> JSONResponse:
    """Rent GPUs of one machine (all that are free, without a count)."""
    return once(request, pods, account, body, lambda: _by_id(pods, account, executor_id, body))


def once(
    request: Request, pods: Pods, account: Account, body: dict[str, Any], act: Callable[[], Answer]
) -> JSONResponse:
    """Carry a rent out, or give the answer that its Idempotency-Key got before."""
    key = request.headers.get("idempotency-key")
    if key is None or body.get("dry_run"):
        return _send(_carried_out(request, pods, act))
    answered = pods.state.answered
    for old in [name for name, answer in answered.items() if answer.at_s + KEPT_S < pods.now()]:
        del answered[old]
    name = f"{account.id}:{key}"
    digest = hashlib.sha256(json.dumps([request.url.path, body], sort_keys=True).encode()).hexdigest()
    if before := answered.get(name):
        if before.request_hash != digest:
            return envelope(409, "idempotency_key_reused", "this Idempotency-Key was used for another request")
        replay = _send((before.status, before.body or {}))
        replay.headers["Idempotent-Replayed"] = "true"
        return replay
    status, content = _carried_out(request, pods, act)
    answered[name] = Answered(digest, pods.now(), status, content)
    pods.file.save()
    if status == 200 and pods.faults.take("lose_rent_answer"):
        return envelope(502, "bad_gateway", "the answer was lost on the way (ordered fault)")
    return _send((status, content))


def _carried_out(request: Request, pods: Pods, act: Callable[[], Answer]) -> Answer:
    status, content = _answer(act)
    rented = content.get("pod_ids") or [content[name] for name in ("pod_id",) if content.get(name)]
    if rented and pods.faults.take_for("late", request.method, request.url.path):
        for pod_id in rented:
            pods.state.pods[pod_id].listed_from_s = pods.now() + LATE_LISTING_S
        pods.file.save()
    return status, content


def _answer(act: Callable[[], Answer]) -> Answer:
    try:
        return act()
    except tuple(REFUSALS) as error:
        status, code = REFUSALS[type(error)]
        return status, json.loads(bytes(envelope(status, code, str(error)).body))


def _send(answer: Answer) -> JSONResponse:
    return JSONResponse(answer[1], status_code=answer[0])


def _by_spec(pods: Pods, account: Account, body: dict[str, Any]) -> Answer:
    _check(body)
    fitting = pods.market.pick(body)
    machine, count = fitting[0], int(body.get("gpu_count") or 1)
    free = pods.market.free_gpus()
    pod = None if body.get("dry_run") else pods.rent(account, machine, count, body)
    return 200, {
        "success": True,
        "dry_run": pod is None,
        "pod_id": pod.id if pod else None,
        "template_id": pod.template_id if pod else body.get("template_id") or DEFAULT_TEMPLATE_ID,
        "price_per_hour": round(machine.price_per_gpu * count, 6),
        "selected_executor": machine.row(free[machine.id], str(iso(pods.now()))),
        "candidates": len(fitting),
        "attempts": 1,
        "alternatives_considered": [_short(other) for other in fitting[1:6]],
    }


def _short(machine: Machine) -> dict[str, Any]:
    return {
        "id": machine.id,
        "machine_name": machine.gpu,
        "gpu_count": machine.gpu_count,
        "price_per_gpu": machine.price_per_gpu,
        "tier": machine.tier,
    }


def _by_id(pods: Pods, account: Account, executor_id: str, body: dict[str, Any]) -> Answer:
    _check(body)
    machine = pods.market.machine(executor_id)
    counts = machine.rentable(pods.market.free_gpus()[executor_id])
    if pods.faults.take("no_capacity"):
        counts = []
    count = int(body.get("gpu_count") or (counts[-1] if counts else machine.gpu_count))
    if count not in counts:
        shown = ", ".join(map(str, counts)) or "none now"
        raise NothingFits(f"gpu_count={count}: node {executor_id} cannot rent it; rentable GPU counts: {shown}")
    return 200, {"success": True, "pod_id": pods.rent(account, machine, count, body).id}


def _check(body: dict[str, Any]) -> None:
    hours = body.get("termination_hours")
    if hours is not None and not (isinstance(hours, int) and 1 <= hours <= MAX_TERMINATION_HOURS):
        raise Unprocessable(
            f"termination_hours must be a whole number from 1 to {MAX_TERMINATION_HOURS}, not {hours!r}"
        )
    count = body.get("gpu_count")
    if count is not None and not (isinstance(count, int) and count >= 1):
        raise Unprocessable(f"gpu_count must be a whole number from 1, not {count!r}")
    if not body.get("user_public_key"):
        raise Unprocessable("user_public_key: at least one SSH public key is needed")
