"""Get a pod that can take stages: adopt this run's pod or rent one, reach it, tunnel to it, start its worker.

The pod's name is written down nowhere before renting, because it is computed: whoever finds a pod by that name
knows whose it is. So a crash at any point leaves either no pod, or one that the next start of the same run adopts.
"""

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from prefect import task
from prefect.cache_policies import NO_CACHE

from plugins.errors import CapacityError, ControlPlaneError, PodLost, UserError
from plugins.lium.bootstrap import start_supervisor, supervisor_status
from plugins.lium.pods import TERMINAL_STATUSES, PodRow, PodSpec
from plugins.lium.poller import wait_ready
from plugins.lium.tunnel import PodConnection, known_hosts_file
from tasks.control_plane import worker_online
from tasks.lium_account import is_loopback
from tasks.pod_ledger import PodLedger
from tasks.run import Run
from tasks.stage_contract import WORK_POOL

BOOTS = 3  # pods that may fail to boot before the run gives up
CONNECT_S = 120.0
WORKER_S = 180.0
PORT_FILE = "trainstack/api_port"


class LivePod:
    """A pod that this process steers: its row, the SSH connection with the tunnel in it."""

    def __init__(self, row: PodRow, connection: PodConnection) -> None:
        self.row, self.connection = row, connection

    @property
    def name(self) -> str:
        """The pod's name; also the name of its queue and its worker."""
        return self.row.name


def pod_prefix(run_id: str, group: str = "") -> str:
    """What the names of a run's pods begin with."""
    return f"ts-{run_id}-{group}-a" if group else f"ts-{run_id}-"


def _is_outside(_task: Any, _task_run: Any, state: Any) -> bool:
    """Retry only what waiting can mend."""
    return isinstance(state.result(raise_on_failure=False), (CapacityError, ControlPlaneError))


