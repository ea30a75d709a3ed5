"""What pods cost: by the second, from the moment a pod first runs until it is removed.

A pod that never ran costs nothing. A reboot goes on counting, as a rented machine does. All amounts are USD. A pod's
`billing_scale` makes its meter run faster than the clock, so that a test can spend money; no other time is scaled.
"""

from collections.abc import Iterable
from typing import Any

from plugins.lium.emulator.machine import Machine
from plugins.lium.emulator.state import Account, Pod, iso

HOUR_S = 3600.0
FLOOR_HOURS = 0.25  # a rent needs this much of the pod's price on the account


def billed_seconds(pod: Pod, now_s: float) -> float:
    """Seconds the pod is charged for up to `now_s`."""
    if pod.billed_from_s is None:
        return 0.0
    until_s = now_s if pod.removed_at_s is None else pod.removed_at_s
    return max(0.0, until_s - pod.billed_from_s) * pod.billing_scale


def cost(pod: Pod, now_s: float) -> float:
    """What the pod has cost so far."""
    return billed_seconds(pod, now_s) / HOUR_S * pod.price_per_hour


def balance(account: Account, present: Iterable[Pod], now_s: float) -> float:
    """What is left on the account when running pods are paid up to now."""
    return account.deposited_usd - account.spent_usd - sum(cost(pod, now_s) for pod in present)


def record(pod: Pod, machine: Machine, now_s: float) -> dict[str, Any]:
    """The answer of `GET /pods/{id}/record`."""
    total = round(cost(pod, now_s), 6)
    segment = {
        "from": iso(pod.billed_from_s),
        "to": iso(pod.removed_at_s or now_s),
        "price_per_hour": pod.price_per_hour,
        "amount_usd": total,
    }
    return {
        "pod_id": pod.id,
        "pod_name": pod.name,
        "gpu_name": machine.gpu,
        "gpu_count": len(pod.gpu_indices),
        "image": pod.image,
        "executor_id": pod.executor_id,
        "created_at": iso(pod.created_at_s),
        "removed": pod.removed,
        "removed_at": iso(pod.removed_at_s),
        "close_reason": pod.close_reason,
        "billed_seconds": round(billed_seconds(pod, now_s), 3),
        "total": total,
        "price_segments": [segment] if pod.billed_from_s is not None else [],
        "launch_snapshot": {
            "gpu_driver": machine.driver,
            "cuda_driver": str(machine.cuda),
            "gpu_interconnect": "nvlink" if machine.nvlink else "pcie",
        },
    }


def statement(pods: Iterable[Pod], start_day: str, end_day: str, now_s: float) -> dict[str, Any]:
    """The answer of `GET /billing/statement`: pods charged between two days (YYYY-MM-DD, both included)."""
    rows: list[dict[str, Any]] = []
    for pod in pods:
        day = str(iso(pod.billed_from_s))[:10]
        if pod.billed_from_s is not None and start_day <= day <= end_day:
            total = round(cost(pod, now_s), 6)
            rows.append(
                {"pod_id": pod.id, "pod_name": pod.name, "total": total, "days": [{"day": day, "total": total}]}
            )
    return {
        "start_day": start_day,
        "end_day": end_day,
        "total": round(sum(row["total"] for row in rows), 6),
        "pods": rows,
    }


def quote(machine: Machine, gpu_count: int, hours: float) -> dict[str, Any]:
    """The answer of `GET /executors/{id}/quote`."""
    per_hour = round(machine.price_per_gpu * gpu_count, 6)
    total = round(per_hour * hours, 6)
    compute = {"item": "compute", "unit": "GPU-hour", "rate_usd": machine.price_per_gpu, "note": ""}
    egress = {"item": "egress", "unit": "GB", "rate_usd": None, "quantity": 0, "amount_usd": None, "note": "not billed"}
    floor = round(per_hour * FLOOR_HOURS, 6)
    return {
        "executor_id": machine.id,
        "gpu_count": gpu_count,
        "hours": hours,
        "price_per_hour": per_hour,
        "lines": [compute | {"quantity": gpu_count * hours, "amount_usd": total}, egress],
        "total_usd": total,
        "pod_balance_floor_usd": floor,
        "allocation": None,
        "rent_balance_required_usd": floor,
    }
