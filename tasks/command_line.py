"""The command line that a stage's trainer will get, built where the run starts, with folders as they will be."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from blocks.recipe import Recipe, RLSection, StageName
from plugins.errors import UserError
from plugins.slime import flag_table
from plugins.slime.launch import Launch, TrainerSpec, build
from plugins.slime.models import check_model_name, shape_of_model
from tasks.save_interval import DEFAULT_ROLLOUTS
from tasks.stage_data import StageData
from tasks.trainer_spec import Places, keys_of, trainer_spec

POD = Path("/root/trainstack")
SLIME = Path(__file__).resolve().parents[1] / "slime"


def command_line(recipe: Recipe, name: StageName, data: StageData | None, *, slime_dir: Path = SLIME) -> Launch:
    """Build it. slime_dir: a checkout of slime here, for the model's arguments.

    Without one they are missing in the line, which the launch's notes say; the checks know the model's shape all the
    same (`plugins.slime.models`). Raises UserError that names the recipe's key for what cannot work.
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
        env_url="http://127.0.0.1:1" if name == "rl" and recipe.rl and recipe.rl.environment else None,
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
    launch = build(spec) if known or spec.kind != "slime" else _without_slime(spec)
    if spec.kind == "slime":
        found = flag_table.problems(launch.argv[2:], flag_table.known())
        if found:
            raise UserError("\n".join(_with_key(line, keys_of(recipe, name)) for line in found))
    return launch


def _without_slime(spec: TrainerSpec) -> Launch:
    """The command line without the model's arguments, checked against the shape that these would give."""
    if not spec.model:
        return build(spec)
    launch = build(replace(spec, model=None, shape=shape_of_model(spec.model)))
    note = (
        f"the arguments of {spec.model} are not in this line: slime is not checked out here "
        "(git submodule update --init slime); on the pod they come first"
    )
    return replace(launch, notes=(*launch.notes, note))


def _with_key(problem: str, keys: Mapping[str, str]) -> str:
    """A problem of the flag table, which begins with the flag, with the recipe's key before it."""
    key = keys.get(problem.partition(" ")[0].rstrip(":").removeprefix("--"))
    return f"{key}: {problem}" if key else problem


@contextmanager
def about(recipe: Recipe, name: StageName) -> Iterator[None]:
    """Put recipe and stage before each line of a UserError."""
    try:
        yield
    except UserError as error:
        lines = (f"Recipe '{recipe.name}': {placed(line, name)}" for line in str(error).splitlines())
        raise type(error)("\n".join(lines)) from error


def placed(line: str, name: StageName) -> str:
    """A line that begins with a key of the stage gets the stage's name before it: `rl.rollout.batch_size: ...`."""
    first = line.partition(":")[0].partition(".")[0]
    if first in RLSection.model_fields:
        return f"{name}.{line}"
    return line if first in Recipe.model_fields else f"{name}: {line}"


def weights_dir(recipe: Recipe) -> Path | None:
    """Where the recipe's start weights will lie on the pod."""
    where = recipe.model.hf_checkpoint
    if where is None:
        return None
    return Path(where) if where.startswith("/") else POD / "models" / where.replace("/", "--")
