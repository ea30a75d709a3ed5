"""How large a checkpoint will be, as far as that can be known before the first one: what a pod's disk must hold."""

import re

from blocks.recipe import Recipe
from plugins.errors import StoreError
from tasks.run import Run

BYTES_PER_PARAMETER = 16
"""bf16 weights 2, fp32 main copy 4, Adam 8 (slime.md 6.7, an estimate), and 2 for the export in bf16."""
VOCABULARY = 151_936  # of the Qwen models, where the recipe does not say
SMALL_MODEL = 50e6  # parameters below which nobody's disk is too small
_BILLIONS = re.compile(r"(\d+(?:\.\d+)?)B", re.IGNORECASE)


def checkpoint_gb(run: Run) -> float | None:
    """Size of one checkpoint in GB (10^9 bytes): of the newest in the store, else by the model; None: not known."""
    for stage in reversed(run.recipe.stages()):
        try:
            newest = run.store.latest(run.run_id, stage)
        except StoreError:
            continue
        if newest is not None:
            return newest.size_bytes / 1e9
    parameters = parameters_of(run.recipe)
    return None if parameters is None else parameters * BYTES_PER_PARAMETER / 1e9


def parameters_of(recipe: Recipe) -> float | None:
    """Number of parameters by the recipe's `model:` section: its shape, else the size in its name ('qwen3-4B')."""
    args = recipe.model.args
    layers, hidden = _number(args.get("num-layers")), _number(args.get("hidden-size"))
    if layers and hidden:
        ffn = _number(args.get("ffn-hidden-size")) or 4 * hidden
        vocabulary = _number(args.get("vocab-size")) or (VOCABULARY if recipe.trainer.kind == "slime" else 0)
        return layers * (4 * hidden**2 + 3 * hidden * ffn) + 2 * vocabulary * hidden
    named = _BILLIONS.search(recipe.model.name or "")
    return float(named[1]) * 1e9 if named else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
