"""The command line where slime is not checked out: no arguments of the model in it, and all checks of its shape."""

from pathlib import Path
from typing import Any

import pytest

from blocks.recipe import Recipe
from plugins.errors import UserError
from plugins.slime.launch import Launch
from tasks.command_line import command_line
from tasks.stage_data import StageData
from tasks.stage_fit import stage_fit


def recipe(model: str, *, gpus: int = 8, **section: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "pod": {"gpu": "H200", "gpu_count": gpus},
            "model": {"hf_checkpoint": "/models/it", "name": model},
            "sft": {"data": "chat.jsonl", "num_rollout": 10, **section},
        }
    )


def line(wanted: Recipe, folder: Path) -> Launch:
    return command_line(wanted, "sft", StageData(folder / "chat.jsonl", 1000, "0"), slime_dir=folder)


@pytest.mark.parametrize(
    ("model", "parallelism", "said"),
    [
        ("qwen2.5-0.5B", {"tensor": 4}, "parallelism.tensor: 4 does not divide the model's num-attention-heads 14"),
        ("qwen3-235B-A22B", {"pipeline": 4}, "parallelism.pipeline: 4 does not divide the model's num-layers 94"),
        ("qwen3-4B", {"expert": 2}, "parallelism.expert: the model has no experts"),
    ],
)
def test_sizes_that_the_model_cannot_take_are_refused_without_slime(
    model: str, parallelism: dict[str, int], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        line(recipe(model, parallelism=parallelism), tmp_path)
    assert said in str(error.value)


def test_the_line_says_that_the_models_arguments_are_not_in_it(tmp_path: Path) -> None:
    launch = line(recipe("qwen3-4B"), tmp_path)
    assert "--num-layers" not in launch.argv and launch.architecture == []
    assert len(launch.notes) == 1 and "the arguments of qwen3-4B are not in this line" in launch.notes[0]


def test_a_model_with_latent_attention_gets_no_flash_attention(tmp_path: Path) -> None:
    assert "--attention-backend" not in line(recipe("moonlight"), tmp_path).argv
    assert "--attention-backend" in line(recipe("qwen3-4B"), tmp_path).argv


def test_memory_is_that_of_the_shape_and_the_refusal_names_what_helps(tmp_path: Path) -> None:
    wanted = recipe("qwen3-30B-A3B", gpus=4, parallelism={"tensor": 2, "expert": 2, "expert_tensor": 1})
    with pytest.raises(UserError) as error:
        stage_fit(wanted, "sft", line(wanted, tmp_path))
    for way in ("optimizer-cpu-offload", "use-precision-aware-optimizer", "tensor, pipeline or expert"):
        assert way in str(error.value)


def test_an_offloaded_optimizer_makes_the_model_fit(tmp_path: Path) -> None:
    extra = {"optimizer-cpu-offload": True, "use-precision-aware-optimizer": True}
    sizes = {"tensor": 2, "expert": 2, "expert_tensor": 1}
    wanted = recipe("qwen3-30B-A3B", gpus=4, parallelism=sizes, extra_args=extra)
    fit = stage_fit(wanted, "sft", line(wanted, tmp_path))
    assert fit.need and fit.need.optimizer_gb == 0 and fit.need.parameters == pytest.approx(30.5e9, rel=0.01)
