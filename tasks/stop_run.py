"""`trainstack stop`: cancel a run wherever it is steered from, and see that no pod of it stays.

A living pipeline gives its pods back itself, after sealing; a pipeline that was killed cannot, so its stage and its
pods are ended from here.
"""

import time
from collections.abc import Iterator

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Cancelling

from blocks.recipe import Recipe
from plugins.errors import UserError
from plugins.lium.pods import TERMINAL_STATUSES
from tasks.control_plane import runs_of, set_state, tag_value
from tasks.lium_account import open_account
from tasks.provision_pod import pod_prefix

PIPELINE_ENDS_S = 60.0
STAGE_ENDS_S = 30.0


def stop_run(run_id: str) -> Iterator[str]:
    """Stop a run; yields a line for each thing done. Raises UserError for an unknown run."""
    with get_client(sync_client=True) as client:
        found = runs_of(client, run_id)
        if not found:
            raise UserError(f"No run '{run_id}' is known to this Prefect API.")
        pipelines = [run for run in found if tag_value(run, "stage") is None and _alive(run)]
        stages = [run for run in found if tag_value(run, "stage") and _alive(run)]
        for pipeline in pipelines:
            set_state(client, pipeline.id, Cancelling(message="trainstack stop"))
        yield from _wait(client, pipelines, "pipeline", PIPELINE_ENDS_S)
        stages = [run for run in stages if _alive(client.read_flow_run(run.id))]
        for stage in stages:
            set_state(client, stage.id, Cancelling(message="trainstack stop"))
        yield from _wait(client, stages, "stage", STAGE_ENDS_S)
        yield from _return_pods(found, run_id)


def _wait(client: SyncPrefectClient, runs: list[FlowRun], what: str, timeout_s: float) -> Iterator[str]:
    """Wait for flow runs to end; one that nobody answers for is set Cancelled by force, which is then the truth."""
    deadline = time.monotonic() + timeout_s
    for run in runs:
        while _alive(client.read_flow_run(run.id)) and time.monotonic() < deadline:
            time.sleep(0.5)
        if _alive(client.read_flow_run(run.id)):
            set_state(
                client, run.id, Cancelled(message=f"trainstack stop: nobody answered for {timeout_s:.0f} s"), force=True
            )
            yield f"{what} {run.name}: its process is gone, set Cancelled"
        else:
            yield f"{what} {run.name}: {client.read_flow_run(run.id).state_name}"


def _return_pods(found: list[FlowRun], run_id: str) -> Iterator[str]:
    recipe = next((r for r in map(_recipe_of, found) if r is not None), None)
    if recipe is None:
        yield "no recipe is recorded for this run, so its pods were not looked for"
        return
    account = open_account(recipe)
    mine = [pod for pod in account.pods(pod_prefix(run_id)) if pod.status not in TERMINAL_STATUSES]
    for pod in mine:
        account.release(pod.name)
        yield f"pod {pod.name} given back"
    if not mine:
        yield "no pod of this run is left"


def _recipe_of(flow_run: FlowRun) -> Recipe | None:
    """The recipe from a flow run's parameters: a stage's order carries it, a pipeline may name a file instead."""
    parameters = flow_run.parameters or {}
    raw = (parameters.get("order") or {}).get("recipe") or parameters.get("recipe")
    try:
        return Recipe.model_validate(raw)
    except ValueError:
        return None


def _alive(flow_run: FlowRun) -> bool:
    return flow_run.state is None or not flow_run.state.is_final()
