"""The flow `rl-pipeline`: reinforcement learning from a recipe, on a pod that is rented for it and given back.

python flows/rl.py deployments/recipes/demo-rl.yaml
prefect deployment run 'rl-pipeline/lium' --param recipe=deployments/recipes/demo-rl.yaml
"""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.recipe import Recipe
from tasks.pipeline import carry_through


@flow(name="rl-pipeline", retries=0, persist_result=False)
def rl_pipeline(recipe: Recipe | str, run_id: str | None = None) -> State[Any]:
    """Carry the `rl` stage of a recipe through.

    Args:
        recipe: The recipe itself, or the path of its YAML file.
        run_id: Give the id of an earlier run to go on with it; empty for a new run.
    """
    return carry_through(recipe, ["rl"], run_id)


if __name__ == "__main__":
    from flows.cli import script

    script("rl")
