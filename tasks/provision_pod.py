"""Get a pod that can take stages: adopt this run's pod or rent one, reach it, tunnel to it, start its worker.

The pod's name is written down nowhere before renting, because it is computed: whoever finds a pod by that name
knows whose it is. So a crash at any point leaves either no pod, or one that the next start of the same run adopts.
"""

import os
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.recipe import Recipe, StageName
from plugins.errors import CapacityError, ControlPlaneError, PodLost, StoreError, UserError
from plugins.lium.bootstrap import start_supervisor, supervisor_status
from plugins.lium.client import LiumAccount
from plugins.lium.pods import PodRow, PodSpec
from plugins.lium.poller import wait_ready
from plugins.lium.tunnel import PodConnection, known_hosts_file
from tasks.control_plane import worker_online
from tasks.lium_account import is_loopback
from tasks.pod_ledger import PodLedger, pod_number
from tasks.run import Run
from tasks.stage_contract import WORK_POOL

BOOTS = 3  # pods that may fail to boot before the run gives up
CONNECT_S = 120.0
WORKER_S = 180.0
CAPACITY_LOOK_S = 15.0
PORT_FILE = "trainstack/api_port"


class LivePod:
    """A pod that this process steers: its row, the SSH connection, the Prefect API's URL as the pod sees it."""

    def __init__(self, row: PodRow, connection: PodConnection, api_url: str) -> None:
        self.row, self.connection, self.api_url = row, connection, api_url

    @property
    def name(self) -> str:
        """The pod's name; also the name of its queue and its worker."""
        return self.row.name


def pod_name(run_id: str, stages: Sequence[str], number: int) -> str:
    """Name of a run's pod: `ts-<run_id>-<stages>-a<number>`. The stages hold no '-', so no two runs share a name."""
    return f"ts-{run_id}-{''.join(stages)}-a{number}"


def pods_of(account: LiumAccount, run_id: str) -> list[PodRow]:
    """The pods in Lium's listing that are this run's, oldest first; never those of a run whose id only begins alike."""
    mine = re.compile(rf"ts-{re.escape(run_id)}-(?:sft|rl|sftrl)-a\d+")
    found = [pod for pod in account.pods(f"ts-{run_id}-") if mine.fullmatch(pod.name)]
    return sorted(found, key=lambda pod: pod_number(pod.name))


def _is_outside(_task: Any, _task_run: Any, state: Any) -> bool:
    """Retry only what a short wait can mend; for capacity the recipe says how long to wait."""
    return isinstance(state.result(raise_on_failure=False), ControlPlaneError)


