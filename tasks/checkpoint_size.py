"""How large a checkpoint will be, as far as that can be known before the first one: what a pod's disk must hold."""

import re
from dataclasses import dataclass

from blocks.recipe import Recipe, StageName
from plugins.errors import StoreError
from plugins.slime.model_size import model_size
from plugins.slime.models import shape_of_model
from tasks.run import Run

BYTES_PER_PARAMETER, WITHOUT_OPTIMIZER = 16, 4
"""bf16 weights 2, fp32 main copy 4, Adam 8 (slime.md 6.7, an estimate), and 2 for the export in bf16; the main copy is
the optimizer's and goes with it."""
VOCABULARY = 151_936  # of the Qwen models, where the recipe does not say
SMALL_MODEL = 50e6  # parameters below which nobody's disk is too small
_BILLIONS = re.compile(r"(\d+(?:\.\d+)?)B", re.IGNORECASE)


def checkpoint_gb(run: Run) -> float | None:
    """Size of one checkpoint in GB (10^9 bytes): of the newest in the store, else by the model.

    None where it is not known, and where the hosts' own disks hold no checkpoints.
    """
    if _on_shared_disk(run.recipe):
        return None
    for stage in reversed(run.recipe.stages()):
        try:
            newest = run.store.latest(run.run_id, stage)
        except StoreError:
            continue
        if newest is not None:
            return newest.size_bytes / 1e9
    parameters = parameters_of(run.recipe)
    return None if parameters is None else parameters * bytes_per_parameter(run.recipe) / 1e9


def bytes_per_parameter(recipe: Recipe) -> int:
    """Bytes of a checkpoint for each parameter of the model, its export included."""
    return BYTES_PER_PARAMETER if recipe.checkpoint.optimizer else WITHOUT_OPTIMIZER


@dataclass(frozen=True)
class Room:
    """What the checkpoints that stay on a pod take, and why. size_gb: of each, in GB (10^9 bytes)."""

    number: int
    size_gb: float
    model: str

    @property
    def total_gb(self) -> float:
        """All of them."""
        return self.number * self.size_gb

    def __str__(self) -> str:
        return f"{self.number} checkpoint{'s' * (self.number > 1)} of {self.size_gb:.3g} GB ({self.model})"


def room_of(recipe: Recipe) -> Room | None:
    """Room for the checkpoints that a host holds at once.

    None for a model that is small or of unknown size, and where the hosts' own disks hold none of it.
    """
    parameters = parameters_of(recipe)
    if not parameters or parameters <= SMALL_MODEL or _on_shared_disk(recipe):
        return None
    number = most_at_once(recipe)
    size_gb = parameters * bytes_per_parameter(recipe) / 1e9
    return Room(number, size_gb, recipe.model.name or f"{parameters / 1e9:.3g} billion parameters") if number else None


def most_at_once(recipe: Recipe) -> int:
    """How many checkpoints a pod may hold: the newest `checkpoint.keep` and the one being written, if so many come."""
    return max((min(recipe.checkpoint.keep + 1, _made(recipe, stage)) for stage in recipe.stages()), default=0)


def _on_shared_disk(recipe: Recipe) -> bool:
    return recipe.pod.nodes > 1 and recipe.pod.shared_dir is not None


def _made(recipe: Recipe, name: StageName) -> int:
    """Most checkpoints that a stage can make: one each `save_interval` and the last; 'auto' may be each rollout."""
    stage = recipe.stage(name)
    if stage.num_rollout is None:
        return recipe.checkpoint.keep + 1
    return stage.num_rollout if stage.save_interval == "auto" else -(-stage.num_rollout // stage.save_interval)


def parameters_of(recipe: Recipe) -> float | None:
    """Number of parameters by the recipe's `model:` section: its shape, that of slime's model of this name, else the
    size in the name ('mine-4B').
    """
    args = recipe.model.args
    layers, hidden = _number(args.get("num-layers")), _number(args.get("hidden-size"))
    shape = shape_of_model(recipe.model.name)
    if shape and not (layers and hidden and recipe.trainer.kind != "slime"):  # the stand-in has its shape from the args
        size = model_size({**shape, **args})
        return size.parameters if size else None
    if layers and hidden:
        ffn = _number(args.get("ffn-hidden-size")) or 4 * hidden
        vocabulary = _number(args.get("vocab-size")) or (VOCABULARY if recipe.trainer.kind == "slime" else 0)
        return layers * (4 * hidden**2 + 3 * hidden * ffn) + 2 * vocabulary * hidden
    named = _BILLIONS.search(recipe.model.name or "")
    return float(named[1]) * 1e9 if named else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
