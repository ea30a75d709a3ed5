"""A pod in hand, over SSH: the way back to the Prefect API, the preflight, the services, files, a look at processes.

What it starts on the pod is the supervisor (`plugins/lium/supervisor.py`), whose boot document carries the run's
secrets on standard input. The pod reaches Prefect through the gateway and nothing else.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blocks.recipe import Recipe
from plugins.errors import ControlPlaneError, PodLost, StoreError, UserError
from plugins.lium.bootstrap import start_supervisor, stop_supervisor, supervisor_status
from plugins.lium.liveness import Probe
from plugins.lium.pods import PodRow
from plugins.lium.preflight import Check, Limits, preflight
from plugins.lium.tunnel import PodConnection, known_hosts_file
from plugins.rayjobs.settings import LOOPBACK
from tasks.api_door import ApiDoor
from tasks.checkpoint_size import checkpoint_gb, most_at_once
from tasks.nodes import RAY_STATE, node_env, node_name
from tasks.run import Run
from tasks.stage_contract import WORK_POOL
from tasks.stores import store_env

CONNECT_S = 120.0
WORKER_S = 180.0
PROBE_S = 10.0  # the steering loop waits for it; no answer is asked again, and counts only after unreachable_after_s


class SshLink:
    """The real `PodLink` (see `tasks/run.py`)."""

    def __init__(self, run: Run, row: PodRow, connection: PodConnection, door: ApiDoor) -> None:
        self.row, self.connection = row, connection
        self._run, self._door = run, door
        self.api_url = door.url_on_pod(connection)

    @property
    def name(self) -> str:
        """The pod's name."""
        return self.row.name

    def preflight(self) -> list[Check]:
        """Look at GPUs, disk, network, clock and the way to the API."""
        limits = limits_of(self._run.recipe, self.api_url, checkpoint_gb(self._run))
        return preflight(self.connection, limits, self._run.clock.now)

    def ensure_worker(self) -> None:
        """See that supervisor, Ray and worker run on the pod, and wait until the worker is online."""
        run = self._run
        run.board.open_queue(self.name)
        self.ensure_supervisor()
        began = run.clock.monotonic()
        while not run.board.worker_online(self.name):
            if run.clock.monotonic() - began > WORKER_S:
                log = self.connection.run(["tail", "-n", "15", "trainstack/worker.log"], timeout_s=30).stdout
                raise PodLost(
                    f"the Prefect worker of pod {self.name} did not come online in {WORKER_S:.0f} s. Its log's end:\n"
                    + log.decode(errors="replace")
                )
            run.nap(0.3)
        run.log(f"pod {self.name}: worker online, Prefect reached at {self.api_url}")

    def ensure_supervisor(self) -> None:
        """Start the supervisor unless it lives. One that was told to end is started again.

        If the pod really goes, its loss is noticed from the listing. One that is still stopping counts as living: ask
        again.
        """
        status = supervisor_status(self.connection, timeout_s=PROBE_S)
        if status is None or not status["alive"]:
            start_supervisor(self.connection, self._boot_document(), home=self._run.recipe.pod.home)

    def stop_services(self) -> None:
        """End everything of ours on the pod, with the secrets in it."""
        stop_supervisor(self.connection)

    def probe(self, attempt_id: object) -> Probe:
        """Whether a process of the attempt runs on the pod."""
        marker = f"PREFECT__FLOW_RUN_ID={attempt_id}"
        seen = self.connection.run(f"grep -lsz '^{marker}$' /proc/[0-9]*/environ", timeout_s=PROBE_S)
        return Probe.RUNNING if seen.stdout.strip() else Probe.GONE

    def check_nodes(self) -> None:
        """A single pod has no further nodes; see `cluster_link.py`."""

    def shut_out(self) -> None:
        """Take the pod's way to Prefect away."""
        self._door.shut(self.name)

    def upload(self, files: Sequence[tuple[Path, str]]) -> list[str]:
        """Put files on the pod under names that contain their digest, so that one already there is not sent twice."""
        folder, placed = self.data_dir() if files else "", []
        for local, digest in files:
            remote = f"{folder}/{digest[:16]}/{local.name}"
            if self.connection.run(["test", "-f", remote], timeout_s=60).rc != 0:
                self.connection.upload(local, remote)
            placed.append(remote)
        return placed

    def data_dir(self) -> str:
        """Absolute path of the folder for uploaded data on the pod."""
        home = self.connection.run(["sh", "-c", 'printf %s "$HOME"'], timeout_s=60).stdout.decode()
        return f"{home}/trainstack/data"

    def close(self) -> None:
        """End the connection; the pod lives on."""
        self.connection.close()

    def _boot_document(self) -> dict[str, Any]:
        return boot_document(self._run.recipe, self._run.run_id, self.row, self._door.pod_env(self.row, self.api_url))


def open_link(run: Run, row: PodRow, door: ApiDoor) -> SshLink:
    """Connect to a pod that is ready. PodLost: SSH does not answer; UserError: the store is not shared with it."""
    connection = connect(run, row)
    try:
        check_store_is_shared(run, connection)
        return SshLink(run, row, connection, door)
    except BaseException:  # also Ctrl-C: its thread must not stay
        connection.close()
        raise


