"""Whether a checkpoint is of the model that a recipe describes: weights of another architecture cannot be loaded."""

import json

from blocks.recipe import Recipe
from plugins.checkpoints.manifest import Manifest
from plugins.errors import UserError

SHAPE = "model_shape"
"""Key of a manifest's lineage."""
ARCHITECTURE = (
    "name",
    "num-layers",
    "hidden-size",
    "ffn-hidden-size",
    "num-attention-heads",
    "num-query-groups",
    "kv-channels",
    "vocab-size",
)
"""What decides the shapes of tensors; other `model.args`, such as a sequence length, may change."""


def shape_of(recipe: Recipe) -> str:
    """The recipe's `model:` as it goes into the lineage: JSON with sorted keys."""
    return json.dumps({"name": recipe.model.name, **recipe.model.args}, sort_keys=True)


def check_same_model(checkpoint: Manifest, recipe: Recipe, what: str, remedy: str) -> None:
    """Raise UserError when a checkpoint is of another architecture. what: who wants it, for the message."""
    trained = checkpoint.lineage.get(SHAPE)
    if trained is None:
        return  # sealed by an earlier version
    before, now = json.loads(trained), json.loads(shape_of(recipe))
    wrong = [key for key in ARCHITECTURE if before.get(key) != now.get(key)]
    if wrong:
        said = (f"{key} is {before.get(key)} there, {now.get(key)} in the recipe's `model:`" for key in wrong)
        raise UserError(
            f"{what} iteration {checkpoint.iteration} of {checkpoint.run_id}/{checkpoint.stage}, which is of another "
            f"model: {'; '.join(said)}. {remedy}"
        )
