"""See with our own eyes that a stage's last checkpoint is in the store, whole, before its pod is given back."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from plugins.errors import StoreError
from tasks.run import Run
from tasks.stage_contract import StageResult


@task(
    name="sync-checkpoint",
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=lambda _task, _run, state: isinstance(state.result(raise_on_failure=False), StoreError),
    cache_policy=NO_CACHE,
    persist_result=False,
)
def sync_checkpoint(run: Run, result: StageResult) -> str:
    """Check the store's pointer and manifest against the stage's word; returns the checkpoint's URI.

    Raises StoreError when the store does not have the stage's last iteration.
    """
    newest = run.store.latest(result.run_id, result.stage)
    if newest is None or newest.iteration != result.last_iteration:
        found = "nothing" if newest is None else f"iteration {newest.iteration}"
        raise StoreError(
            f"{run.store.uri} names {found} as the newest checkpoint of {result.run_id}/{result.stage}, the stage "
            f"ended at iteration {result.last_iteration}; the pod is kept out of the next steps."
        )
    rows = [{"file": file.path, "bytes": file.size_bytes, "sha256": file.sha256} for file in newest.files]
    run.board.show_table(f"{result.stage}-checkpoint", rows, f"{result.checkpoint_uri}, sealed by {result.attempt}")
    return result.checkpoint_uri
