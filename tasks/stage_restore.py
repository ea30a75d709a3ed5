"""Where an attempt starts from: the newest checkpoint there is anywhere, or the weights of `stage_weights.py`."""

import time
from collections.abc import Callable

from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.publisher import seal_as
from plugins.checkpoints.restore import restore
from plugins.checkpoints.stores.several import SeveralStores
from plugins.errors import Fenced, StoreError, TornCheckpoint, UserError
from plugins.slime import layout
from tasks.stage_attempt import Stage

SILENCE_LOOK_S = 5.0
NEAR = ("folder", "volume")


def find_start(stage: Stage, stores: SeveralStores) -> None:
    """Bring the checkpoint to go on from into the save dir (`stage.restored`); None there for a cold start.

    Raises UserError, StoreError, StageEnded.
    """
    _await_silent_stores(stage, stores)
    _rescue(stage, stores)
    stage.restored = _restore(stage, stores)


def claim(stage: Stage, stores: SeveralStores) -> None:
    """Announce this attempt to the stores; when none answers, wait for one as long as the recipe says.

    Raises Fenced, StoreError, StageEnded.
    """
    order = stage.order
    for store in stores.members:
        if store.uri.startswith("volume:"):
            try:
                store.check()  # only here can it be seen; another store is always beside it
            except StoreError as error:
                stage.warning = f"the volume cannot be used: {error}"
                stage.log(f"WARNING {stage.warning}")

    def claimed() -> bool:
        stores.claim(order.run_id, order.stage, order.attempt)
        return True

    _wait_for_stores(stage, claimed)


def _await_silent_stores(stage: Stage, stores: SeveralStores) -> None:
    """A store that does not answer may have a newer checkpoint than the others: wait for it a while, not for ever."""
    order, newest = stage.order, None

    def enough() -> bool:
        nonlocal newest
        newest = max((one.iteration for one in stores.list(order.run_id, order.stage)), default=None)
        return not stores.silent or (newest is not None and (order.durable is None or newest >= order.durable))

    if not _wait_for_stores(stage, enough):
        stage.log(
            f"WARNING {', '.join(stores.silent)} does not answer; going on from iteration {newest}, although iteration "
            f"{order.durable} was durable once"
        )


def _wait_for_stores(stage: Stage, ready: Callable[[], bool]) -> bool:
    """Ask again and again until `ready`; False when the recipe's patience is over.

    Raises StoreError when the last try did, Fenced at once, StageEnded when this attempt is ended meanwhile.
    """
    deadline = time.monotonic() + stage.order.recipe.checkpoint.store_patience_minutes * 60
    while True:
        try:
            if ready():
                return True
            if time.monotonic() >= deadline:
                return False
        except Fenced:
            raise
        except StoreError as error:
            if time.monotonic() >= deadline:
                raise
            stage.log(f"WARNING {error}; trying again")
        stage.beat()
        stage.check_ended()
        time.sleep(SILENCE_LOOK_S)


def _rescue(stage: Stage, stores: SeveralStores) -> None:
    """Seal what a killed attempt completed on this pod, so that its work is not repeated; a near store gets it now.

    The other stores get it in the background: a new attempt must not wait for the slowest of them.
    """
    order = stage.order
    if stage.unproved_mark.exists():
        stage.log("what the interrupted attempt saved is not used: where it had started from was not proved")
        stage.unproved_mark.unlink()
        return
    try:
        newest = stores.latest(order.run_id, order.stage)
        complete = layout.complete_iterations(
            stage.save_dir, kind=stage.kind, dataset_state=stage.kind == "slime", export=stage.export
        )
        left = max(complete, default=None)
        torn = [number for number in layout.list_iterations(stage.save_dir) if left is None or number > left]
        if torn:
            stage.log(f"the interrupted attempt left an incomplete checkpoint, which is not used: iteration {torn[-1]}")
        if left is None or (newest is not None and newest.iteration >= left):
            return
        manifest = seal_as(stage.origin(None), stage.save_dir, left)
        stage.log(f"iteration {left} of an interrupted attempt was complete: sealed")
        near = [store for store in stores.members if store.uri.partition(":")[0] in NEAR]
        if near:
            stage.log(f"iteration {left} is durable at {near[0].put(manifest, stage.save_dir)}")
    except TornCheckpoint as error:
        stage.log(f"a checkpoint of the interrupted attempt is not used: {error}")


def _restore(stage: Stage, stores: SeveralStores) -> Manifest | None:
    """The newest checkpoint that verifies, put into the save dir; None only for a stage that never had one."""
    order = stage.order
    before = stores.list(order.run_id, order.stage)
    restored = restore(stores, order.run_id, order.stage, stage.save_dir)
    if before and restored not in before[:1]:
        left = stores.list(order.run_id, order.stage)
        if broken := [one.iteration for one in before if one not in left]:
            stage.warning = f"damaged in the store and set aside: iteration {', '.join(map(str, broken))}"
            stage.log(f"WARNING {stage.warning}")
    if restored is None and (before or order.durable is not None):
        raise UserError(
            f"No checkpoint of {order.run_id}/{order.stage} in {stores.uri} can be restored, although there were some "
            f"(durable before: iteration {order.durable}). Damaged ones are set aside there with the reason. To start "
            "from zero, use a new run id."
        )
    if restored is not None:
        stage.log(f"restored iteration {restored.iteration}, sealed by attempt {restored.attempt}")
    return restored
