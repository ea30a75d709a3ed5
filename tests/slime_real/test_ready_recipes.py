"""Every recipe that we ship for slime becomes a command line that slime's and Megatron's own validation takes."""

from pathlib import Path
from typing import Any

import pytest

from blocks.recipe import Recipe, load_recipe
from plugins.slime.flags import parse_argv
from tasks.command_line import command_line
from tasks.stage_data import StageData
from tests.slime_real import ROOT, SLIME, hf_folder, needs_slime, validate

pytestmark = needs_slime

RECIPES = {
    path.stem: recipe
    for path in sorted((ROOT / "deployments/recipes").glob("*.yaml"))
    if (recipe := load_recipe(path)).trainer.kind == "slime"
}
STAGES = [(name, stage) for name, recipe in RECIPES.items() for stage in recipe.stages()]


def test_all_seven_are_there() -> None:
    assert set(RECIPES) == {
        "qwen3-4b-sft",
        "qwen3-4b-rl",
        "qwen2.5-0.5b-rl-reproducibility",
        "liveweb-sft",
        "liveweb-rl",
        "smoke-qwen3-0.6b",
        "qwen3-14b-two-nodes",
    }


@pytest.mark.parametrize(("name", "stage"), STAGES, ids=lambda value: str(value))
def test_slime_and_megatron_accept_the_command_line(
    name: str, stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: Recipe = RECIPES[name]
    for variable, value in recipe.env.items():
        monkeypatch.setenv(variable, value)
    assert recipe.model.name is not None
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "label": "b", "messages": []}\n')
    launch = command_line(recipe, stage, StageData(data, 10_000, "0"), slime_dir=SLIME)
    folder = str(hf_folder(tmp_path / "hf", recipe.model.name))
    argv = launch.argv[2:]
    for flag in ("--hf-checkpoint", "--ref-load"):
        argv[argv.index(flag) + 1] = folder
    argv[argv.index("--save") + 1] = str(tmp_path / "save")
    argv = [f"{tmp_path}/save/hf/{{rollout_id}}" if word.endswith("/hf/{rollout_id}") else word for word in argv]
    args = validate(argv, launch.argv[1])  # type: ignore[arg-type]
    pod = recipe.pod
    assert args["gpus"] == pod.nodes * pod.gpu_count, "slime asks Ray for the GPUs that are paid for"
    assert args["num_gpus_per_node"] == pod.gpu_count
    assert args["num_rollout"] == recipe.stage(stage).num_rollout
    given = parse_argv(launch.argv[2:])
    assert args["global_batch_size"] == given["global-batch-size"]
    assert args["save_interval"] == recipe.stage(stage).save_interval
    assert args["finetune"] is True and args["start_rollout_id"] == 0, "a cold start"


def test_slime_says_what_the_checks_say_of_a_wrong_batch(tmp_path: Path) -> None:
    """The rule that is refused before renting is slime's own."""
    recipe = RECIPES["smoke-qwen3-0.6b"]
    data = StageData(tmp_path / "d.jsonl", 100, "0")
    launch = command_line(recipe, "rl", data, slime_dir=SLIME)
    argv = launch.argv[2:]
    folder = str(hf_folder(tmp_path / "hf", "qwen3-0.6B"))
    for flag in ("--hf-checkpoint", "--ref-load"):
        argv[argv.index(flag) + 1] = folder
    argv[argv.index("--global-batch-size") + 1] = "5"
    with pytest.raises((AssertionError, RuntimeError), match="global_batch_size"):
        validate(argv)
