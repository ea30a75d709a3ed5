"""What crosses the line between the control plane and a stage on a pod: the order down, heartbeats and the result up.

All three travel through Prefect (parameters, artifact, state message), so they hold no secrets and stay small. The
truth of a stage's result is the manifest in the store; `StageResult` is what a person and the parent read first.
"""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from blocks.recipe import Recipe, StageName
from tasks.plain_text import plain

HEARTBEAT_SUFFIX = "heartbeat"
WORK_POOL = "lium"
STAGE_DEPLOYMENT = "slime-stage/lium"


class InitFrom(BaseModel):
    """Sealed weights to start from: the Hugging Face export inside a stage's checkpoint."""

    model_config = ConfigDict(frozen=True)
    run_id: str
    stage: StageName
    iteration: int
    uri: str | None = Field(None, description="Where that checkpoint is.")
    revision: str | None = Field(None, description="Digest of its manifest: these bytes and no others.")


class StageOrder(BaseModel):
    """Everything a stage needs to know; the parameter of the flow `slime-stage`."""

    run_id: str = Field(description="The run this attempt belongs to.")
    stage: StageName
    attempt: int = Field(
        ge=1, description="Number of this attempt over the whole life of the stage; the fencing token."
    )
    pod: str = Field(description="Name of the pod, and of its queue.")
    recipe: Recipe
    data_path: str | None = Field(None, description="Prompt data on the pod.")
    data_rows: int | None = None
    eval_paths: dict[str, str] = Field(default_factory=dict, description="Evaluation data on the pod, by name.")
    init: InitFrom | None = None
    durable: int | None = Field(None, description="Newest iteration that earlier attempts reported durable.")
    trained: int | None = Field(None, description="Newest iteration that earlier attempts reported trained.")
    save_interval: int = Field(20, ge=1, description="Rollouts between checkpoints of this attempt.")
    lineage: dict[str, str] = Field(default_factory=dict, description="Recipe digest, git commit, data hash, image.")


class Milestone(BaseModel):
    """One checkpoint pushed to the Hub."""

    iteration: int
    reason: str
    url: str
    revision: str


class StageResult(BaseModel):
    """How an attempt ended well."""

    run_id: str
    stage: StageName
    attempt: int
    outcome: Literal["completed", "already complete"]
    resumed_from: int | None = Field(None, description="Iteration the attempt was restored from; None = cold start.")
    first_iteration: int | None = Field(None, description="First iteration this attempt trained.")
    last_iteration: int
    checkpoint_uri: str
    export_uri: str | None = None
    first: dict[str, float] = Field(default_factory=dict, description="First value of each figure: loss, reward.")
    last: dict[str, float] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict, description="Wall seconds by phase of the stage.")
    proof: list[dict[str, str]] = Field(default_factory=list, description="What showed that a resume resumed.")
    milestones: list[Milestone] = Field(default_factory=list, description="What was pushed to the Hub.")
    missed: list[str] = Field(default_factory=list, description="Milestones not stored or not pushed, and why.")


class Heartbeat(BaseModel):
    """One row of the heartbeat artifact: where the stage is now."""

    stage: StageName
    attempt: int
    phase: str
    iteration: int | None = None
    of: int | None = None
    loss: float | None = None
    reward: float | None = None
    sealed: int | None = None
    durable: int | None = None
    gpu_percent: float | None = Field(None, description="Mean use of the pod's GPUs; None where nobody can tell.")
    warning: str | None = None
    uploading: list[str] = Field(default_factory=list, description="What is being sent to the stores now.")
    restored: int | None = Field(None, description="Iteration the attempt was restored from; None = cold start.")
    first_iteration: int | None = Field(None, description="First iteration this attempt trained.")
    first_new_at: float | None = Field(
        None, description="When the first iteration was done that no earlier attempt had trained; epoch seconds."
    )
    last_iteration_at: float | None = Field(None, description="When the newest iteration was done; epoch seconds.")
    seconds: dict[str, float] = Field(default_factory=dict, description="Wall seconds by phase so far.")
    save_interval: int | None = Field(None, description="Rollouts between checkpoints of this attempt.")
    save_s: float | None = Field(None, description="Seconds that saving holds up training, as the trainer says.")
    iteration_s: float | None = Field(None, description="Mean seconds of one iteration, saves included.")
    figures: dict[str, float] = Field(default_factory=dict, description="Newest value of each figure.")
    split: dict[str, float] = Field(
        default_factory=dict, description="Mean seconds of an iteration by what they are spent on: generate, train, ..."
    )


def run_tag(run_id: str) -> str:
    """Tag on every flow run of a run."""
    return f"run:{run_id}"


def stage_tags(run_id: str, stage: str, attempt: int) -> list[str]:
    """Tags that find a stage's flow runs again."""
    return [run_tag(run_id), f"stage:{stage}", f"attempt:{attempt}"]


def artifact_key(run_id: str, *parts: str) -> str:
    """Artifact key in Prefect's alphabet (a-z, 0-9, '-'): the run id, then what it is."""
    return "-".join((run_id, *parts))


def parse_heartbeat(data: Any) -> Heartbeat | None:
    """Heartbeat from artifact data (a JSON string or a list of one row); None when it is not one."""
    try:
        rows = json.loads(data) if isinstance(data, str) else data
        return Heartbeat.model_validate(rows[0])
    except (ValueError, TypeError, LookupError):
        return None


def describe(beat: Heartbeat) -> str:
    """One line of a heartbeat: phase, iteration, loss, reward, GPU use, checkpoints, warning."""
    words = [f"attempt {beat.attempt}", beat.phase]
    if beat.iteration is not None:
        words.append(f"{beat.iteration + 1}/{beat.of or '?'}")
    words += [f"loss {beat.loss:.3f}"] if beat.loss is not None else []
    words += [f"reward {beat.reward:.3f}"] if beat.reward is not None else []
    words += [f"GPU {beat.gpu_percent:.0f} %"] if beat.gpu_percent is not None else []
    words += [f"durable {beat.durable}"] if beat.durable is not None else []
    words += beat.uploading
    words += [f"WARNING {beat.warning}"] if beat.warning else []
    return plain(" · ".join(words))