@task(
    name="provision-pod",
    retries=4,
    retry_delay_seconds=[2, 10, 30, 60],
    retry_jitter_factor=0.1,
    retry_condition_fn=_is_outside,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def provision_pod(run: Run, group: str) -> LivePod:
    """A pod of this run that is ready for stages. Raises CapacityError, PodLost, UserError, ControlPlaneError."""
    row = get_pod(run, group)
    connection = PodConnection(row, run.account.settings.ssh_key_path, known_hosts_file(row.id))
    try:
        connection.connect(CONNECT_S)
        start_worker(run, row, connection)
    except BaseException:
        connection.close()
        raise
    return LivePod(row, connection)


def get_pod(run: Run, group: str) -> PodRow:
    """This run's living pod, or a newly rented one that became ready; a pod that fails to boot is given back."""
    ledger = PodLedger(run.client, run.run_id, run.flow_run_id)
    for boot in range(1, BOOTS + 1):
        mine = [pod for pod in run.account.pods(pod_prefix(run.run_id)) if pod.status not in TERMINAL_STATUSES]
        name = mine[-1].name if mine else f"{pod_prefix(run.run_id, group)}{ledger.next_number()}"
        pod = run.recipe.pod
        run.check_cancelled()
        row = run.account.rent(
            PodSpec(
                name=name,
                gpu_type=pod.gpu,
                gpu_count=pod.gpu_count,
                max_price_per_gpu_hour=pod.max_price_per_gpu_hour,
                template_id=pod.template_id,
                image=pod.image,
                volume=pod.volume,
                termination_hours=max(1, -(-pod.dead_man_minutes // 60)),
                dead_man_s=run.dead_man.total_seconds(),
            )
        )
        ledger.rented(row)
        run.hold(row.id)
        run.log(f"pod {name}: {'adopted' if mine else 'rented'}, {row.gpu_count}x {row.gpu_name}, "
                f"${row.price_per_hour or 0:.2f}/h")  # fmt: skip
        try:
            ready = wait_ready(run.account, name, pod.ready_timeout_minutes * 60, run.cancelled, poller=run.poller)
            run.check_cancelled()
            assert ready is not None
            # At boot Lium sets the end that came with the rent; ours must be said again.
            run.account.extend(ready.id, datetime.now(UTC) + run.dead_man)
            return ready
        except PodLost as lost:
            run.let_go(row.id)
            run.account.release(name)
            ledger.ended(row.id, None)
            run.check_cancelled()
            run.log(f"WARNING pod {name} did not become ready ({lost}); {BOOTS - boot} more tries")
    raise PodLost(f"Run {run.run_id}: {BOOTS} pods in a row did not become ready.")


def start_worker(run: Run, row: PodRow, connection: PodConnection) -> None:
    """Tunnel the API to the pod, start the supervisor with Ray and the worker, and wait until the worker is online."""
    status = supervisor_status(connection)
    api_url = tunnel_api(run, connection)
    if status is None or not status.get("alive", True):
        start_supervisor(connection, boot_document(run, row, api_url))
    deadline = time.monotonic() + WORKER_S
    while not worker_online(run.client, row.name):
        if time.monotonic() > deadline:
            raise ControlPlaneError(
                f"The Prefect worker of pod {row.name} did not come online in {WORKER_S:.0f} s. Its log's end:\n"
                + connection.run(["tail", "-n", "15", "trainstack/worker.log"], timeout_s=30).stdout.decode(
                    errors="replace"
                )
            )
        run.nap(0.3)
    run.log(f"pod {row.name}: worker online, Prefect reached at {api_url}")


def tunnel_api(run: Run, connection: PodConnection) -> str:
    """URL of the Prefect API as seen from the pod; an adopted pod gets the port its worker already knows."""
    if run.recipe.api_url:
        return run.recipe.api_url
    parsed = urlparse(str(run.client.api_url))
    if not is_loopback(str(run.client.api_url)):
        return str(run.client.api_url).rstrip("/")
    if os.environ.get("PREFECT_API_AUTH_STRING") and "PREFECT_API_AUTH_STRING" not in run.recipe.secrets:
        raise UserError(
            "This Prefect API asks for a password, which a pod does not get: with it, it could read every block. "
            "To hand it over all the same, list PREFECT_API_AUTH_STRING under 'secrets:' in the recipe."
        )
    known = connection.run(["cat", PORT_FILE], timeout_s=30)
    remote = int(known.stdout) if known.rc == 0 and known.stdout.strip().isdigit() else 0
    port = connection.forward_to_pod(parsed.port or 80, remote_port=remote)
    connection.run(f"mkdir -p trainstack && echo {port} > {PORT_FILE}", timeout_s=30)
    return f"http://127.0.0.1:{port}{parsed.path.rstrip('/')}"


def boot_document(run: Run, row: PodRow, api_url: str) -> dict[str, Any]:
    """What the supervisor gets on standard input: services, and the environment with the secrets."""
    missing = [name for name in run.recipe.secrets if not os.environ.get(name)]
    if missing:
        raise UserError(f"The recipe's 'secrets:' names {', '.join(missing)}, which this environment does not have.")
    env = {
        **{name: os.environ[name] for name in run.recipe.secrets},
        "PREFECT_API_URL": api_url,
        "PREFECT_CLIENT_MAX_RETRIES": "9",
        "PREFECT_WORKER_QUERY_SECONDS": "0.5",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
        "PREFECT_WORKER_PREFETCH_SECONDS": "0",
        "DO_NOT_TRACK": "1",
        "TRAINSTACK_RUN_ID": run.run_id,
        "TRAINSTACK_POD": row.name,
    }
    ray = ["python", "-m", "plugins.rayjobs.head", "--state", "~/trainstack/ray"]
    ray += ["--num-cpus", str(run.recipe.pod.ray_cpus)]
    if run.recipe.trainer.kind == "slime":
        ray += ["--num-gpus", str(run.recipe.pod.gpu_count), "--cwd", run.recipe.trainer.slime_dir]
    worker = ["python", "-m", "prefect", "worker", "start", "--pool", WORK_POOL, "--work-queue", row.name]
    worker += ["--limit", "1", "--name", row.name]
    services = [{"name": "worker", "argv": worker}, {"name": "ray", "argv": ray}]
    return {"pod": row.name, "state_dir": "~/trainstack", "env": env, "services": services, "grace_s": 25}


def upload(pod: LivePod, files: Sequence[tuple[Path, str]]) -> list[str]:
    """Put files on the pod under names that contain their digest, so that a file already there is not sent twice."""
    placed = []
    for local, digest in files:
        remote = f"trainstack/data/{digest[:16]}/{local.name}"
        if pod.connection.run(["test", "-f", remote], timeout_s=60).rc != 0:
            pod.connection.upload(local, remote)
        home = pod.connection.run(["sh", "-c", 'printf %s "$HOME"'], timeout_s=60).stdout.decode()
        placed.append(f"{home}/{remote}")
    return placed
