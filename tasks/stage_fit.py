"""Whether a stage fits the pod that the recipe asks for: memory of a GPU, and what is probably not meant."""

from collections.abc import Mapping
from dataclasses import dataclass

from blocks.recipe import Recipe, StageName
from plugins.errors import UserError
from plugins.lium.gpu_memory import least_memory_gb
from plugins.slime.cross_checks import advice
from plugins.slime.flags import Value, parse_argv
from plugins.slime.launch import Launch
from plugins.slime.memory import Need, fits, need, offloaded
from plugins.slime.model_size import Size, model_size
from plugins.slime.models import shape_of_model
from tasks.checkpoint_size import parameters_of
from tasks.command_line import placed
from tasks.trainer_spec import keys_of, machine_of

OFFLOAD = (
    "set extra_args.optimizer-cpu-offload and extra_args.use-precision-aware-optimizer to true (the host's memory "
    "keeps the optimizer)"
)
"""Megatron-LM's validate_args wants the second with the first."""


@dataclass(frozen=True)
class Fit:
    """need: None where the model's size is not known; gpu_gb: of the smallest GPU the recipe takes, None if unknown."""

    need: Need | None
    gpu_gb: float | None
    advice: list[str]


def stage_fit(recipe: Recipe, name: StageName, launch: Launch, counted: float | None = None) -> Fit:
    """Look at a slime stage's command line. counted: parameters of the model, where the Hub told.

    Raises UserError when weights, gradients and optimizer alone exceed a GPU's memory.
    """
    flags = parse_argv(launch.argv)
    machine, gpu_gb = machine_of(recipe), least_memory_gb(recipe.pod.gpus)
    size = _size(recipe, flags, counted)
    wanted = need(size, flags, machine) if size else None
    said = [placed(line, name) for line in advice(flags, name, machine, keys_of(recipe, name))]
    if wanted is None or gpu_gb is None:
        return Fit(wanted, gpu_gb, said)
    verdict = fits(wanted, gpu_gb)
    if verdict is False:
        raise UserError(
            f"parallelism: the model needs {wanted}, and {_smallest(recipe)} has "
            f"{gpu_gb:.0f} GB: {_remedies(size, flags)}"
        )
    if verdict is None:
        said.append(f"{name}.parallelism: the model needs {wanted}: little is left of the {gpu_gb:.0f} GB there are")
    return Fit(wanted, gpu_gb, said + _engine(recipe, name, flags, wanted, gpu_gb))


def _size(recipe: Recipe, flags: Mapping[str, Value], counted: float | None) -> Size | None:
    """Parameters as the Hub counted them, else by the shape in the command line or in the table of slime's models."""
    shaped = model_size({**shape_of_model(recipe.model.name), **flags})
    if counted:
        return Size(counted, shaped.experts if shaped else None)
    if shaped:
        return shaped
    named = parameters_of(recipe)
    return Size(named, None) if named else None


def _remedies(size: Size | None, flags: Mapping[str, Value]) -> str:
    """What makes the part of a GPU smaller, the cheapest first."""
    ways = [] if offloaded(flags) == 1 else [OFFLOAD]
    sizes = "tensor, pipeline or expert" if size is None or size.experts != 0 else "tensor or pipeline"
    ways.append(f"raise parallelism.{sizes}")
    ways.append("raise pod.gpu_count" + ("" if offloaded(flags) == 1 else " (the optimizer is spread over the GPUs)"))
    return ", ".join(ways) + ", or take a larger pod.gpu"


def _engine(recipe: Recipe, name: StageName, flags: Mapping[str, Value], wanted: Need, gpu_gb: float) -> list[str]:
    """SGLang needs its weights and some cache inside the part of the memory that it gets."""
    each, part = flags.get("rollout-num-gpus-per-engine", 1), flags.get("sglang-mem-fraction-static")
    if name == "sft" or not isinstance(part, float) or not isinstance(each, int):
        return []
    weights = wanted.parameters * 2 / 1e9 / each
    if weights < part * gpu_gb * 0.9:
        return []
    key = keys_of(recipe, name).get("sglang-mem-fraction-static", "engine.mem_fraction")
    return [
        f"{name}.{key}: {part:g} of {gpu_gb:.0f} GB does not hold {weights:.0f} GB of weights and a cache; "
        "raise it or engine.gpus_per_engine"
    ]


def _smallest(recipe: Recipe) -> str:
    return f"the {recipe.pod.gpus[0]}" if len(recipe.pod.gpus) == 1 else f"the smallest of {', '.join(recipe.pod.gpus)}"
