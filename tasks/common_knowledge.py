"""What all runs share, kept as Prefect variables: hosts that rest after a failure, and pods held warm for the next run.

One variable for each, so that two runs never overwrite each other's news, and a person who knows better deletes one in
the UI. Creating a variable is a step that only one of two racing runs can do: that is how a warm pod is claimed.
"""

from contextlib import suppress
from dataclasses import asdict
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from plugins.lium.offers import Rest
from tasks.board import WarmPod

HOST, WARM, CLAIM = "trainstack-host-", "trainstack-warm-", "trainstack-claim-"
MOST = 200  # Prefect answers no more in one page; a marketplace with more failing hosts has other problems


def resting_hosts(client: SyncPrefectClient) -> dict[str, Rest]:
    """Hosts that are left out, by executor id; a variable that a person spoilt is skipped."""
    found = {}
    for name, value in _read(client, HOST).items():
        with suppress(TypeError, KeyError, ValueError):
            found[name] = Rest(until=float(value["until"]), why=str(value["why"]))
    return found


def rest_host(client: SyncPrefectClient, executor_id: str, rest: Rest) -> None:
    """Leave a host out until `rest.until`."""
    _write(client, HOST + executor_id, asdict(rest))


def forget_host(client: SyncPrefectClient, executor_id: str) -> None:
    """Rent at this host again."""
    _delete(client, HOST + executor_id)


def forget_rested(client: SyncPrefectClient, now: float) -> int:
    """Delete the variables of hosts whose rest is over; returns how many."""
    over = [host for host, rest in resting_hosts(client).items() if rest.until <= now]
    for host in over:
        forget_host(client, host)
    return len(over)


def warm_pods(client: SyncPrefectClient) -> list[WarmPod]:
    """Pods that wait for a next run or were claimed by one."""
    claims = _read(client, CLAIM)
    found = []
    for name, value in _read(client, WARM).items():
        with suppress(TypeError):
            found.append(WarmPod(**{**value, "claimed_by": claims.get(name)}))
    return found


def hold_warm(client: SyncPrefectClient, pod: WarmPod) -> None:
    """Offer a pod to the next run; a claim of an earlier one ends."""
    _delete(client, CLAIM + pod.name)
    row = asdict(pod)
    del row["claimed_by"]
    _write(client, WARM + pod.name, row)


def claim_warm(client: SyncPrefectClient, name: str, run_id: str) -> bool:
    """Take a warm pod; False when another run was faster."""
    with suppress(ObjectAlreadyExists):
        client.create_variable(VariableCreate(name=CLAIM + name, value=run_id))
    return bool(_read(client, CLAIM).get(name) == run_id)


def forget_warm(client: SyncPrefectClient, name: str) -> None:
    """The pod is gone: take offer and claim away."""
    _delete(client, WARM + name)
    _delete(client, CLAIM + name)


def _read(client: SyncPrefectClient, prefix: str) -> dict[str, Any]:
    """Values by what follows the prefix in the variable's name."""
    wanted = {"variables": {"name": {"like_": prefix}}, "limit": MOST}
    rows = client.request("POST", "/variables/filter", json=wanted).json()
    return {row["name"].removeprefix(prefix): row["value"] for row in rows if row["name"].startswith(prefix)}


def _write(client: SyncPrefectClient, name: str, value: dict[str, Any]) -> None:
    try:
        client.create_variable(VariableCreate(name=name, value=value))
    except ObjectAlreadyExists:
        client.update_variable(VariableUpdate(name=name, value=value))


def _delete(client: SyncPrefectClient, name: str) -> None:
    with suppress(ObjectNotFound):
        client.delete_variable_by_name(name)
