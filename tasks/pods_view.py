"""`trainstack ps` and `trainstack ssh`: the pods of every account in reach, as a person wants to see them."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from prefect.client.orchestration import SyncPrefectClient
from rich.table import Table
from rich.text import Text

from plugins.errors import ControlPlaneError, UserError
from plugins.lium.client import LiumAccount
from plugins.lium.pods import PodRow
from plugins.lium.tunnel import known_hosts_file
from tasks import artifacts
from tasks.common_knowledge import warm_pods
from tasks.control_plane import attempt_of, runs_of, tag_value
from tasks.plain_text import plain
from tasks.pod_ledger import charge_of, gpu_words, read_ledger
from tasks.provision_pod import run_of
from tasks.stage_contract import HEARTBEAT_SUFFIX, Heartbeat, artifact_key, describe, parse_heartbeat


@dataclass(frozen=True)
class PodView:
    """One pod with what Prefect knows of it. Money in USD."""

    account: str
    pod: PodRow
    run_id: str | None
    host: str | None
    cost: float | None
    beat: Heartbeat | None


def pods_in_reach(client: SyncPrefectClient | None, accounts: dict[str, LiumAccount]) -> list[PodView]:
    """Every pod with our name. Without a Prefect API in reach only what Lium says is known."""
    owners = {pod.name: pod.claimed_by for pod in warm_pods(client) if pod.claimed_by} if client else {}
    found = []
    for name, account in accounts.items():
        for pod in account.pods("ts-"):
            run_id = owners.get(pod.name) or run_of(pod.name)
            if run_id is not None:
                found.append(_view(client, name, pod, run_id))
    return found


def _view(client: SyncPrefectClient | None, account: str, pod: PodRow, run_id: str) -> PodView:
    if client is None:
        return PodView(account, pod, run_id, None, None, None)
    row = next((r for r in read_ledger(client, run_id) if r["id"] == pod.id), None)
    charge = charge_of(row) if row else None
    cost = charge.usd(datetime.now(UTC).timestamp()) if charge else None
    return PodView(account, pod, run_id, row["host"] if row else None, cost, _newest_beat(client, run_id, pod.name))


def _newest_beat(client: SyncPrefectClient, run_id: str, pod: str) -> Heartbeat | None:
    stages = [run for run in runs_of(client, run_id) if tag_value(run, "stage") and run.work_queue_name == pod]
    living = [run for run in stages if run.state is not None and not run.state.is_final()]
    if not living:
        return None
    newest = max(living, key=attempt_of)
    key = artifact_key(run_id, str(tag_value(newest, "stage")), HEARTBEAT_SUFFIX)
    found = artifacts.newest(client, key, newest.id)
    return parse_heartbeat(found.data) if found else None


def pods_table(views: Sequence[PodView]) -> Table:
    """Pods, hosts, GPU use, price, cost so far, time to the dead-man end."""
    table = Table("pod", "run", "status", "host", "GPU", "GPU use", "$/h", "cost so far", "ends in", "stage")
    for view in views:
        pod, beat = view.pod, view.beat
        use = "" if beat is None or beat.gpu_percent is None else f"{beat.gpu_percent:.0f} %"
        cells = (
            pod.name,
            view.run_id or "",
            pod.status,
            view.host or (pod.executor_id or "")[:8],
            gpu_words(pod.gpu_count, pod.gpu_name, len(pod.nodes)),
            use,
            f"{pod.price_per_hour or 0:.2f}",
            "" if view.cost is None else f"${view.cost:.4f}",
            _ends_in(pod),
            "" if beat is None else f"{beat.stage}: {describe(beat)}",
        )
        table.add_row(*(Text(plain(cell)) for cell in cells), style=None if pod.reachable else "yellow")
    return table


def _ends_in(pod: PodRow) -> str:
    if pod.removal_scheduled_at is None:
        return "never!"
    seconds = (pod.removal_scheduled_at - datetime.now(UTC)).total_seconds()
    return f"{max(0, seconds) / 60:.0f} min"


def ssh_argv(
    run_id: str, views: Sequence[PodView], accounts: dict[str, LiumAccount], command: Sequence[str]
) -> list[str]:
    """The ssh command for the newest living pod of a run. Raises UserError when there is none, or no ssh here."""
    mine = [view for view in views if view.run_id == run_id]
    if not mine:
        raise UserError(f"Run {run_id} has no pod now. `trainstack ps` lists the pods there are.")
    view = mine[-1]
    if view.pod.ssh_host is None:
        raise ControlPlaneError(f"Pod {view.pod.name} ({view.pod.status}) has no SSH address yet; wait until it runs.")
    program = shutil.which("ssh")
    if program is None:
        raise UserError("There is no `ssh` program here: install OpenSSH's client.")
    hosts = known_hosts_file(view.pod.id)
    key = accounts[view.account].settings.ssh_key_path
    argv = [program, "-i", str(key), "-p", str(view.pod.ssh_port)]
    argv += ["-o", f"UserKnownHostsFile={hosts}", "-o", "StrictHostKeyChecking=accept-new", "-o", "IdentitiesOnly=yes"]
    return [*argv, f"{view.pod.ssh_user}@{view.pod.ssh_host}", *command]


def become(argv: Sequence[str]) -> None:
    """Go on as this program, with this terminal."""
    os.execv(argv[0], list(argv))  # noqa: S606  (argv is a list, and the point is to become ssh)
