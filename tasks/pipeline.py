"""A run as a Prefect flow: every pipeline flow is this with other stages.

Opens what the chain needs (`chain.py` steers), records lineage and recipe, and shows how the run ended: state, summary,
report, assets.
"""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment
from prefect.runtime import flow_run as runtime
from prefect.states import Cancelled, Completed, Failed

from blocks.recipe import Recipe, StageName, check_run_id, load_recipe, resolve
from plugins.checkpoints.manifest import Manifest
from plugins.datasets.hub import source_of
from plugins.errors import TrainstackError
from tasks import artifacts
from tasks.api_door import ApiDoor
from tasks.assets import show_asset
from tasks.chain import carry_stages
from tasks.check_recipe import Checked, check_recipe_task
from tasks.cluster_link import open_link
from tasks.control_plane import ensure_deployments
from tasks.lium_account import git_commit, open_account
from tasks.local_servers import CODE_ROOT
from tasks.model_shape import SHAPE, shape_of
from tasks.prefect_board import CANCEL_TYPES, PrefectBoard
from tasks.report import publish
from tasks.run import Run, RunCancelled, RunEnded
from tasks.stage_contract import StageResult, artifact_key, run_tag
from tasks.steering import sole_steering, take_over
from tasks.stores import stores_here


def carry_through(recipe: Recipe | str, stages: list[StageName], run_id: str | None) -> State[Any]:
    """Carry a recipe through these stages inside a flow; the final state is returned, never raised.

    recipe: the model, or the path of its YAML file. run_id: None takes the recipe's name and the flow run's own id.
    """
    logger = get_run_logger()
    own_id = UUID(str(runtime.id))

    def log(message: str) -> None:
        level = logging.WARNING if message.startswith("WARNING ") else logging.INFO
        logger.log(level, message.removeprefix("WARNING "))

    try:
        plan = load_recipe(recipe) if isinstance(recipe, str) else resolve(recipe)
        run_id = check_run_id(run_id or f"{plan.name}-{own_id.hex[:6]}")
        with sole_steering(run_id), get_client(sync_client=True) as client:
            take_over(client, run_id, own_id)
            client.update_flow_run(own_id, tags=sorted({*runtime.tags, run_tag(run_id)}), name=run_id)
            return _carry(client, run_id, plan, stages, own_id, log)
    except RunCancelled as cancelled:
        return Cancelled(message=str(cancelled))
    except (KeyboardInterrupt, TerminationSignal) as signalled:
        by_worker = isinstance(signalled, TerminationSignal) and deployment.id is not None
        if by_worker and not _cancelled_meanwhile(own_id):
            raise  # the worker was told to end, so the run did crash
        how = "Ctrl-C" if isinstance(signalled, KeyboardInterrupt) else "SIGTERM"
        again = f"start it again with --run-id {run_id}" if run_id else "nothing was rented"
        return Cancelled(
            message=f"Run {run_id or ''} was {'cancelled' if by_worker else f'stopped by {how}'}; {again}."
        )
    except RunEnded as ended:
        return Failed(name=ended.state, message=str(ended))
    except TrainstackError as error:
        return Failed(message=f"{type(error).__name__}: {error}")


def _carry(
    client: SyncPrefectClient,
    run_id: str,
    recipe: Recipe,
    stages: list[StageName],
    own_id: UUID,
    log: Callable[[str], None],
) -> State[Any]:
    checked = check_recipe_task(recipe, stages)
    for line in checked.advice:
        log(f"WARNING {line}")
    board = PrefectBoard(client, run_id, own_id)
    document = recipe.model_dump_json(indent=1, exclude_none=True)
    artifacts.put_json(client, own_id, artifact_key(run_id, "recipe"), document, "The recipe as it was resolved")
    ensure_deployments(client)
    store = stores_here(recipe, log)
    account = open_account(recipe)
    with (
        ApiDoor(recipe, str(client.api_url), log) as door,
        Run(
            run_id,
            recipe,
            board=board,
            account=account,
            store=store,
            log=log,
            open_link=lambda run, row: open_link(run, row, door),
        ) as run,
    ):
        run.lineage = _lineage(recipe, checked)
        try:
            results, cost = carry_stages(run, stages, checked)
        finally:
            _guarded(log, lambda: publish(client, run_id, own_id))
        for result in results:
            _guarded(log, partial(_record, run, result, checked))
        summary = {"run_id": run_id, "cost_usd": round(cost, 4), "stages": [r.model_dump(mode="json") for r in results]}
        _summarise(run, results, cost)
        return Completed(message=json.dumps(summary))


def _cancelled_meanwhile(own_id: UUID) -> bool:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(own_id).state
        return state is not None and state.type in CANCEL_TYPES


def _guarded(log: Callable[[str], None], show: Callable[[], None]) -> None:
    try:
        show()
    except Exception as error:  # what is only shown must not change how the run ended
        log(f"WARNING not shown in Prefect: {type(error).__name__}: {error}")


def _record(run: Run, result: StageResult, checked: Checked) -> None:
    """The stage's last checkpoint as an asset, with what it was made from."""
    newest = run.store.latest(result.run_id, result.stage)
    if newest is None:
        return
    data = checked.data.get(result.stage)
    sources = sources_of(newest, data.path if data else None, run.recipe.model.hf_checkpoint)
    show_asset(newest, run.store.uri_of(newest), sources)


def sources_of(manifest: Manifest, data: Path | None, base_model: str | None) -> list[str]:
    """URIs of what a checkpoint was made from: the one before, the data, the weights the stage began with."""
    lineage = manifest.lineage
    base = f"hub://{lineage['base_model']}" if "base_model" in lineage else f"file:{base_model}" if base_model else None
    rows = None if data is None else source_of(data) or f"file:{data}"
    return [source for source in (manifest.parent, rows, lineage.get("init") or base) if source]


def _lineage(recipe: Recipe, checked: Checked) -> dict[str, str]:
    return {
        "recipe": recipe.name,
        "recipe_sha256": recipe.digest(),
        "git_commit": git_commit(CODE_ROOT),
        "image": recipe.pod.image or recipe.pod.template_id or "",
        SHAPE: shape_of(recipe),
        **{f"data_{name}_sha256": data.sha256 for name, data in checked.data.items()},
        **(checked.base.lineage if checked.base else {}),
    }


def _summarise(run: Run, results: list[StageResult], cost: float) -> None:
    lines = [f"# Run {run.run_id}", f"Ended {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Pods cost ${cost:.4f}.", ""]
    lines += ["| stage | iterations | loss | reward | checkpoint |", "|---|---|---|---|---|"]
    for result in results:
        loss, reward = (_span(result, figure) for figure in ("loss", "reward"))
        iterations = f"{result.first_iteration}..{result.last_iteration}"
        lines.append(f"| {result.stage} | {iterations} | {loss} | {reward} | `{result.checkpoint_uri}` |")
    lines += ["", *(f"- pushed: {one.url} ({one.reason})" for result in results for one in result.milestones)]
    lines += [f"- **{line}**" for result in results for line in result.missed]
    run.board.show_markdown("summary", "\n".join(lines))


def _span(result: StageResult, figure: str) -> str:
    if figure not in result.first:
        return ""
    return f"{result.first[figure]:.3f} → {result.last[figure]:.3f}"
