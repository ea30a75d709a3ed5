"""What the documents list is what there is: keys, ready recipes, names of failures."""

from pathlib import Path

import pytest

from blocks.recipe import load_recipe
from blocks.training import SECTIONS
from plugins.slime.causes import CAUSES

ROOT = Path(__file__).parents[1]
SLIME = (ROOT / "docs/en/slime.md").read_text()
RECIPES = sorted((ROOT / "deployments/recipes").glob("*.yaml"))


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_a_stage_is_explained(section: str) -> None:
    missing = [key for key in SECTIONS[section].model_fields if f"| `{section}.{key}` |" not in SLIME]
    assert not missing


def test_every_failure_that_is_recognised_is_listed_with_its_remedy() -> None:
    missing = [cause.name for cause in CAUSES if f"| `{cause.name}` |" not in SLIME]
    assert not missing
    assert SLIME.count("\n| `") == sum(len(model.model_fields) for model in SECTIONS.values()) + len(CAUSES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_reads_and_those_for_slime_are_listed_with_their_budget(path: Path) -> None:
    recipe = load_recipe(path)
    if recipe.trainer.kind == "slime":
        row = next(line for line in SLIME.splitlines() if f"deployments/recipes/{path.name})" in line)
        assert row.endswith(f"| {recipe.pod.budget_usd:g} |")
        assert "Estimate, not measured" in path.read_text()
