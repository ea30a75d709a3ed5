"""Everything that can be known to be wrong with a run before a pod is paid for."""

import os
from dataclasses import dataclass, field

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.recipe import Recipe, StageName
from plugins.checkpoints.hub.place import HubPlace
from plugins.checkpoints.push import check_target
from plugins.checkpoints.stores.open import open_store
from plugins.errors import Refused, UserError
from plugins.lium.offers import Ranking
from plugins.lium.rent_inputs import image_reference
from plugins.rayjobs.jobs import secret_names
from plugins.slime.flags import lint
from plugins.slime.launch import Launch
from plugins.tinyslime.flags import known_flags, parse
from tasks.base_model import BaseModel, check_base_model
from tasks.command_line import about, command_line
from tasks.lium_account import check_money, rents_locally
from tasks.nodes import check_nodes
from tasks.plan import check_budget, wish_of
from tasks.stage_data import StageData, check_data, check_evaluation
from tasks.stage_fit import stage_fit
from tasks.stores import store_env, stores_here


@dataclass(frozen=True)
class Checked:
    """What the checks found out and the run needs later. last: last iteration of a stage, None where unknown; advice:
    what is allowed and probably not meant; base: the Hub model to start from, where it was looked at.
    """

    data: dict[StageName, StageData] = field(default_factory=dict)
    eval_data: dict[StageName, dict[str, StageData]] = field(default_factory=dict)
    last: dict[StageName, int | None] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)
    base: BaseModel | None = None


def check_recipe(recipe: Recipe, stages: list[StageName]) -> Checked:
    """Check secrets, money, store, trainer flags, batch sizes and data of these stages.

    Raises UserError (or Refused) that names the recipe's key or the data's file and row. Changes nothing.
    """
    advice: list[str] = []
    missing = [name for name in recipe.secrets if not os.environ.get(name)]
    if missing:
        raise UserError(f"Recipe '{recipe.name}': secrets: {', '.join(missing)} not set in this environment.")
    if shown := secret_names(recipe.env):
        raise UserError(
            f"Recipe '{recipe.name}': env.{shown[0]}: Ray shows the environment to whoever lists jobs; name it in "
            "`secrets:` and set it where you start the run."
        )
    check_tracking(recipe)
    check_money(recipe)
    if recipe.pod.image:
        image_reference(recipe.pod.image)
    check_budget(recipe.pod, Ranking((), (), wish_of(recipe), 0.0))
    check_stores_named(recipe)
    store_env(recipe)
    stores_here(recipe).check()
    for target in _push_targets(recipe, stages):
        check_target(target, public=recipe.milestones.public)
    check_nodes(recipe)
    base = check_base_model(recipe, advice.append) if recipe.trainer.kind == "slime" else None
    data: dict[StageName, StageData] = {}
    sets: dict[StageName, dict[str, StageData]] = {}
    last: dict[StageName, int | None] = {}
    for name in stages:
        with about(recipe, name):
            found = check_data(recipe, name)
            if found:
                data[name] = found
            sets[name] = check_evaluation(recipe, name)
            launch = _check_command(recipe, name, found)
            if launch is None:
                total = recipe.stage(name).num_rollout
                last[name] = None if total is None else total - 1
                continue
            last[name] = launch.expected_last
            if recipe.trainer.kind == "slime":
                advice += stage_fit(recipe, name, launch, base.parameters if base else None).advice
    return Checked(data, sets, last, advice, base)


check_recipe_task = task(name="check-recipe", cache_policy=NO_CACHE, persist_result=False)(check_recipe)


def check_tracking(recipe: Recipe) -> None:
    """Refuse W&B without its key: the trainer would ask for one on a terminal that is not there."""
    if recipe.tracking.wandb_project is None or recipe.env.get("WANDB_MODE") in ("offline", "disabled"):
        return
    if "WANDB_API_KEY" not in recipe.secrets:
        raise UserError(
            f"Recipe '{recipe.name}': tracking.wandb_project: needs a key: name WANDB_API_KEY in `secrets:` and set it "
            'where you start the run (or env.WANDB_MODE: "offline").'
        )


def _push_targets(recipe: Recipe, stages: list[StageName]) -> list[str]:
    to = recipe.milestones.push_to
    return list(dict.fromkeys(to.replace("{stage}", name) for name in stages)) if to else []


def check_stores_named(recipe: Recipe) -> None:
    """Refuse stores that do not exist or would lose checkpoints, and places to push to that are none. Asks nobody."""
    for target in _push_targets(recipe, recipe.stages()):
        HubPlace.of(target)
    stores_here(recipe)
    for uri in recipe.checkpoint.stores:
        open_store(uri)
        if uri.startswith("folder:") and not rents_locally(recipe):
            raise Refused(
                f"Recipe '{recipe.name}': checkpoint.store: a rented pod cannot see the folder {uri}, so its "
                "checkpoints would be lost with the pod. Folder stores are for the emulator; name "
                "s3://bucket/prefix or hub://user/repo."
            )
        if uri.startswith("volume:") and not recipe.pod.volume:
            raise UserError(
                f"Recipe '{recipe.name}': pod.volume: missing; checkpoint.store {uri} is on the volume that the pod "
                "mounts"
            )


def _check_command(recipe: Recipe, name: StageName, data: StageData | None) -> Launch | None:
    """Build the trainer's command line as the pod will; None for a `command`."""
    section, kind = recipe.stage(name), recipe.trainer.kind
    if kind == "command":
        if not section.command:
            raise UserError("command: missing; trainer.kind is 'command'.")
        from plugins.slime.command import check_command

        check_command(section.command if isinstance(section.command, str) else " ".join(section.command))
        return None
    if section.command:
        raise UserError(f"command: only for trainer.kind 'command', not '{kind}'.")
    if kind == "tinyslime":
        for where, args in (("extra_args", section.extra_args), ("model.args", recipe.model.args)):
            try:
                lint(args, known_flags())
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
    _check_reward(recipe, name)
    launch = command_line(recipe, name, data)
    if kind == "tinyslime":
        parse(launch.argv[launch.argv.index("-m") + 2 :])
    return launch


def _check_reward(recipe: Recipe, name: StageName) -> None:
    """An RL stage needs somebody who says how good an answer is."""
    if name != "rl" or recipe.rl is None or recipe.rl.environment is not None:
        return
    rollout, extra = recipe.rl.rollout, recipe.rl.extra_args
    own = rollout.reward or rollout.reward_function or rollout.generate or extra.get("rollout-function-path")
    if recipe.trainer.kind == "tinyslime" or not own:
        raise UserError(
            "environment: missing; give 'task:' or 'url:'"
            + (", or a reward of slime's own in rl.rollout.reward." if recipe.trainer.kind == "slime" else ".")
        )
