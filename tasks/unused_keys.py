"""Keys of a recipe that are allowed and change nothing: each is a line of advice, never a refusal.

A misspelt key is refused; a right key in a place where nobody reads it would be a silent no. Only keys whose value is
not the default are named: a recipe that came through the Prefect form has every key.
"""

from collections.abc import Iterator

from blocks.recipe import Recipe, StageName
from blocks.training import Section
from tasks.command_line import placed
from tasks.stage_data import evaluates

_NO_ENGINE = (
    "rollout.temperature",
    "rollout.top_p",
    "rollout.max_response_len",
    "rollout.over_sampling",
    "rollout.filter",
    "rollout.partial",
    "rollout.reward",
    "rollout.reward_function",
    "rollout.generate",
)
_NO_POLICY = (
    "optimisation.advantage",
    "optimisation.eps_clip",
    "optimisation.eps_clip_high",
    "optimisation.kl_loss_coef",
    "optimisation.kl_loss_type",
    "optimisation.entropy_coef",
)
_OWN_WAY = ("rollout-function-path", "loss-type", "debug-train-only")
"""Flags by which an sft stage is no longer ours: what it reads then is not known here."""


def unused_keys(recipe: Recipe) -> list[str]:
    """Keys outside of the stages that do nothing."""
    return list(_tracking(recipe))


def unused_stage_keys(recipe: Recipe, name: StageName) -> list[str]:
    """Keys of one stage that its trainer never sees or never reads."""
    if recipe.trainer.kind == "command":
        return [placed(line, name) for line in _command(recipe, name)]
    found = list(_sft(recipe)) if name == "sft" else []
    section = recipe.stage(name)
    loss = section.optimisation
    if name == "rl" and loss.kl_loss_type and loss.kl_loss_coef is None and not section.extra_args.get("use-kl-loss"):
        found.append("optimisation.kl_loss_type: does nothing without optimisation.kl_loss_coef")
    return [placed(line, name) for line in found]


def _tracking(recipe: Recipe) -> Iterator[str]:
    own, kind = recipe.tracking, recipe.trainer.kind
    if kind != "slime" and (given := list(_given(own))):
        who = "its stand-in writes no curves" if kind == "tinyslime" else "a command gets no flags"
        yield f"tracking.{given[0]}: only trainer.kind slime is told of it; {who}"
    elif own.wandb_team and own.wandb_project is None:
        yield "tracking.wandb_team: does nothing without tracking.wandb_project"


def _sft(recipe: Recipe) -> Iterator[str]:
    section = recipe.stage("sft")
    if any(flag in section.extra_args for flag in _OWN_WAY):
        return
    engine = [f"engine.{key}" for key in _given(section.engine)]
    wanted = [f"rollout.{key}" for key in _given(section.rollout)]
    for key in [*(key for key in wanted if key in _NO_ENGINE), *engine]:
        yield f"{key}: does nothing in sft, where no engine generates"
    for key in (f"optimisation.{key}" for key in _given(section.optimisation)):
        if key in _NO_POLICY:
            yield f"{key}: does nothing in sft, whose loss has neither advantages nor a policy to stay near"
    if any(_given(section.evaluation)) and not evaluates(recipe, "sft"):
        yield "evaluation: does nothing in sft: slime has no engine to evaluate with; evaluate in rl or afterwards"


def _command(recipe: Recipe, name: StageName) -> Iterator[str]:
    section = recipe.stage(name)
    parts = ("rollout", "optimisation", "parallelism", "engine", "evaluation")
    unread = [part for part in parts if any(_given(getattr(section, part)))]
    unread += [key for key in ("extra_args", "num_epoch") if getattr(section, key)]
    for key in unread:
        yield f"{key}: does nothing with trainer.kind command; write it into the command itself"


def _given(section: Section) -> Iterator[str]:
    for key, field in type(section).model_fields.items():
        if getattr(section, key) != field.get_default(call_default_factory=True):
            yield key
