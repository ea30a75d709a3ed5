"""From the recipe to what the launcher wants to know, for the check before renting as for the stage on the pod.

What only the pod knows (folders, restored checkpoint, address of the environment) comes as `Places`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blocks.recipe import Recipe, StageName
from blocks.training import FlagValue, keys
from plugins.errors import UserError
from plugins.slime.defaults import Machine
from plugins.slime.flags import Value
from plugins.slime.launch import TrainerSpec
from plugins.slime.tracking import tracking_flags
from tasks.stage_data import evaluates


@dataclass(frozen=True)
class Places:
    """Where things are for one attempt; see `TrainerSpec`. slime_dir None: the recipe's."""

    save_dir: Path
    rollout_dir: Path
    load_dir: Path | None = None
    init_dir: Path | None = None
    ref_dir: Path | None = None
    data: Path | None = None
    eval_data: Mapping[str, Path] = field(default_factory=dict)
    env_url: str | None = None
    slime_dir: Path | None = None


def trainer_spec(
    recipe: Recipe,
    name: StageName,
    places: Places,
    *,
    run_id: str,
    attempt: int,
    save_interval: int,
    data_rows: int | None,
    nvlink: bool | None = None,
    network: Mapping[str, str] | None = None,
) -> TrainerSpec:
    """What the launcher builds the stage's command line from. Raises UserError for a flag that is set twice."""
    section = recipe.stage(name)
    check_env(recipe.env)
    if recipe.trainer.kind == "slime" and not recipe.model.name and "num-layers" not in recipe.model.args:
        raise UserError(
            "model.name: missing; name a file of slime's scripts/models, e.g. qwen3-4B, or give the shape in model.args"
        )
    command = section.command if section.command is not None else []
    return TrainerSpec(
        kind=recipe.trainer.kind,
        stage=name,
        run_id=run_id,
        attempt=attempt,
        save_dir=places.save_dir,
        load_dir=places.load_dir,
        init_dir=places.init_dir,
        ref_dir=places.ref_dir,
        rollout_dir=places.rollout_dir,
        data=places.data,
        eval_data=places.eval_data if evaluates(recipe, name) else {},
        env_url=places.env_url,
        save_interval=save_interval,
        num_rollout=section.num_rollout,
        num_epoch=section.num_epoch,
        data_rows=data_rows,
        args=stage_flags(recipe, name),
        keys=keys_of(recipe, name),
        command=["bash", "-c", command] if isinstance(command, str) else command,
        slime_dir=_slime_dir(recipe, places),
        seed=recipe.seed,
        model=recipe.model.name,
        megatron_dir=Path(recipe.trainer.megatron_dir),
        python=recipe.trainer.python,
        machine=machine_of(recipe),
        nvlink=nvlink,
        asynchronous=section.rollout.asynchronous,
        tracking=_tracking(recipe, name, run_id),
        network=network or {},
    )


def _slime_dir(recipe: Recipe, places: Places) -> Path | None:
    """slime's folder; a command of the user's own starts in it too, where there is one: its scripts are named there."""
    folder = places.slime_dir or Path(recipe.trainer.slime_dir)
    return folder if recipe.trainer.kind == "slime" or (recipe.trainer.kind == "command" and folder.is_dir()) else None


def stage_flags(recipe: Recipe, name: StageName) -> dict[str, FlagValue]:
    """Every slime flag that the recipe sets for a stage: its model's, its checkpoints', the stage's own."""
    own, names = recipe.stage(name).all_flags(), {**keys(), **_extra_keys(recipe, name)}
    if twice := sorted(own.keys() & recipe.model.args.keys()):
        raise UserError(f"set twice: model.args.{twice[0]} and {names.get(twice[0], twice[0])}")
    if not evaluates(recipe, name):  # slime would check the flags of an evaluation that it never makes
        own = {flag: value for flag, value in own.items() if not keys().get(flag, "").startswith("evaluation.")}
    kept = {flag: value for flag, (_, value) in _CHECKPOINT.items() if _asked(recipe, flag)}
    if twice := sorted(_CHECKPOINT.keys() & {*own, *recipe.model.args}):
        raise UserError(f"extra_args.{twice[0]}: set it by checkpoint.{_CHECKPOINT[twice[0]][0]}")
    return kept | recipe.model.args | own


_CHECKPOINT: dict[str, tuple[str, FlagValue]] = {
    "dist-ckpt-optim-fully-reshardable": ("reshardable", True),
    "no-save-optim": ("optimizer", True),
}
"""Flags of the recipe's `checkpoint:`, with the key."""


def _asked(recipe: Recipe, flag: str) -> bool:
    return recipe.checkpoint.reshardable if _CHECKPOINT[flag][0] == "reshardable" else not recipe.checkpoint.optimizer


_OURS = re.compile(
    r"TRAINSTACK_(?!ENV_|HTTP_ENV|LLM_URL).*|RELAY_.*|MASTER_ADDR|CUDA_DEVICE_MAX_CONNECTIONS|CUDA_VISIBLE_DEVICES"
    r"|SLIME_HOST_IP|RAY_ADDRESS|RAY_AUTH.*"
)


def check_env(env: Mapping[str, str]) -> None:
    """Refuse variables that are none, and those by which the stage, Ray and slime find one another."""
    for variable in env:
        if not re.fullmatch(r"[A-Za-z_]\w*", variable):
            raise UserError(f"env.{variable}: this is no name of a variable")
        if _OURS.fullmatch(variable):
            raise UserError(f"env.{variable}: trainstack, Ray or slime sets it; leave it out")


def with_own(launched: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The trainer's environment under the recipe's; its PYTHONPATH comes after the launcher's, which slime needs."""
    both = {**launched, **own}
    if "PYTHONPATH" in launched and "PYTHONPATH" in own:
        both["PYTHONPATH"] = f"{launched['PYTHONPATH']}:{own['PYTHONPATH']}"
    return both


def _extra_keys(recipe: Recipe, name: StageName) -> dict[str, str]:
    return {flag: f"extra_args.{flag}" for flag in recipe.stage(name).extra_args}


def keys_of(recipe: Recipe, name: StageName) -> dict[str, str]:
    """Flag to the key by which this recipe sets it, or could."""
    return {**keys(), **_extra_keys(recipe, name), **{flag: f"model.args.{flag}" for flag in recipe.model.args}}


def _tracking(recipe: Recipe, name: StageName, run_id: str) -> Mapping[str, Value]:
    own = recipe.tracking
    if recipe.trainer.kind != "slime":
        return {}
    return tracking_flags(
        run_id, name, wandb_project=own.wandb_project, wandb_team=own.wandb_team, tensorboard=own.tensorboard
    )


def machine_of(recipe: Recipe) -> Machine:
    """The GPUs of a stage."""
    return Machine(recipe.pod.nodes, recipe.pod.gpu_count)
