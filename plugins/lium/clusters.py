"""Several pods rented as one cluster: their rows become one row, and the rent of all of them is one request.

The SDK's `up_cluster` gives its caller neither the request before it is sent nor the idempotency key, and a rent that
is not written down must never be sent. So the same request is made here, through the SDK's own connection
(lium.io 0.32.0, `sdk/client.py`: up_cluster). What becomes of a lost answer is `client.py`'s to find out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from plugins.errors import CapacityError, ControlPlaneError
from plugins.lium.pods import RUNNING, TERMINAL_STATUSES, Intent, PodRow, RentOrder

ENDPOINT = "/executors/cluster/rent"
GONE = "REMOVED"
IMAGE = "daturaai/lium-cluster"  # the only image that Lium lets a cluster run (the SDK's CLUSTER_IMAGE_PREFIX)


def fold(rows: Iterable[PodRow]) -> list[PodRow]:
    """Put the rows of each cluster together, in the place of its first one; other rows stay as they are."""
    found: dict[str, list[PodRow]] = {}
    for row in rows:
        found.setdefault(row.cluster_id or row.id, []).append(row)
    return [_one(nodes) for nodes in found.values()]


def of_ids(ids: Sequence[str], looked_up: Mapping[str, PodRow | None]) -> PodRow | None:
    """The row of a cluster whose nodes were looked up one by one; None when none of them is left.

    A node that is gone stands in it with a terminal status: such a cluster trains nothing any more.
    """
    if not any(looked_up[one] for one in ids):
        return None
    some = next(row for row in looked_up.values() if row is not None)
    gone = PodRow(id="", name=some.name, status=GONE, cluster_id=some.cluster_id)
    places = [None] if len(ids) == 1 else list(range(len(ids)))
    return _one([looked_up[one] or replace(gone, id=one, node=place) for one, place in zip(ids, places, strict=True)])


def trouble(row: PodRow) -> PodRow | None:
    """The first node that has ended; None when none has, or when the row is that of a single pod."""
    if not row.members:
        return None
    ended = [one for one in row.members if one.status in TERMINAL_STATUSES]
    return ended[0] if ended else row if row.terminal else None


def called(row: PodRow, node: PodRow) -> str:
    """A node in words; '' for a single pod."""
    if not row.members:
        return ""
    return f"node {row.ids.index(node.id)} ({node.id[:8]}) of cluster {row.name}"


def request_of(lium: Any, order: RentOrder) -> dict[str, Any]:
    """Body of the rent. Registers the SSH keys and looks the cluster template up; rents nothing.

    Raises what the SDK raises, ValueError without an SSH key.
    """
    keys = lium.config.ssh_public_keys
    if not keys:
        raise ValueError("No SSH keys found")
    lium._ensure_ssh_keys_registered(keys, name=None)
    return {
        "pod_name": order.name,
        "template_id": order.template_id or lium.cluster_template().id,
        "executor_uuids": [order.executor_id, *order.others],
        "user_public_key": keys,
        "initial_port_count": None,
        "enable_volume_encryption": True,
        "enable_backups": True,
    }


def send(lium: Any, intent: Intent) -> list[str]:
    """Send the rent under its key: the ids of the nodes in their order. Sending it again gives the same answer.

    Raises what the SDK raises (LiumError for a refusal), and CapacityError for a refusal that comes as an answer.
    """
    headers = {**lium.headers, "Idempotency-Key": intent.key}
    answer = lium._request("POST", ENDPOINT, json=intent.payload, headers=headers, retry=False).json()
    if answer and not answer.get("success", True):
        raise CapacityError(f"Lium refuses cluster {intent.name}: {answer.get('message') or answer!r:.200}")
    ids = [str(one) for one in (answer or {}).get("pod_ids") or []]
    if len(ids) != size_of(intent):
        raise ControlPlaneError(f"the rent of cluster {intent.name} was answered with {len(ids)} pods: {answer!r:.200}")
    return ids


def delete(lium: Any, cluster_id: str) -> list[str]:
    """End every pod of a cluster; ids of those that Lium says it ended. Raises what the SDK raises."""
    from lium.sdk import Cluster

    return [str(row["pod"]) for row in lium.rm_cluster(Cluster(cluster_id, [])) if row["success"]]


def size_of(intent: Intent) -> int:
    """How many pods a rent asked for."""
    return len(intent.payload.get("executor_uuids") or [intent.executor_id])


def _one(nodes: Sequence[PodRow]) -> PodRow:
    if len(nodes) == 1:
        return nodes[0]
    first, *others = sorted(nodes, key=lambda row: -1 if row.node is None else row.node)
    prices = [row.price_per_hour for row in nodes if row.price_per_hour is not None]
    ends = [row.removal_scheduled_at for row in nodes if row.removal_scheduled_at is not None]
    return replace(
        first,
        status=_status([first, *others]),
        price_per_hour=sum(prices) if len(prices) == len(nodes) else None,
        removal_scheduled_at=min(ends) if len(ends) == len(nodes) else None,
        members=tuple(others),
    )


def _status(nodes: Sequence[PodRow]) -> str:
    """A terminal status of any node, else one that is not RUNNING yet."""
    ended = [row.status for row in nodes if row.status in TERMINAL_STATUSES]
    waiting = [row.status for row in nodes if row.status != RUNNING]
    return (ended or waiting or [RUNNING])[0]
