"""The typed parts of a stage: what people set of slime's flags, under names and with limits that a form can show.

A field that stands for one flag of slime names it in its schema (`"flag"`), so that key and flag stand side by side
and are written once. `flags_of` turns sections into flags, `keys` tells which key a flag belongs to; everything else
that slime has goes into `extra_args`.
"""

import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

from plugins.errors import UserError

Advantage = Literal["grpo", "gspo", "cispo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"]
_DOTTED = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$"
FlagValue = bool | int | float | str | list[int | float | str]


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, because a misspelt key would be a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _flag(name: str, description: str, **limits: Any) -> Any:
    """An optional field that is one flag of slime; empty: our default for the stage, or else slime's."""
    return Field(None, description=description, json_schema_extra={"flag": name}, **limits)


class DataSection(Section):
    """The prompt data of a stage."""

    path: str = Field(
        description="JSONL or parquet file: a path (relative: from the recipe's folder), or "
        "hf://datasets/<user>/<repo>[@revision]/<file>."
    )
    input_key: str | None = _flag("input-key", "Column with the prompt or the chat. Default: messages (sft), prompt.")
    label_key: str | None = _flag("label-key", "Column with the right answer. Default in rl: label.")
    metadata_key: str | None = _flag("metadata-key", "Column with what the environment needs to know of a row.")
    tool_key: str | None = _flag("tool-key", "Column with the tools of a chat.")
    chat_template: bool | None = _flag("apply-chat-template", "Turn a list of messages into text by the template.")
    max_prompt_len: int | None = _flag("rollout-max-prompt-len", "Leave out prompts of more tokens.", ge=1)
    shuffle: bool | None = _flag("rollout-shuffle", "Shuffle each epoch. Default: yes.")
    loss_mask: Literal["qwen", "qwen3", "qwen3_5", "distill_qwen"] | None = _flag(
        "loss-mask-type", "Chat format by which sft finds the tokens to train on."
    )


class RolloutSection(Section):
    """What one rollout generates, and how answers are scored."""

    batch_size: int | None = _flag("rollout-batch-size", "Prompts in a rollout.", ge=1)
    n_samples: int | None = _flag("n-samples-per-prompt", "Answers to each prompt; 1 in sft.", ge=1)
    global_batch_size: int | None = _flag("global-batch-size", "Samples in an optimizer step.", ge=1)
    steps: int | None = _flag("num-steps-per-rollout", "Optimizer steps on a rollout.", ge=1)
    max_response_len: int | None = _flag("rollout-max-response-len", "Longest answer in tokens.", ge=1)
    max_context_len: int | None = _flag("rollout-max-context-len", "Longest prompt and answer in tokens.", ge=1)
    temperature: float | None = _flag("rollout-temperature", "Sampling temperature.", gt=0)
    top_p: float | None = _flag(
        "rollout-top-p", "Nucleus sampling; below 1 the trainer needs more of the engine.", gt=0, le=1
    )
    reward: str | None = _flag("rm-type", "A reward of slime's own instead of an environment: math, dapo, ...")
    reward_function: str | None = _flag("custom-rm-path", "Your reward: package.module.function.", pattern=_DOTTED)
    generate: str | None = _flag(
        "custom-generate-function-path", "Your generate function: package.module.function.", pattern=_DOTTED
    )
    over_sampling: int | None = _flag("over-sampling-batch-size", "Prompts to start at once, to fill a batch.", ge=1)
    filter: str | None = _flag(
        "dynamic-sampling-filter-path", "Keeps or drops a prompt by its answers: package.module.f.", pattern=_DOTTED
    )
    partial: bool | None = _flag("partial-rollout", "Take answers cut off by the end of a rollout up again.")
    balance: bool | None = _flag("balance-data", "Spread samples over ranks by their tokens.")
    asynchronous: bool = Field(
        False, description="Generate the next rollout while training on this one (train_async.py). Needs rollout_gpus."
    )


