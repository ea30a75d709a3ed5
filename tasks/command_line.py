"""The command line that a stage's trainer will get, built where the run starts, with folders as they will be."""

from dataclasses import replace
from pathlib import Path

from blocks.recipe import Recipe, StageName
from plugins.slime import flag_table
from plugins.slime.launch import Launch, build
from plugins.slime.models import check_model_name
from tasks.save_interval import DEFAULT_ROLLOUTS
from tasks.stage_data import StageData
from tasks.trainer_spec import Places, trainer_spec

POD = Path("/root/trainstack")
SLIME = Path(__file__).resolve().parents[1] / "slime"


def command_line(recipe: Recipe, name: StageName, data: StageData | None, *, slime_dir: Path = SLIME) -> Launch:
    """Build it. slime_dir: a checkout of slime here, for the model's arguments; without one they are missing.

    Raises UserError that names the recipe's key for what cannot work.
    """
    section, stage_dir = recipe.stage(name), POD / "runs/<run>" / name
    init = recipe.rl.init if name == "rl" and recipe.rl else None
    weights = stage_dir / "init" if init else weights_dir(recipe)
    places = Places(
        save_dir=stage_dir / "save",
        rollout_dir=stage_dir / "attempt-1/rollouts",
        init_dir=weights,
        data=POD / "data" / Path(section.dataset.path).name if section.dataset else None,
        eval_data={one: POD / "data" / Path(path).name for one, path in section.evaluation.data.items()},
        env_url="http://127.0.0.1:1" if name == "rl" else None,
        slime_dir=slime_dir,
    )
    known = (slime_dir / "scripts" / "models").is_dir()
    if recipe.model.name and recipe.trainer.kind == "slime":
        check_model_name(recipe.model.name)
    spec = trainer_spec(
        recipe,
        name,
        places,
        run_id="check",
        attempt=1,
        save_interval=DEFAULT_ROLLOUTS if section.save_interval == "auto" else section.save_interval,
        data_rows=data.rows if data else None,
    )
    launch = build(spec if known else replace(spec, model=None))
    if spec.kind == "slime":
        flag_table.check(launch.argv[2:])
    return launch


def weights_dir(recipe: Recipe) -> Path | None:
    """Where the recipe's start weights will lie on the pod."""
    where = recipe.model.hf_checkpoint
    if where is None:
        return None
    return Path(where) if where.startswith("/") else POD / "models" / where.replace("/", "--")
