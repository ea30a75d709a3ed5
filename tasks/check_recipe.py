"""Everything that can be known to be wrong with a run before a pod is paid for."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.recipe import Recipe, StageName
from plugins.checkpoints.hub.place import HubPlace
from plugins.checkpoints.push import check_target
from plugins.checkpoints.stores.open import open_store
from plugins.errors import Refused, UserError
from plugins.lium.offers import Ranking
from plugins.lium.rent_inputs import image_reference
from plugins.slime.flags import lint
from plugins.slime.launch import TrainerSpec, build
from plugins.slime.prompt_data import inspect
from plugins.tinyslime.flags import known_flags, parse
from tasks.lium_account import check_money, rents_locally
from tasks.plan import check_budget, wish_of
from tasks.save_interval import DEFAULT_ROLLOUTS
from tasks.stores import store_env, stores_here


@dataclass(frozen=True)
class StageData:
    """A stage's prompt data on this machine. rows: how many; sha256: of the file."""

    path: Path
    rows: int
    sha256: str


@dataclass(frozen=True)
class Checked:
    """What the checks found out and the run needs later. last: last iteration of a stage, None where unknown."""

    data: dict[StageName, StageData] = field(default_factory=dict)
    last: dict[StageName, int | None] = field(default_factory=dict)


def check_recipe(recipe: Recipe, stages: list[StageName]) -> Checked:
    """Check secrets, money, store, trainer flags, batch sizes and data of these stages.

    Raises UserError (or Refused) that names the recipe's key or the data's file and row. Changes nothing.
    """
    missing = [name for name in recipe.secrets if not os.environ.get(name)]
    if missing:
        raise UserError(f"Recipe '{recipe.name}': secrets: {', '.join(missing)} not set in this environment.")
    check_money(recipe)
    if recipe.pod.image:
        image_reference(recipe.pod.image)
    check_budget(recipe.pod, Ranking((), (), wish_of(recipe), 0.0))
    check_stores_named(recipe)
    store_env(recipe)
    stores_here(recipe).check()
    for target in _push_targets(recipe, stages):
        check_target(target, public=recipe.milestones.public)
    data: dict[StageName, StageData] = {}
    last: dict[StageName, int | None] = {}
    for name in stages:
        found = _check_data(recipe, name)
        if found:
            data[name] = found
        last[name] = _check_command(recipe, name, found)
    return Checked(data, last)


check_recipe_task = task(name="check-recipe", cache_policy=NO_CACHE, persist_result=False)(check_recipe)


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


def _check_data(recipe: Recipe, name: StageName) -> StageData | None:
    section = recipe.stage(name)
    if section.data is None:
        if recipe.trainer.kind != "command":
            raise UserError(f"Recipe '{recipe.name}': {name}.data: missing; the trainer needs prompt data.")
        return None
    key = section.args.get("input-key")
    label = "label" if name == "rl" and recipe.trainer.kind != "command" else None
    label = str(section.args.get("label-key", label)) if label else None
    found = inspect(Path(section.data), name, input_key=str(key) if key else None, label_key=label)
    return StageData(Path(section.data), found.rows, found.sha256)


def _check_command(recipe: Recipe, name: StageName, data: StageData | None) -> int | None:
    """Build the trainer's command line as the pod will; returns the last iteration it leads to."""
    section = recipe.stage(name)
    kind = recipe.trainer.kind
    if kind == "command":
        if not section.command:
            raise UserError(f"Recipe '{recipe.name}': {name}.command: missing; trainer.kind is 'command'.")
        return None if section.num_rollout is None else section.num_rollout - 1
    if section.command:
        raise UserError(f"Recipe '{recipe.name}': {name}.command: only for trainer.kind 'command', not '{kind}'.")
    if kind == "tinyslime":
        for where, args in ((f"{name}.args", section.args), ("model.args", recipe.model.args)):
            try:
                lint(args, known_flags())
            except UserError as error:
                raise UserError(f"Recipe '{recipe.name}': {where}: {error}") from error
    if name == "rl" and (recipe.rl is None or recipe.rl.environment is None):
        raise UserError(f"Recipe '{recipe.name}': rl.environment: missing; give 'task:' or 'url:'.")
    here = Path("/nonexistent")
    try:
        launch = build(
            TrainerSpec(
                kind=kind,
                stage=name,
                run_id="check",
                attempt=1,
                save_dir=here,
                load_dir=None,
                init_dir=here
                if recipe.model.hf_checkpoint or (name == "rl" and recipe.rl and recipe.rl.init)
                else None,
                rollout_dir=here,
                data=data.path if data else None,
                env_url="http://127.0.0.1:1" if name == "rl" else None,
                save_interval=DEFAULT_ROLLOUTS if section.save_interval == "auto" else section.save_interval,
                num_rollout=section.num_rollout,
                num_epoch=section.num_epoch,
                data_rows=data.rows if data else None,
                args={**recipe.model.args, **section.args},
                command=[],
                slime_dir=Path(recipe.trainer.slime_dir),
                seed=recipe.seed,
            )
        )
        if kind == "tinyslime":
            parse(launch.argv[launch.argv.index("-m") + 2 :])
    except UserError as error:
        raise UserError(f"Recipe '{recipe.name}': {name}: {error}") from error
    return launch.expected_last
