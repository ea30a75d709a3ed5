"""The Prefect side of a run: which API is in use, work pools and deployments in place, and flow runs found by their
tags."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, State, WorkerStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import refresh_global_settings_context
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

from plugins.errors import ControlPlaneError, UserError
from tasks.local_servers import CODE_ROOT, ensure_prefect_server, recorded_url, running
from tasks.stage_contract import STAGE_DEPLOYMENT, WORK_POOL, run_tag, stage_tags

CONTROL_POOL = "control"
REAPER = "reap-pods/lium"
PIPELINES = ("sft-pipeline", "rl-pipeline", "post-training")
TOML = "prefect.toml"
TOML_HEAD = "# written by `trainstack serve`, removed by `trainstack down`\n"
CLIENT_RETRIES = "9"  # up to 17 minutes of back-off: the measured default loses a finished stage in a 130 s outage


def use_api() -> str:
    """The URL of the Prefect API in use; starts the local server when none is configured or ours is down.

    Sets PREFECT_API_URL for this process and its children.
    """
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", CLIENT_RETRIES)
    configured = get_current_settings().api.url
    if configured is None or configured == recorded_url("prefect"):
        configured = ensure_prefect_server()
    os.environ["PREFECT_API_URL"] = configured
    refresh_global_settings_context()
    return configured


def known_api() -> str:
    """The URL of a Prefect API to look things up in. Raises UserError where a server would have to be started."""
    configured = get_current_settings().api.url
    ours = running("prefect")
    if ours is None and configured in (None, recorded_url("prefect")):
        raise UserError(
            "No Prefect API is configured and no local server is running, so no run is known. `trainstack serve` "
            "starts the local one with what earlier runs left; PREFECT_API_URL names another."
        )
    os.environ["PREFECT_API_URL"] = configured or (ours.url if ours else "")
    refresh_global_settings_context()
    return os.environ["PREFECT_API_URL"]


def api_answers(client: SyncPrefectClient) -> bool:
    """Whether the API answers now: asked without the client's own minutes of retries."""
    try:
        return httpx.get(f"{str(client.api_url).rstrip('/')}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False


def write_prefect_toml(api_url: str) -> None:
    """Let the `prefect` command in this folder find the local server; `trainstack down` takes the file away again."""
    file = Path.cwd() / TOML
    if not file.exists() or file.read_text().startswith(TOML_HEAD):
        file.write_text(f'{TOML_HEAD}[api]\nurl = "{api_url}"\n')


def remove_prefect_toml() -> None:
    """Take away the file of `write_prefect_toml`; one that a person wrote stays."""
    file = Path.cwd() / TOML
    if file.exists() and file.read_text().startswith(TOML_HEAD):
        file.unlink()


def ensure_deployments(client: SyncPrefectClient) -> None:
    """Create the work pools and deploy what `prefect.yaml` names, unless this version of it is there already."""
    for pool in (WORK_POOL, CONTROL_POOL):
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            with suppress(ObjectAlreadyExists):  # another flow may make it at the same moment
                client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
    version = _code_version()
    try:
        if client.read_deployment_by_name(STAGE_DEPLOYMENT).version == version:
            return
    except ObjectNotFound:
        pass
    argv = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "prefect.yaml"]
    env = {**os.environ, "TRAINSTACK_VERSION": version, "PREFECT_API_URL": str(client.api_url).rstrip("/")}
    done = subprocess.run(argv, cwd=CODE_ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise ControlPlaneError(f"Deploying prefect.yaml failed:\n{(done.stdout + done.stderr)[-2000:]}")
    if str(client.api_url).rstrip("/") == recorded_url("prefect"):
        activate_reaper(client, running("worker") is not None)


def activate_reaper(client: SyncPrefectClient, active: bool = True) -> None:
    """Turn the schedule of `reap-pods` on or off: without a worker for pipelines its runs would only pile up."""
    deployment = client.read_deployment_by_name(REAPER)
    for schedule in deployment.schedules:
        client.update_deployment_schedule(deployment.id, schedule.id, active=active)


def stage_runs(client: SyncPrefectClient, run_id: str, stage: str) -> list[FlowRun]:
    """Flow runs of a stage's attempts, newest attempt first."""
    found = _tagged(client, stage_tags(run_id, stage, 0)[:2])
    return sorted(found, key=attempt_of, reverse=True)


def runs_of(client: SyncPrefectClient, run_id: str) -> list[FlowRun]:
    """Every flow run of a run, newest first: pipelines and stages."""
    return _tagged(client, [run_tag(run_id)])


def recent_pipelines(client: SyncPrefectClient, limit: int) -> list[FlowRun]:
    """The newest flow runs of pipelines, whatever their run."""
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=list(PIPELINES))),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=min(limit, 200),
    )


def is_pipeline(flow_run: FlowRun) -> bool:
    """Whether a flow run of a run is its pipeline, not one of its stages."""
    return tag_value(flow_run, "stage") is None


def attempt_of(flow_run: FlowRun) -> int:
    """Attempt number from a stage run's tags; 0 when it has none."""
    return next((int(tag.removeprefix("attempt:")) for tag in flow_run.tags if tag.startswith("attempt:")), 0)


def tag_value(flow_run: FlowRun, name: str) -> str | None:
    """Value of a `name:value` tag."""
    return next((tag.partition(":")[2] for tag in flow_run.tags if tag.startswith(f"{name}:")), None)


def set_state(client: SyncPrefectClient, flow_run_id: UUID, state: State[Any], *, force: bool = False) -> None:
    """Propose a state for a flow run; `force` skips Prefect's rules (a lost attempt cannot report itself)."""
    client.set_flow_run_state(flow_run_id, state, force=force)


def worker_online(client: SyncPrefectClient, name: str) -> bool:
    """Whether the worker of that name is online in the pods' pool."""
    return any(w.name == name and w.status == WorkerStatus.ONLINE for w in client.read_workers_for_work_pool(WORK_POOL))


def _tagged(client: SyncPrefectClient, tags: Iterable[str]) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=list(tags))),
        sort=FlowRunSort.START_TIME_DESC,
        limit=200,
    )


def _code_version() -> str:
    """Digest of everything that a deployment's stored form depends on: flow signatures, parameter schemas,
    prefect.yaml.
    """
    files = [CODE_ROOT / "prefect.yaml", CODE_ROOT / "blocks/recipe.py", CODE_ROOT / "tasks/stage_contract.py"]
    digest = hashlib.sha256(str(CODE_ROOT).encode())
    for file in [*files, *sorted(Path(CODE_ROOT / "flows").glob("*.py"))]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
