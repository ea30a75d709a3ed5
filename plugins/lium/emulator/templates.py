"""Templates: descriptions of images. The emulator runs no image; it keeps the rows and gives pods their environment."""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from plugins.lium.emulator.state import State, iso

# The CLI falls back to this id when no template is asked for (lium.md 4.7).
DEFAULT_TEMPLATE_ID = "1948937e-5049-47ad-8e26-bcf1a4549d70"
CLUSTER_TEMPLATE_ID = "6d1f0e2a-8f2b-5a3e-9d3c-0d5f4c1b2a10"
CLUSTER_IMAGE = "daturaai/lium-cluster"  # the API refuses a cluster of pods with another one
Row = dict[str, Any]


def _public(template_id: str, name: str, image: str, tag: str) -> Row:
    return {
        "id": template_id,
        "name": name,
        "docker_image": image,
        "docker_image_tag": tag,
        "docker_image_digest": "sha256:" + uuid.UUID(template_id).hex * 2,
        "category": "PYTORCH",
        "status": "VERIFY_SUCCESS",
        "user_id": None,
        "account": None,
        "description": "",
        "supports_volume_encryption": False,
        "internal_ports": [22, 8000],
        "volumes": ["/root"],
        "environment": {},
        "startup_commands": "",
        "entrypoint": "",
        "readme": "",
        "is_private": False,
        "one_time_template": False,
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
    }


PUBLIC = {
    row["id"]: row
    for row in (
        _public(DEFAULT_TEMPLATE_ID, "PyTorch CUDA", "daturaai/pytorch", "2.9.0-py3.12-cuda13.0"),
        _public(CLUSTER_TEMPLATE_ID, "Lium cluster", CLUSTER_IMAGE, "1.0.0"),
    )
}


def template_of(state: State, template_id: str, account: str | None) -> Row | None:
    """A public template or one of the account's own."""
    row = PUBLIC.get(template_id) or state.templates.get(template_id)
    return row if row and row["account"] in (None, account) else None


def visible(state: State, account: str | None) -> list[Row]:
    """All templates an account can use (None: a caller without a key sees the public ones)."""
    own = [row for row in state.templates.values() if account and row["account"] == account]
    return [shown(row) for row in [*PUBLIC.values(), *own]]


def shown(row: Row) -> Row:
    """A row as the API answers it."""
    return {name: value for name, value in row.items() if name != "account"}


def create(state: State, account: str, body: Mapping[str, Any]) -> Row:
    """A new template of the account; verified at once, as no image is pulled."""
    row = _public(str(uuid.uuid4()), "", "", "latest") | {"user_id": account, "account": account}
    row |= {"created_at": iso(time.time()), "docker_image_digest": ""}
    state.templates[row["id"]] = row
    return update(row, body)


def update(row: Row, body: Mapping[str, Any]) -> Row:
    """Change the fields that a template has; others in the body are not kept."""
    fixed = ("id", "account", "user_id", "status", "created_at")
    row |= {name: value for name, value in body.items() if name in row and name not in fixed and value is not None}
    row["updated_at"] = iso(time.time())
    return row