def connect(run: Run, row: PodRow) -> PodConnection:
    """An SSH connection to one pod. Raises PodLost when it does not answer."""
    connection = PodConnection(row, run.account.settings.ssh_key_path, known_hosts_file(row.id))
    try:
        connection.connect(max(CONNECT_S, run.recipe.pod.unreachable_after_s))
    except ControlPlaneError as error:
        connection.close()
        raise PodLost(f"SSH does not answer: {error}") from error
    except BaseException:  # also Ctrl-C: its thread must not stay
        connection.close()
        raise
    return connection


def limits_of(recipe: Recipe, api_url: str | None, checkpoint_gb: float | None = None) -> Limits:
    """What the preflight holds a pod of this recipe to."""
    pod, own = recipe.pod, recipe.pod.preflight
    _, at, digest = (pod.image or "").partition("@")
    return Limits(
        gpu=tuple(pod.gpus),
        gpu_count=pod.gpu_count,
        min_gpu_memory_free=own.min_gpu_memory_free,
        min_driver=pod.min_driver,
        min_cuda=pod.min_cuda,
        min_disk_gb=pod.min_disk_gb,
        min_disk_write_mb_s=own.min_disk_write_mb_s,
        min_download_mbps=own.min_download_mbps or pod.min_download_mbps,
        download_url=own.download_url,
        checkpoint_gb=checkpoint_gb,
        checkpoints=most_at_once(recipe),
        max_clock_skew_s=own.max_clock_skew_s,
        min_shm_gb=own.min_shm_gb,
        api_url=api_url,
        image_digest=digest if at else None,
    )


def check_store_is_shared(run: Run, connection: PodConnection) -> None:
    """A folder store must be the same folder here and on the pod.

    Raises UserError: a checkpoint would die with the pod.
    """
    for uri in run.recipe.checkpoint.stores:
        kind, _, folder = uri.partition(":")
        if kind == "folder":
            _check_shared(uri, Path(folder), connection)


def _check_shared(uri: str, folder: Path, connection: PodConnection) -> None:
    probe = folder / f".seen-by-{connection.row.name}"
    try:
        probe.touch()
        seen = connection.run(["test", "-f", str(probe)], timeout_s=30).rc == 0
    except OSError as error:
        raise StoreError(f"{uri} cannot be written: {error}") from error
    finally:
        probe.unlink(missing_ok=True)
    if not seen:
        raise UserError(
            f"checkpoint.store {uri} is not the same folder on pod {connection.row.name}, so its "
            "checkpoints would be lost with the pod. On the emulator use the default store; a rented pod cannot see "
            "this machine's folders."
        )


def boot_document(recipe: Recipe, run_id: str, row: PodRow, api_env: dict[str, str]) -> dict[str, Any]:
    """What the supervisor gets on standard input: services, and the environment with the secrets.

    api_env: how the pod reaches the Prefect API.
    """
    env = {
        **store_env(recipe),
        **own_secrets(recipe),
        **api_env,
        "PREFECT_CLIENT_MAX_RETRIES": "9",
        "PREFECT_WORKER_QUERY_SECONDS": "0.5",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
        "PREFECT_WORKER_PREFETCH_SECONDS": "0",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "plugins",  # a damaged checkpoint, a store without locks: in the stage's log
        "DO_NOT_TRACK": "1",
        "TRAINSTACK_RUN_ID": run_id,
        "TRAINSTACK_POD": row.name,
        **node_env(row),
    }
    ray = ray_argv(recipe, "head", row, row)
    worker = ["python", "-m", "prefect", "worker", "start", "--pool", WORK_POOL, "--work-queue", row.name]
    worker += ["--limit", "1", "--name", row.name]
    services = [{"name": "worker", "argv": worker}, {"name": "ray", "argv": ray}]
    return {"pod": row.name, "state_dir": "~/trainstack", "env": env, "services": services, "grace_s": 25}


def own_secrets(recipe: Recipe) -> dict[str, str]:
    """The variables that the recipe names as secrets. Raises UserError for one that is not set here."""
    missing = [name for name in recipe.secrets if not os.environ.get(name)]
    if missing:
        raise UserError(f"The recipe's 'secrets:' names {', '.join(missing)}, which this environment does not have.")
    return {name: os.environ[name] for name in recipe.secrets}


def ray_argv(recipe: Recipe, program: str, pod: PodRow, node: PodRow) -> list[str]:
    """Command line of a pod's Ray: "head", or "worker" on the further nodes of a cluster; `node` is the one it is for.

    slime's bundles are 1 CPU for each GPU, and its own actors take two more (slime.md 1.3); less waits for ever.
    """
    gpus = recipe.pod.gpu_count
    cpus = max(recipe.pod.ray_cpus, gpus + 4) if recipe.trainer.kind == "slime" else recipe.pod.ray_cpus
    argv = ["python", "-m", f"plugins.rayjobs.{program}", "--state", RAY_STATE, "--num-cpus", str(cpus)]
    if recipe.trainer.kind == "slime":
        argv += ["--num-gpus", str(gpus), "--cwd", recipe.trainer.slime_dir, "--python", recipe.trainer.python]
    if recipe.trainer.kind == "command":  # its driver is the image's python, so its actors must be too
        argv += ["--cwd", recipe.trainer.slime_dir, "--python", recipe.trainer.python, "--or-own"]
    if pod.members:
        argv += ["--node-name", node_name(pod.ids.index(node.id)), "--node-ip", node.overlay_ip or LOOPBACK]
    return argv
