"""The flow `post-training`: SFT and then RL from a recipe, on a pod that is rented for it and given back.

python flows/post_training.py deployments/recipes/demo.yaml
prefect deployment run 'post-training/lium' --param recipe=deployments/recipes/demo.yaml
"""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.recipe import Recipe
from tasks.pipeline import carry_through


@flow(name="post-training", retries=0, persist_result=False)
def post_training(recipe: Recipe | str, run_id: str | None = None) -> State[Any]:
    """Carry a recipe through SFT and then RL on one pod.

    Args:
        recipe: The recipe itself, or the path of its YAML file.
        run_id: Give the id of an earlier run to go on with it; empty for a new run.
    """
    return carry_through(recipe, ["sft", "rl"], run_id)


if __name__ == "__main__":
    from flows.cli import script

    script("sft", "rl")
