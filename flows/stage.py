"""The flow `slime-stage`: one attempt of one stage, run by the Prefect worker of the pod it belongs to.

One flow run is one attempt and is never scheduled again. It ends Completed with its `StageResult` as the message,
Failed with a message a person can act on, Cancelled when it was cancelled, or Crashed when it was terminated.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Crashed, Failed

from plugins.errors import Fenced, TrainstackError
from tasks import artifacts
from tasks.line_budget import LineBudget
from tasks.nodes import stage_root
from tasks.plain_text import plain
from tasks.redact import redactor
from tasks.stage_attempt import Stage, StageEnded
from tasks.stage_contract import StageOrder, StageResult, artifact_key
from tasks.stage_page import stage_page
from tasks.stage_reporter import StageReporter
from tasks.stores import SECRET_NAMES
from tasks.train_stage import train_stage

LONGEST_LINE = 2000
LOGS_S = 10.0
CANCEL_STATES = frozenset({"Cancelling", "Cancelled"})


@flow(name="slime-stage", retries=0, persist_result=False)
def slime_stage(order: StageOrder) -> State[Any]:
    """Train one stage on this pod: restore, start the trainer, follow it, seal and publish its checkpoints."""
    try:
        return _carry_through(order)
    finally:
        APILogWorker.drain_all(timeout=LOGS_S)  # the pod may be given back as soon as the final state is known


def _carry_through(order: StageOrder) -> State[Any]:
    logger = get_run_logger()
    redact = redactor([*order.recipe.secrets, *SECRET_NAMES])
    own_id, budget = UUID(str(flow_run.id)), LineBudget()

    def log(message: str) -> None:
        text = redact(message)
        (logger.warning if text.startswith("WARNING ") else logger.info)(text.removeprefix("WARNING "))

    def trainer_log(line: str) -> None:
        line = redact(plain(line))  # before anything is cut: half a secret is not found
        for one in budget.take(line) if line.strip() else ():
            logger.info(one[:LONGEST_LINE])

    with StageReporter(order.run_id, own_id, interval_s=order.recipe.heartbeat_s, log=log) as reporter:
        stage = Stage(order, reporter, log, trainer_log, root=stage_root(order.recipe))
        reporter.page = lambda: _page(stage)
        try:
            result = train_stage(stage)
        except StageEnded as ended:
            reason = reporter.ended_from_outside()
            return Cancelled(message=str(ended)) if reason in CANCEL_STATES else Crashed(message=str(ended))
        except Fenced as fenced:
            return Crashed(message=f"Superseded by a newer attempt: {fenced}")
        except TrainstackError as error:
            return Failed(message=plain(redact(f"{type(error).__name__}: {error}")))
        finally:
            for line in budget.rest():
                log(line)
            _guarded(log, lambda: _draw(stage, own_id))
        _guarded(log, lambda: _publish(result, own_id))
    return Completed(message=result.model_dump_json())


def _guarded(log: Callable[[str], None], show: Callable[[], None]) -> None:
    try:
        show()
    except Exception as error:  # a picture or a table that cannot be drawn must not change how the stage ended
        log(f"WARNING an artifact of the stage was not written: {type(error).__name__}: {error}")


def _draw(stage: Stage, own_id: UUID) -> None:
    text = _page(stage)
    if text is None:
        return
    with get_client(sync_client=True) as client:
        key = artifact_key(stage.order.run_id, stage.order.stage, "curves")
        artifacts.put_markdown(client, own_id, key, text)


def _page(stage: Stage) -> str | None:
    order = stage.order
    return stage_page(f"{order.run_id}: {order.stage}, attempt {order.attempt}", stage.progress)


def _publish(result: StageResult, own_id: UUID) -> None:
    with get_client(sync_client=True) as client:
        export = Path((result.export_uri or "").partition("?")[0]).name
        row = {**result.model_dump(mode="json", exclude={"proof"}), "export": export}
        key = artifact_key(result.run_id, result.stage, "result")
        rows = [{"what": name, "value": value} for name, value in row.items()]
        artifacts.put_table(client, own_id, key, rows, f"Result of {result.stage}, attempt {result.attempt}")
        if result.proof:
            key = artifact_key(result.run_id, result.stage, "start")
            title = f"What showed where {result.stage}, attempt {result.attempt}, started"
            artifacts.put_table(client, own_id, key, result.proof, title)
