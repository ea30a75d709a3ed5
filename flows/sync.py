"""The flow `sync-checkpoint`: publish a run's checkpoint on the Hugging Face Hub. Also `trainstack push`."""

from typing import Any

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from blocks.recipe import StageName
from plugins.errors import TrainstackError
from tasks import artifacts
from tasks.push_checkpoint import push_run
from tasks.stage_contract import artifact_key, run_tag


@flow(name="sync-checkpoint", persist_result=False)
def sync_checkpoint(
    run_id: str,
    to: str,
    stage: StageName | None = None,
    iteration: int | None = None,
    public: bool = False,
    whole: bool = False,
) -> State[Any]:
    """Push a sealed checkpoint to a model repo, through the run's pod while it lives, else from the store.

    Args:
        run_id: The run.
        to: hub://user/repo or hub://user/repo@branch; made when missing, private.
        stage: sft or rl. Empty: the later stage that has a checkpoint.
        iteration: Which one. Empty: the newest.
        public: Make the repo public, if it must be made.
        whole: Optimizer and data state too, not the weights only.
    """
    logger = get_run_logger()
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=sorted({*flow_run.tags, f"push:{run_tag(run_id)}"}))
        try:
            done = push_run(
                client, run_id, to, stage=stage, iteration=iteration, log=logger.info, public=public, whole=whole
            )
        except TrainstackError as error:
            return Failed(message=f"{type(error).__name__}: {error}")
        key = artifact_key(run_id, "push")
        artifacts.put_table(client, flow_run.id, key, [done], f"A checkpoint of {run_id} on the Hub")
    return Completed(message=f"{done['url']} (revision {done['revision']})")
