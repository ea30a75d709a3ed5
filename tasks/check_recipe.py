"""Everything that can be known to be wrong with a run before a pod is paid for, for `run` and for `plan`.

`check_keys` and `look_at_stage` need no credentials, and the network only for data on the Hub; `missing_here` says what
this machine has not set; `check_recipe` is all of it, and asks the stores and the Hub too. A plan shows as a line what
a run would still need, and refuses what no environment could make right (`stage_plan.py`).
"""

from dataclasses import dataclass, field

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.recipe import Recipe, RLSection, StageName
from plugins.checkpoints.hub.place import HubPlace
from plugins.checkpoints.manifest import Manifest
from plugins.checkpoints.push import check_target
from plugins.checkpoints.stores import CheckpointStore
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
from tasks.model_shape import check_same_model
from tasks.nodes import check_nodes
from tasks.plan import check_budget, wish_of
from tasks.stage_data import DataUnseen, StageData, check_data, check_evaluation
from tasks.stage_fit import Fit, stage_fit
from tasks.stores import store_env, stores_here, unset_secrets
from tasks.unused_keys import unused_keys, unused_stage_keys


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


@dataclass(frozen=True)
class StageLook:
    """One stage. data None: there is none, or `unseen` says why it was not looked at; launch None: a `command`, or
    unknown without the data; last: its last iteration, None where unknown.
    """

    name: StageName
    data: StageData | None
    eval_data: dict[str, StageData]
    unseen: str | None
    launch: Launch | None
    fit: Fit | None
    last: int | None
    advice: list[str]


def check_recipe(recipe: Recipe, stages: list[StageName]) -> Checked:
    """Check secrets, money, store, trainer flags, batch sizes and data of these stages.

    Raises UserError (or Refused) that names the recipe's key or the data's file and row. Rents nothing; the stores are
    written to, to see that they can be.
    """
    check_money(recipe)
    check_keys(recipe)
    if missing := missing_here(recipe):
        raise UserError("\n".join(missing))
    advice = unused_keys(recipe)
    base = check_base_model(recipe, advice.append) if recipe.trainer.kind == "slime" else None
    looks = [look_at_stage(recipe, name, base) for name in stages]
    store = stores_here(recipe)
    store.check()
    for target in _push_targets(recipe, stages):
        check_target(target, public=recipe.milestones.public)
    return Checked(
        data={look.name: look.data for look in looks if look.data},
        eval_data={look.name: look.eval_data for look in looks},
        last={look.name: look.last for look in looks},
        advice=advice + [line for look in looks for line in look.advice],
        base=base,
    )


check_recipe_task = task(name="check-recipe", cache_policy=NO_CACHE, persist_result=False)(check_recipe)


def check_keys(recipe: Recipe) -> None:
    """Refuse what the recipe's own words rule out, outside of its stages. Asks nobody and needs no credentials."""
    if shown := secret_names(recipe.env):
        raise UserError(
            f"Recipe '{recipe.name}': env.{shown[0]}: Ray shows the environment to whoever lists jobs; name it in "
            "`secrets:` and set it where you start the run."
        )
    check_tracking(recipe)
    if recipe.pod.image:
        image_reference(recipe.pod.image)
    check_budget(recipe.pod, Ranking((), (), wish_of(recipe), 0.0))
    check_stores_named(recipe)
    check_nodes(recipe)


def missing_here(recipe: Recipe) -> list[str]:
    """What this machine must have and has not before the run can start: secrets, credentials of the stores."""
    lines = []
    if unset := unset_secrets(recipe):
        lines.append(f"Recipe '{recipe.name}': secrets: {', '.join(unset)} not set in this environment.")
    try:
        store_env(recipe)
    except UserError as error:
        lines.append(str(error))
    return lines


def look_at_stage(
    recipe: Recipe, name: StageName, base: BaseModel | None = None, *, unseen_ok: bool = False
) -> StageLook:
    """Check one stage: data, evaluation, command line, reward, whether it fits. base: the Hub's model, where known.

    Raises UserError; for data on a Hub that is silent DataUnseen, or with unseen_ok nothing.
    """
    with about(recipe, name):
        data, sets, unseen = None, {}, None
        try:
            data = check_data(recipe, name)
            sets = check_evaluation(recipe, name)
        except DataUnseen as error:
            if not unseen_ok:
                raise
            unseen = str(error)
        launch = _check_command(recipe, name, data, unseen=unseen is not None)
        fit = None
        if launch is not None and recipe.trainer.kind == "slime":
            fit = stage_fit(recipe, name, launch, base.parameters if base else None)
    total = recipe.stage(name).num_rollout
    last = launch.expected_last if launch else None if total is None else total - 1
    advice = [*(fit.advice if fit else ()), *unused_stage_keys(recipe, name)]
    return StageLook(name, data, sets, unseen, launch, fit, last, advice)


def start_checkpoint(recipe: Recipe, store: CheckpointStore, run_id: str) -> Manifest | None:
    """The checkpoint that `rl.init` names, of this run or of another; None when it names none.

    Raises UserError when it is not there or is of another model, StoreError when the store does not answer.
    """
    section = recipe.rl
    if not isinstance(section, RLSection) or section.init is None:
        return None
    stage = "sft"
    if section.init.startswith("run:"):
        run_id, _, stage = section.init.removeprefix("run:").partition("/")
    newest = store.latest(run_id, stage)
    if newest is None:
        raise UserError(
            f"rl.init is '{section.init}', but {store.uri} has no checkpoint of {run_id}/{stage}. Run "
            "that stage first, or leave init out to start from model.hf_checkpoint."
        )
    what = f"rl.init is '{section.init}', so rl would begin with"
    check_same_model(newest, recipe, what, "Use the model that was trained, or another rl.init.")
    return newest


def check_tracking(recipe: Recipe) -> None:
    """Refuse W&B without its key: the trainer would ask for one on a terminal that is not there."""
    if recipe.trainer.kind != "slime":
        return  # no other trainer is told of it
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


def _check_command(recipe: Recipe, name: StageName, data: StageData | None, *, unseen: bool) -> Launch | None:
    """Build the trainer's command line as the pod will; None for a `command`, and without rows to count epochs over."""
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
    if unseen and data is None and section.num_epoch is not None:
        return None
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