@task(
    name="provision-pod",
    retries=4,
    retry_delay_seconds=[2, 10, 30, 60],
    retry_jitter_factor=0.1,
    retry_condition_fn=_is_outside,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def provision_pod(run: Run, stages: list[StageName]) -> LivePod:
    """A pod of this run that is ready for stages. Raises CapacityError, PodLost, UserError, ControlPlaneError."""
    row = get_pod(run, stages)
    connection = PodConnection(row, run.account.settings.ssh_key_path, known_hosts_file(row.id))
    try:
        connection.connect(CONNECT_S)
        check_store_is_shared(run, connection)
        live = LivePod(row, connection, tunnel_api(run.recipe, str(run.client.api_url), connection))
        ensure_worker(run, live)
    except BaseException:
        connection.close()
        raise
    return live


def check_store_is_shared(run: Run, connection: PodConnection) -> None:
    """A folder store must be the same folder here and on the pod. Raises UserError; a checkpoint would die with "
    "the pod."""
    kind, _, folder = run.store.uri.partition(":")
    if kind != "folder":
        return
    probe = Path(folder) / f".seen-by-{connection.row.name}"
    try:
        probe.touch()
        seen = connection.run(["test", "-f", str(probe)], timeout_s=30).rc == 0
    except OSError as error:
        raise StoreError(f"{run.store.uri} cannot be written: {error}") from error
    finally:
        probe.unlink(missing_ok=True)
    if not seen:
        raise UserError(
            f"checkpoint.store {run.store.uri} is not the same folder on pod {connection.row.name}, so its "
            f"checkpoints would "
            "be lost with the pod. On the emulator use the default store; a rented pod cannot see this machine's "
            "folders."
        )


def get_pod(run: Run, stages: Sequence[str]) -> PodRow:
    """This run's living pod, or a newly rented one that became ready; a pod that fails to boot is given back."""
    ledger = PodLedger(run.client, run.run_id, run.flow_run_id)
    for boot in range(1, BOOTS + 1):
        listed = pods_of(run.account, run.run_id)
        mine = [pod for pod in listed if not pod.terminal]
        name = mine[-1].name if mine else pod_name(run.run_id, stages, ledger.next_number(listed))
        pod = run.recipe.pod
        row = _rent(
            run,
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
            ),
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
            ledger.rented(ready)
            return ready
        except PodLost as lost:
            run.let_go(row.id)
            run.account.release(name)
            ledger.close(run.account)
            run.check_cancelled()
            run.log(f"WARNING pod {name} did not become ready ({lost}); {BOOTS - boot} more tries")
    raise PodLost(f"Run {run.run_id}: {BOOTS} pods in a row did not become ready.")


def _rent(run: Run, spec: PodSpec) -> PodRow:
    """Rent, looking again for as long as the recipe waits for capacity."""
    minutes = run.recipe.pod.capacity_wait_minutes
    deadline = time.monotonic() + minutes * 60
    while True:
        run.check_cancelled()
        try:
            return run.account.rent(spec)
        except CapacityError as error:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise CapacityError(
                    f"{error}. Waited {minutes:g} minutes (pod.capacity_wait_minutes): wait longer, or change pod.gpu, "
                    "pod.gpu_count or pod.max_price_per_gpu_hour."
                ) from error
            run.log(f"WARNING {error}; looking again for {left_s / 60:.1f} minutes")
            run.nap(min(CAPACITY_LOOK_S, left_s))


def ensure_worker(run: Run, pod: LivePod) -> None:
    """See that supervisor, Ray and worker run on the pod, and wait until the worker is online. Safe to repeat."""
    ensure_supervisor(run, pod)
    deadline = time.monotonic() + WORKER_S
    while not worker_online(run.client, pod.name):
        if time.monotonic() > deadline:
            log = pod.connection.run(["tail", "-n", "15", "trainstack/worker.log"], timeout_s=30).stdout
            raise ControlPlaneError(
                f"The Prefect worker of pod {pod.name} did not come online in {WORKER_S:.0f} s. Its log's end:\n"
                + log.decode(errors="replace")
            )
        run.nap(0.3)
    run.log(f"pod {pod.name}: worker online, Prefect reached at {pod.api_url}")


def ensure_supervisor(run: Run, pod: LivePod) -> None:
    """Start the supervisor unless it lives. One that was told to end is started again.

    If the pod really goes, its loss is noticed from the listing. One that is still stopping counts as living: ask
    again.
    """
    status = supervisor_status(pod.connection)
    if status is None or not status["alive"]:
        start_supervisor(pod.connection, boot_document(run, pod.row, pod.api_url))


def tunnel_api(recipe: Recipe, here: str, connection: PodConnection) -> str:
    """URL of the Prefect API as seen from the pod; an adopted pod gets the port its worker already knows.

    here: the API's URL on this machine. Loopback goes through a reverse tunnel, anything else is left as it is.
    """
    here = here.rstrip("/")
    if recipe.api_url or not is_loopback(here):
        return recipe.api_url or here
    if os.environ.get("PREFECT_API_AUTH_STRING") and "PREFECT_API_AUTH_STRING" not in recipe.secrets:
        raise UserError(
            "This Prefect API asks for a password, which a pod does not get: with it, it could read every block. "
            "To hand it over all the same, list PREFECT_API_AUTH_STRING under 'secrets:' in the recipe."
        )
    known = connection.read_if_exists(PORT_FILE)
    remote = int(known) if known and known.strip().isdigit() else 0
    parsed = urlparse(here)
    port = connection.forward_to_pod(parsed.port or 80, remote_port=remote)
    connection.run(f"mkdir -p trainstack && echo {port} > {PORT_FILE}", timeout_s=30)
    return f"http://127.0.0.1:{port}{parsed.path}"


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
