"""`trainstack stop`: cancel a run wherever it is steered from, and see that no pod of it stays.

A living pipeline gives its pods back itself, after sealing. For a pipeline that was killed it is done from here: the
tunnel is opened again, so that the stage hears of the cancel and seals what is complete.
"""

import time
from collections.abc import Iterator

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Cancelling

from blocks.recipe import Recipe
from plugins.errors import ControlPlaneError, UserError
from plugins.lium.pods import PodRow
from plugins.lium.tunnel import PodConnection, known_hosts_file
from tasks import artifacts
from tasks.api_door import ApiDoor
from tasks.cluster_link import open_link
from tasks.control_plane import is_pipeline, runs_of, set_state
from tasks.lium_account import open_account
from tasks.prefect_board import PrefectBoard
from tasks.provision_pod import pods_of, run_of
from tasks.release_pod import release_pods
from tasks.run import Run
from tasks.stage_contract import artifact_key
from tasks.steering import bury_dead_pipelines
from tasks.stores import stores_here

PIPELINE_ENDS_S = 60.0
STAGE_ENDS_S = 30.0
CONNECT_S = 15.0


def stop_run(run_id: str) -> Iterator[str]:
    """Stop a run; yields a line for each thing done. Raises UserError for an unknown run."""
    with get_client(sync_client=True) as client:
        found = runs_of(client, run_id)
        if not found:
            raise UserError(f"No run '{run_id}' is known to this Prefect API.")
        pipelines = bury_dead_pipelines(client, run_id)
        for pipeline in pipelines:
            set_state(client, pipeline.id, Cancelling(message="trainstack stop"))
        yield from _wait(client, pipelines, "pipeline", PIPELINE_ENDS_S)
        recipe = _recipe_of(client, run_id)
        if recipe is None:
            yield "nothing was rented: the run ended before its recipe was recorded"
            return
        account = open_account(recipe)
        said: list[str] = []
        with ApiDoor(recipe, str(client.api_url), said.append) as door:
            run = Run(
                run_id,
                recipe,
                board=PrefectBoard(client, run_id, found[0].id),
                account=account,
                store=stores_here(recipe),
                log=said.append,
                open_link=lambda run, row: open_link(run, row, door),
            )
            stages = [stage for stage in runs_of(client, run_id) if not is_pipeline(stage) and _alive(stage)]
            tunnels = [_reach(run, door, pod) for pod in pods_of(account, run_id) if pod.reachable] if stages else []
            try:
                for stage in stages:
                    set_state(client, stage.id, Cancelling(message="trainstack stop"))
                yield from _wait(client, stages, "stage", STAGE_ENDS_S)
            finally:
                for tunnel in tunnels:
                    tunnel.close()
            release_pods.fn(run, None)
            _end_warm(run)
        yield from said or ["no pod of this run is left"]
        yield from _settle(client, run_id)


def _reach(run: Run, door: ApiDoor, pod: PodRow) -> PodConnection:
    """Open the way back to Prefect for a stage whose pipeline was killed, so that it hears of the cancel."""
    connection = PodConnection(pod, run.account.settings.ssh_key_path, known_hosts_file(pod.id))
    try:
        connection.connect(CONNECT_S)
        door.url_on_pod(connection)
    except ControlPlaneError:
        connection.close()  # then the stage cannot hear us; its pod is ended all the same
    return connection


def _end_warm(run: Run) -> None:
    for warm in run.board.warm_pods():
        if run_of(warm.name) == run.run_id and warm.claimed_by is None and run.board.claim_warm(warm.name):
            run.account.release(warm.name, [warm.pod_id])
            run.board.forget_warm(warm.name)
            run.log(f"pod {warm.name}, which was held warm, given back")


def _wait(client: SyncPrefectClient, runs: list[FlowRun], what: str, timeout_s: float) -> Iterator[str]:
    """Wait for flow runs to end; one that nobody answers for is set Cancelled by force, which is then the truth."""
    deadline = time.monotonic() + timeout_s
    for run in runs:
        while _alive(client.read_flow_run(run.id)) and time.monotonic() < deadline:
            time.sleep(0.5)
        if _alive(client.read_flow_run(run.id)):
            message = f"trainstack stop: nobody answered for {timeout_s:.0f} s"
            set_state(client, run.id, Cancelled(message=message), force=True)
            yield f"{what} {run.name}: does not answer, set Cancelled"
        else:
            yield f"{what} {run.name}: {client.read_flow_run(run.id).state_name}"


def _settle(client: SyncPrefectClient, run_id: str) -> Iterator[str]:
    """A pipeline that died is Crashed so far; the person's word is newer and says Cancelled."""
    newest = next((run for run in runs_of(client, run_id) if is_pipeline(run)), None)
    if newest is not None and newest.state is not None and newest.state.is_crashed():
        set_state(client, newest.id, Cancelled(message="trainstack stop, after its process was gone"), force=True)
        yield f"pipeline {newest.name}: Cancelled"


def _recipe_of(client: SyncPrefectClient, run_id: str) -> Recipe | None:
    """The recipe that the run recorded before it rented anything."""
    text = artifacts.json_of(artifacts.newest(client, artifact_key(run_id, "recipe")))
    return Recipe.model_validate_json(text) if text else None


def _alive(flow_run: FlowRun) -> bool:
    return flow_run.state is None or not flow_run.state.is_final()
