"""The flow `sft-pipeline`: supervised fine-tuning from a recipe, on a pod that is rented for it and given back.

python flows/sft.py deployments/recipes/demo-sft.yaml
prefect deployment run 'sft-pipeline/lium' --param recipe=deployments/recipes/demo-sft.yaml
"""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from blocks.recipe import Recipe
from tasks.pipeline import carry_through


@flow(name="sft-pipeline", retries=0, persist_result=False)
def sft_pipeline(recipe: Recipe | str, run_id: str | None = None) -> State[Any]:
    """Carry the `sft` stage of a recipe through.

    Args:
        recipe: The recipe itself, or the path of its YAML file.
        run_id: Give the id of an earlier run to go on with it; empty for a new run.
    """
    return carry_through(recipe, ["sft"], run_id)


if __name__ == "__main__":
    from flows.cli import script

    script("sft")