class OptimisationSection(Section):
    """Loss and optimizer."""

    lr: float | None = _flag("lr", "Learning rate.", gt=0)
    min_lr: float | None = _flag("min-lr", "Learning rate at the end of the decay.", ge=0)
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] | None = _flag(
        "lr-decay-style", "How the learning rate falls."
    )
    lr_warmup_fraction: float | None = _flag("lr-warmup-fraction", "Part of the steps that warm up.", ge=0, lt=1)
    lr_warmup_iters: int | None = _flag("lr-warmup-iters", "Steps that warm up, instead of a fraction.", ge=0)
    lr_decay_iters: int | None = _flag(
        "lr-decay-iters", "Optimizer steps over which the rate decays. Default: all of the stage.", ge=1
    )
    weight_decay: float | None = _flag("weight-decay", "Weight decay of Adam.", ge=0)
    adam_beta1: float | None = _flag("adam-beta1", "Adam's first moment.", ge=0, lt=1)
    adam_beta2: float | None = _flag("adam-beta2", "Adam's second moment.", ge=0, lt=1)
    clip_grad: float | None = _flag("clip-grad", "Largest gradient norm; 0 does not clip.", ge=0)
    advantage: Advantage | None = _flag("advantage-estimator", "How advantages are estimated.")
    eps_clip: float | None = _flag("eps-clip", "Lower clip range of the policy ratio.", gt=0)
    eps_clip_high: float | None = _flag("eps-clip-high", "Upper clip range of the policy ratio.", gt=0)
    kl_loss_coef: float | None = _flag("kl-loss-coef", "Weight of the KL loss; 0 measures it only. Empty: none.", ge=0)
    kl_loss_type: Literal["k1", "k2", "k3", "low_var_kl"] | None = _flag("kl-loss-type", "Estimator of the KL.")
    entropy_coef: float | None = _flag("entropy-coef", "Weight of the entropy bonus.", ge=0)
    per_token_loss: bool | None = _flag("calculate-per-token-loss", "Average over tokens instead of samples.")


class ParallelismSection(Section):
    """How the work is spread over the pod's GPUs."""

    gpus: int | None = _flag(
        "actor-num-gpus-per-node", "GPUs that train, on each node. Default: all that are left.", ge=1
    )
    rollout_gpus: int | None = _flag("rollout-num-gpus", "GPUs that only generate, in all. Empty: colocate.", ge=1)
    colocate: bool | None = _flag("colocate", "Train and generate on the same GPUs in turn. Default in rl: yes.")
    tensor: int | None = _flag("tensor-model-parallel-size", "Tensor parallel size.", ge=1)
    sequence_parallel: bool | None = _flag("sequence-parallel", "Spread activations too; default with tensor over 1.")
    pipeline: int | None = _flag("pipeline-model-parallel-size", "Pipeline parallel size.", ge=1)
    context: int | None = _flag("context-parallel-size", "Context parallel size.", ge=1)
    expert: int | None = _flag("expert-model-parallel-size", "Expert parallel size.", ge=1)
    expert_tensor: int | None = _flag("expert-tensor-parallel-size", "Tensor parallel size of experts.", ge=1)
    max_tokens_per_gpu: int | None = _flag("max-tokens-per-gpu", "Tokens in a micro batch on one GPU.", ge=1)
    recompute: Literal["full", "selective", "none"] | None = Field(
        None, description="Compute activations again in the backward pass: less memory, more time. Default: full."
    )


class EngineSection(Section):
    """The SGLang engines that generate."""

    gpus_per_engine: int | None = _flag("rollout-num-gpus-per-engine", "GPUs of one engine.", ge=1)
    mem_fraction: float | None = _flag(
        "sglang-mem-fraction-static", "Part of the GPU's memory for engine weights and cache.", gt=0, lt=1
    )
    concurrency: int | None = _flag("sglang-server-concurrency", "Requests that an engine gets at once.", ge=1)
    context_length: int | None = _flag("sglang-context-length", "Longest context the engines take, in tokens.", ge=1)


class EvaluationSection(Section):
    """Evaluation while training."""

    interval: int | None = _flag("eval-interval", "Rollouts between evaluations.", ge=1)
    data: dict[str, str] = Field(default_factory=dict, description="Name of each data set and its file; as data.path.")
    n_samples: int | None = _flag("n-samples-per-eval-prompt", "Answers to each prompt.", ge=1)
    max_response_len: int | None = _flag("eval-max-response-len", "Longest answer in tokens.", ge=1)
    temperature: float | None = _flag("eval-temperature", "Sampling temperature.", ge=0)
    top_p: float | None = _flag("eval-top-p", "Nucleus sampling.", gt=0, le=1)
    top_k: int | None = _flag("eval-top-k", "Sample from the k likeliest; 1 is greedy.")

    @field_validator("data")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        if wrong := [name for name in value if not name or any(letter.isspace() for letter in name)]:
            raise ValueError(f"a data set's name is one word, not {wrong[0]!r}")
        return value


