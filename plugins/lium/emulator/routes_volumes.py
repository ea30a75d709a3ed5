"""Volumes: folders that outlive the pods they are mounted in, one pod at a time."""

import shutil
import uuid
from typing import Any

from fastapi import APIRouter

from plugins.lium.emulator.caller import Body, Caller, Emulated
from plugins.lium.emulator.market import NotFound, Unprocessable, VolumeBusy
from plugins.lium.emulator.pods import Pods
from plugins.lium.emulator.state import Account, Volume, iso

router = APIRouter()
Row = dict[str, Any]


@router.get("/volumes")
async def list_volumes(pods: Emulated, account: Caller) -> list[Row]:
    """Volumes of the account, with their size now."""
    return [_volume_row(pods, volume) for volume in pods.state.volumes.values() if volume.account == account.id]


@router.post("/volumes")
async def create_volume(pods: Emulated, account: Caller, body: Body) -> Row:
    """A new, empty volume."""
    if not body.get("name"):
        raise Unprocessable("a volume needs a name")
    now, volume_id = pods.now(), str(uuid.uuid4())
    volume = Volume(volume_id, account.id, str(body["name"]), str(body.get("description") or ""), now, now)
    (pods.file.folder / "volumes" / volume_id).mkdir(parents=True, mode=0o700)
    pods.state.volumes[volume_id] = volume
    pods.file.save()
    return _volume_row(pods, volume)


@router.get("/volumes/{volume_id}")
async def get_volume(volume_id: str, pods: Emulated, account: Caller) -> Row:
    """One volume."""
    return _volume_row(pods, _volume(pods, account, volume_id))


@router.put("/volumes/{volume_id}")
async def update_volume(volume_id: str, pods: Emulated, account: Caller, body: Body) -> Row:
    """Change name or description."""
    volume = _volume(pods, account, volume_id)
    volume.name = str(body.get("name") or volume.name)
    volume.description = str(body.get("description", volume.description))
    volume.updated_at_s = pods.now()
    pods.file.save()
    return _volume_row(pods, volume)


@router.delete("/volumes/{volume_id}")
async def delete_volume(volume_id: str, pods: Emulated, account: Caller) -> Row:
    """Delete a volume and its files; refused while a pod has it."""
    volume = _volume(pods, account, volume_id)
    if any(pod.volume_id == volume_id for pod in pods.state.present()):
        raise VolumeBusy(f"Volume {volume.name} is attached to a pod; remove the pod first")
    del pods.state.volumes[volume_id]
    pods.file.save()
    shutil.rmtree(pods.file.folder / "volumes" / volume_id, ignore_errors=True)
    return {"success": True}


def _volume(pods: Pods, account: Account, volume_id: str) -> Volume:
    volume = pods.state.volumes.get(volume_id)
    if volume is None or volume.account != account.id:
        raise NotFound(f"Volume {volume_id} not found")
    return volume


def _volume_row(pods: Pods, volume: Volume) -> Row:
    files = [
        path
        for path in (pods.file.folder / "volumes" / volume.id).rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    size = sum(path.stat().st_size for path in files)
    return {
        "id": volume.id,
        "name": volume.name,
        "description": volume.description,
        "created_at": iso(volume.created_at_s),
        "updated_at": iso(volume.updated_at_s),
        "current_size_bytes": size,
        "current_file_count": len(files),
        "current_size_gb": round(size / 1e9, 6),
        "current_size_mb": round(size / 1e6, 3),
        "last_metrics_update": iso(pods.now()),
    }
