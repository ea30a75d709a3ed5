"""Recipes: what is read, what is refused, and whether the message tells file, key and what would be right."""

from pathlib import Path

import pytest

from blocks.recipe import Recipe, check_run_id, load_recipe, parse_recipe, resolve
from plugins.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
GOOD = """
name: small
trainer: {kind: tinyslime}
sft: {data: rows.jsonl, num_rollout: 3, extra_args: {rollout-batch-size: 4}}
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("file", sorted((ROOT / "deployments" / "recipes").glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_recipe_is_valid_and_its_data_ships_with_it(file: Path) -> None:
    recipe = load_recipe(file)
    for stage in recipe.stages():
        data = recipe.stage(stage).dataset
        assert data is None or data.path.startswith("hf://") or Path(data.path).is_file()


def test_relative_data_starts_at_the_recipes_folder(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, GOOD)).stage("sft").data == str(tmp_path / "rows.jsonl")


def test_the_store_defaults_to_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINSTACK_DIR", str(tmp_path / "state"))
    assert load_recipe(write(tmp_path, GOOD)).checkpoint.store == f"folder:{tmp_path}/state/store"


def test_resolving_twice_changes_nothing(tmp_path: Path) -> None:
    once = load_recipe(write(tmp_path, GOOD))
    assert resolve(once, tmp_path / "elsewhere") == once


def test_the_digest_does_not_depend_on_layout(tmp_path: Path) -> None:
    one = load_recipe(write(tmp_path, GOOD))
    spread = GOOD.replace("extra_args: {rollout-batch-size: 4}", "extra_args:\n    {rollout-batch-size: 4}")
    other = load_recipe(write(tmp_path, spread))
    assert one.digest() == other.digest()


def test_rl_starts_from_this_runs_sft_when_the_recipe_has_one(tmp_path: Path) -> None:
    text = GOOD + "rl: {data: rows.jsonl, num_rollout: 1, environment: {task: arithmetic}}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.rl is not None and recipe.rl.init == "sft"


def test_a_recipe_can_travel_as_a_flow_parameter() -> None:
    recipe = load_recipe(ROOT / "deployments" / "recipes" / "demo.yaml")
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: small\nsfx: {}\n", ["recipe.yaml: sfx: unknown key", "did you mean sft"]),
        ("name: small\nsft: {num_rolout: 3}\n", ["sft.num_rolout: unknown key", "did you mean num_rollout"]),
        ("name: small\nsft: {num_rollout: many}\n", ["sft.num_rollout", "valid integer", "'many'"]),
        ("name: small\npod: {gpu_count: 0}\nsft: {}\n", ["pod.gpu_count", "greater than or equal to 1"]),
        ("name: small\n", ["needs an 'sft:' or an 'rl:' section"]),
        ("sft: {num_rollout: 1}\n", ["name: missing"]),
        ("name: Bad Name\nsft: {}\n", ["name:", "pattern"]),
        ("name: small\nrl: {environment: {}}\n", ["rl.environment", "exactly one of 'url' and 'task'"]),
        ("name: small\nrl: {init: foo}\n", ["rl.init", "run:<run_id>/sft"]),
        ("- a list\n", ["expected a mapping"]),
        ("name: [unclosed\n", ["not valid YAML"]),
        ("name: small\nsft: {}\nname: other\n", ["not valid YAML", "'name' is given twice"]),
    ],
)
def test_a_mistake_is_named_with_file_and_key(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write(tmp_path, text))
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_recipe_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not found: .*nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_a_recipe_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="Cannot read recipe"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("run_id", ["a", "demo-1", "x" * 40])
def test_a_good_run_id_is_taken(run_id: str) -> None:
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize("run_id", ["", "A", "-a", "a-", "a b", "../x", "x" * 41, "ä"])
def test_a_bad_run_id_is_refused(run_id: str) -> None:
    with pytest.raises(UserError, match="Run id"):
        check_run_id(run_id)


def test_an_infinite_number_is_refused() -> None:
    with pytest.raises(UserError, match=r"pod\.budget_usd"):
        parse_recipe({"name": "x", "pod": {"budget_usd": float("inf")}, "sft": {}}, source="r.yaml")