class TrackingSection(Section):
    """Where curves go besides Prefect."""

    wandb_project: str | None = Field(
        None, description="Weights & Biases project; name WANDB_API_KEY among the recipe's secrets."
    )
    wandb_team: str | None = Field(None, description="Weights & Biases team.")
    tensorboard: bool = Field(False, description="TensorBoard files in the stage's folder on the pod.")


SECTIONS: dict[str, type[Section]] = {
    "data": DataSection,
    "rollout": RolloutSection,
    "optimisation": OptimisationSection,
    "parallelism": ParallelismSection,
    "engine": EngineSection,
    "evaluation": EvaluationSection,
}
"""The sections of a stage by their key."""


def flag_of(field: FieldInfo) -> str | None:
    """The flag that a field stands for, without dashes."""
    extra = field.json_schema_extra
    return str(extra["flag"]) if isinstance(extra, dict) and "flag" in extra else None


def flags_of(section: Section) -> dict[str, FlagValue]:
    """The flags of the fields that are set. A switch that is set to false is False: it takes a default back."""
    pairs = ((flag_of(field), getattr(section, name)) for name, field in type(section).model_fields.items())
    return {flag: value for flag, value in pairs if flag is not None and value is not None}


@cache
def keys() -> Mapping[str, str]:
    """Flag to the key of a stage that sets it, e.g. `lr` to `optimisation.lr`."""
    return {flag: f"{section}.{name}" for section, name, flag in _all_flags()} | _MORE_KEYS


_MORE_KEYS = {
    "recompute-granularity": "parallelism.recompute",
    "recompute-method": "parallelism.recompute",
    "recompute-num-layers": "parallelism.recompute",
    "use-kl-loss": "optimisation.kl_loss_coef",
    "eval-prompt-data": "evaluation.data",
}


def _all_flags() -> Iterator[tuple[str, str, str]]:
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            if flag := flag_of(field):
                yield section, name, flag


class Training(Section):
    """The sections that every stage may have."""

    rollout: RolloutSection = Field(default_factory=RolloutSection)
    optimisation: OptimisationSection = Field(default_factory=OptimisationSection)
    parallelism: ParallelismSection = Field(default_factory=ParallelismSection)
    engine: EngineSection = Field(default_factory=EngineSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    extra_args: dict[str, FlagValue] = Field(
        default_factory=dict, description="Any other slime flag, without dashes in front, e.g. use-tis: true."
    )

    def typed_flags(self) -> dict[str, FlagValue]:
        """Flags of the typed sections, data and `extra_args` left out."""
        parts = (self.rollout, self.optimisation, self.parallelism, self.engine, self.evaluation)
        flags = {flag: value for part in parts for flag, value in flags_of(part).items()}
        if self.optimisation.kl_loss_coef is not None:
            flags["use-kl-loss"] = True
        return flags | _recompute(self.parallelism.recompute)

    def flags(self, data: DataSection | None) -> dict[str, FlagValue]:
        """All flags that the recipe sets for this stage; UserError for one that is set twice."""
        typed = self.typed_flags() | (flags_of(data) if data else {})
        if twice := sorted(typed.keys() & self.extra_args.keys()):
            said = ", ".join(f"{keys()[name]} and extra_args.{name}" for name in twice)
            raise UserError(f"set twice: {said}; keep the first of each pair")
        return typed | self.extra_args


def _recompute(how: str | None) -> dict[str, FlagValue]:
    if how == "full":
        return {"recompute-granularity": "full", "recompute-method": "uniform", "recompute-num-layers": 1}
    if how == "selective":
        return {"recompute-granularity": "selective", "recompute-method": False, "recompute-num-layers": False}
    if how == "none":
        return {"recompute-granularity": False, "recompute-method": False, "recompute-num-layers": False}
    return {}


def section_named(model: type[BaseModel], part: str) -> type[BaseModel] | None:
    """The model of a field that is a section, through unions such as `str | DataSection`; None for other fields."""
    field = model.model_fields.get(part)
    if field is None:
        return None
    return next((kind for kind in _kinds(field.annotation) if issubclass(kind, BaseModel)), None)


def _kinds(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _kinds(inner)
