"""Push a checkpoint of a run to the Hugging Face Hub: by the pod that holds it, or from the store.

a pod lives     through it: it has the bytes, also those that are not durable yet, and the network
no pod left     from the store, through a temporary folder of this machine
"""

import json
from collections.abc import Callable
from typing import Any

from prefect.client.orchestration import SyncPrefectClient

from blocks.recipe import Recipe
from plugins.checkpoints.stores import CheckpointStore
from plugins.errors import ControlPlaneError, StoreError, UserError
from plugins.lium.bootstrap import run_module
from plugins.lium.pods import PodRow
from plugins.lium.tunnel import PodConnection, known_hosts_file
from tasks import artifacts
from tasks.lium_account import account_of
from tasks.pod_ledger import read_ledger
from tasks.push_files import STAGES, as_data, push_from_store
from tasks.stage_contract import artifact_key
from tasks.stores import hub_env, stores_here

CONNECT_S, PUSH_S = 30.0, 4 * 3600.0
HERE = "tasks.push_here"


def push_run(
    client: SyncPrefectClient,
    run_id: str,
    to: str,
    *,
    stage: str | None = None,
    iteration: int | None = None,
    log: Callable[[str], None],
    **how: Any,
) -> dict[str, Any]:
    """Push a checkpoint of a run through its pod if one lives, else from the store; where it is now, as data.

    Raises UserError for a run that is not known, a checkpoint that is nowhere, a target that will not do.
    """
    recipe = recipe_of(client, run_id)
    env = hub_env(recipe)
    store = stores_here(recipe, log)
    wanted = (run_id, stage, iteration)
    pod = _living_pod(client, recipe, run_id)
    if pod is not None:
        try:
            return _push_through(pod, recipe, wanted, to, env, log, how)
        except (ControlPlaneError, UserError) as error:
            if not _stored(store, *wanted):
                raise
            log(f"WARNING not through pod {pod.name} ({error}); pushing from {store.uri}")
    base = recipe.model.hf_checkpoint
    return as_data(push_from_store(store, *wanted, to, base_model=base, **how))


def recipe_of(client: SyncPrefectClient, run_id: str) -> Recipe:
    """The recipe that a run recorded. Raises UserError when there is none."""
    text = artifacts.json_of(artifacts.newest(client, artifact_key(run_id, "recipe")))
    if text is None:
        raise UserError(f"Run '{run_id}' is not known to the Prefect API at {client.api_url}. See `trainstack status`.")
    return Recipe.model_validate_json(text)


def _stored(store: CheckpointStore, run_id: str, stage: str | None, iteration: int | None) -> bool:
    try:
        held = [one for name in ((stage,) if stage else STAGES) for one in store.list(run_id, name)]
    except StoreError:
        return False
    return any(iteration in (None, one.iteration) for one in held)


def _living_pod(client: SyncPrefectClient, recipe: Recipe, run_id: str) -> PodRow | None:
    open_rows = [row for row in read_ledger(client, run_id) if row["id"] is not None and row["ended_at"] is None]
    if not open_rows:
        return None
    try:
        pod = account_of(recipe.lium).look_up(open_rows[-1]["id"])
    except (ControlPlaneError, UserError):
        return None
    return pod if pod is not None and pod.reachable else None


def _push_through(
    pod: PodRow,
    recipe: Recipe,
    wanted: tuple[str, str | None, int | None],
    to: str,
    env: dict[str, str],
    log: Callable[[str], None],
    how: dict[str, Any],
) -> dict[str, Any]:
    """Let the pod push what it holds. The token travels on standard input."""
    connection = PodConnection(pod, account_of(recipe.lium).settings.ssh_key_path, known_hosts_file(pod.id))
    order = {"wanted": wanted, "to": to, "how": {**how, "base_model": recipe.model.hf_checkpoint}, "env": env}
    try:
        connection.connect(CONNECT_S)
        log(f"pushing through pod {pod.name}")
        done = run_module(connection, HERE, json.dumps(order).encode(), PUSH_S)
    finally:
        connection.close()
    try:
        answer = dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        said = done.stderr.decode(errors="replace")[-500:]
        raise ControlPlaneError(f"pod {pod.name} gave no answer to a push (exit code {done.rc}): {said}") from None
    if "error" in answer:
        raise UserError(f"pod {pod.name}: {answer['error']}")
    return answer
