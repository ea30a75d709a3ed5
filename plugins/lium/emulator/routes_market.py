"""Account, machines, templates and keys: what a client reads before and beside its pods."""

import time
import uuid
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request

from plugins.lium.emulator import billing, templates
from plugins.lium.emulator.caller import Body, Caller, Emulated, MaybeCaller
from plugins.lium.emulator.market import NotFound, Unprocessable
from plugins.lium.emulator.routes_pods import event_row
from plugins.lium.emulator.state import iso, parse_iso

router = APIRouter()
Row = dict[str, Any]
IMAGE_BYTES = 9_000_000_000
SLOW_S = 300.0
FEATURES = ["rent_by_spec", "run_record", "rent_idempotency"]


@router.get("/version")
async def version(request: Request) -> Row:
    """What this server can do; the SDK chooses its way of renting by it."""
    began: float = request.app.state.started_at_s
    return {"started_at": iso(began), "uptime_seconds": int(time.time() - began), "features": FEATURES}


@router.get("/users/me")
async def me(pods: Emulated, account: Caller) -> Row:
    """The account and what is left on it; no `workspace` key means a server without workspaces."""
    email = f"{account.api_key_id}@emulator.invalid"
    return {
        "id": account.id,
        "email": email,
        "balance": round(pods.market.balance(account), 6),
        "stripe_customer_id": None,
    }


@router.get("/users/me/events")
async def my_events(pods: Emulated, account: Caller, limit: int = 100, since: str = "", pod_id: str = "") -> list[Row]:
    """The history of all pods of the account, newest first."""
    after = _time_of(since) if since else 0.0
    own = [pod for pod in pods.state.pods.values() if pod.account == account.id and pod_id in ("", pod.id)]
    found = sorted(((event.at_s, pod, event) for pod in own for event in pod.events), key=lambda row: -row[0])
    return [event_row(pod, event) | {"pod_id": pod.id} for at_s, pod, event in found if at_s >= after][:limit]


def _time_of(text: str) -> float:
    try:
        return parse_iso(text)
    except ValueError as error:
        raise Unprocessable(f"{text!r} is not an ISO time") from error


@router.get("/account/audit")
async def audit(account: Caller) -> Row:
    """Nothing is audited here."""
    return {"items": [], "next_cursor": None}


@router.get("/billing/statement")
async def statement(pods: Emulated, account: Caller, start_day: str = "", end_day: str = "") -> Row:
    """What pods cost between two days."""
    today = datetime.fromtimestamp(pods.now(), UTC).date().isoformat()
    own = [pod for pod in pods.state.pods.values() if pod.account == account.id]
    return billing.statement(own, start_day or today, end_day or today, pods.now())


@router.get("/machines")
async def machines(pods: Emulated) -> list[Row]:
    """Full GPU names."""
    return [{"name": name} for name in sorted({machine.gpu for machine in pods.machines.values()})]


@router.get("/executors")
async def executors(
    pods: Emulated,
    machine_names: str = "",
    gpu_count_gte: int = 0,
    gpu_count_lte: int = 1000,
    nvlink: bool = False,
    min_download_mbps: float = 0,
) -> list[Row]:
    """Machines with at least one GPU to rent now."""
    names = [name.strip() for name in machine_names.split(",") if name.strip()]
    free, now = pods.market.free_gpus(), str(iso(pods.now()))
    rows = []
    for machine in pods.machines.values():
        counts = machine.rentable(free[machine.id])
        fits = any(gpu_count_gte <= count <= gpu_count_lte for count in counts)
        quick = machine.download_mbps >= min_download_mbps and (machine.nvlink or not nvlink)
        if fits and quick and (not names or machine.gpu in names):
            rows.append(machine.row(free[machine.id], now))
    return rows


@router.get("/executors/default-docker-image")
async def default_image(gpu_model: str = "", driver_version: str = "") -> list[Row]:
    """The recommended image, which is that of the default template."""
    row = templates.PUBLIC[templates.DEFAULT_TEMPLATE_ID]
    return [{"docker_image": row["docker_image"], "docker_image_tag": row["docker_image_tag"]}]


@router.get("/executors/deployment-estimate")
async def deployment_estimate(
    pods: Emulated, account: MaybeCaller, executor_id: str = "", template_id: str = ""
) -> Row:
    """How long a boot takes on the machine: its boot delay, and the time for an image that is not on its disk.

    The second is an estimate only; no image is pulled here.
    """
    machine, delay_s, cached = pods.machines.get(executor_id), pods.settings.boot_delay_s, True
    if machine is not None:
        template = templates.template_of(
            pods.state, template_id or templates.DEFAULT_TEMPLATE_ID, account.id if account else None
        )
        cached = template is None or machine.has_image(f"{template['docker_image']}:{template['docker_image_tag']}")
        pull_s = 0.0 if cached else IMAGE_BYTES * 8 / 1e6 / max(1.0, machine.download_mbps)
        delay_s = pods.settings.boot_delay_of(machine) + pull_s
    return {
        "estimated_seconds": max(1, round(delay_s)),
        "is_slow_machine": delay_s > SLOW_S,
        "warning_message": None,
        "is_cached_template": cached,
        "docker_image_size": IMAGE_BYTES,
    }


@router.get("/executors/{executor_id}/quote")
async def quote(executor_id: str, pods: Emulated, hours: float = 1, gpu_count: int = 0) -> Row:
    """What a rent would cost."""
    machine = pods.market.machine(executor_id)
    return billing.quote(machine, gpu_count or machine.gpu_count, hours)


@router.get("/templates")
async def list_templates(pods: Emulated, account: MaybeCaller) -> list[Row]:
    """Public templates and the account's own."""
    return templates.visible(pods.state, account.id if account else None)


@router.post("/templates")
async def create_template(pods: Emulated, account: Caller, body: Body) -> Row:
    """A new template."""
    if not body.get("name") or not body.get("docker_image"):
        raise Unprocessable("a template needs name and docker_image")
    row = templates.create(pods.state, account.id, body)
    pods.file.save()
    return templates.shown(row)


@router.get("/templates/{template_id}")
async def get_template(template_id: str, pods: Emulated, account: MaybeCaller) -> Row:
    """One template."""
    row = templates.template_of(pods.state, template_id, account.id if account else None)
    if row is None:
        raise NotFound(f"Template {template_id} not found")
    return templates.shown(row)


@router.put("/templates/{template_id}")
async def update_template(template_id: str, pods: Emulated, account: Caller, body: Body) -> Row:
    """Change a template of the account; its running pods are booted again, as on the real server."""
    row = pods.state.templates.get(template_id)
    if row is None or row["account"] != account.id:
        raise NotFound(f"Template {template_id} not found among your own")
    templates.update(row, body)
    for pod in pods.state.present(account.id):
        if pod.template_id == template_id and pod.status == "RUNNING":
            await pods.reboot(account, pod, None)
    pods.file.save()
    return templates.shown(row)


@router.get("/ssh-keys")
async def list_keys(pods: Emulated, account: Caller) -> list[Row]:
    """Public keys registered with the account."""
    return [templates.shown(row) for row in pods.state.ssh_keys if row["account"] == account.id]


@router.post("/ssh-keys")
async def add_key(pods: Emulated, account: Caller, body: Body) -> Row:
    """Register a public key (pods get theirs from the rent, not from here)."""
    row = {"id": str(uuid.uuid4()), "name": body.get("name"), "public_key": body.get("public_key")}
    pods.state.ssh_keys.append(row | {"created_at": iso(pods.now()), "account": account.id})
    pods.file.save()
    return templates.shown(pods.state.ssh_keys[-1])
