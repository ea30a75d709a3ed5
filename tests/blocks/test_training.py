"""The typed sections of a stage: each key is one flag of slime, and a flag has one key."""

import pytest

from blocks.recipe import Recipe, load_recipe
from blocks.training import SECTIONS, DataSection, Training, flag_of, keys
from plugins.errors import UserError
from plugins.slime.flag_table import known

ENGINE_FLAGS = {
    "sglang-mem-fraction-static",
    "sglang-server-concurrency",
    "sglang-context-length",
}  # of SGLang's parser


def test_every_key_is_a_flag_that_slime_has() -> None:
    missing = {flag for flag in keys() if f"--{flag}" not in known()}
    assert missing <= ENGINE_FLAGS, missing


def test_no_two_keys_set_the_same_flag() -> None:
    fields = [field for model in SECTIONS.values() for field in model.model_fields.values()]
    flags = [flag for field in fields if (flag := flag_of(field))]
    assert len(flags) == len(set(flags))


def test_choices_of_a_key_are_those_of_slimes_parser() -> None:
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            flag = known().get(f"--{flag_of(field)}")
            if flag is None or not flag.choices:
                continue
            offered = {choice for choice in _literals(field.annotation) if isinstance(choice, str)}
            assert offered <= set(flag.choices), (section, name, offered - set(flag.choices))


def _literals(annotation: object) -> set[object]:
    import typing

    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return set(inner)
    return {value for one in inner for value in _literals(one)}


def test_sections_become_flags_and_what_is_not_set_is_left_to_the_defaults() -> None:
    stage = Training.model_validate(
        {
            "rollout": {"batch_size": 8, "reward": "math"},
            "optimisation": {"lr": 1e-6, "kl_loss_coef": 0.0},
            "parallelism": {"tensor": 2, "recompute": "none"},
            "extra_args": {"use-tis": True},
        }
    )
    assert stage.flags(DataSection(path="d.jsonl", chat_template=True)) == {
        "rollout-batch-size": 8,
        "rm-type": "math",
        "lr": 1e-6,
        "kl-loss-coef": 0.0,
        "use-kl-loss": True,
        "tensor-model-parallel-size": 2,
        "recompute-granularity": False,
        "recompute-method": False,
        "recompute-num-layers": False,
        "apply-chat-template": True,
        "use-tis": True,
    }


def test_a_flag_that_is_set_by_its_key_and_again_in_extra_args_is_refused() -> None:
    stage = Training.model_validate({"optimisation": {"lr": 1e-6}, "extra_args": {"lr": 1e-5}})
    with pytest.raises(UserError, match=r"set twice: optimisation\.lr and extra_args\.lr"):
        stage.flags(None)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"rollout": {"batch_sise": 4}}, "sft.rollout.batch_sise: unknown key; did you mean batch_size"),
        ({"optimisation": {"lr": -1}}, "sft.optimisation.lr: Input should be greater than 0"),
        ({"optimisation": {"advantage": "grppo"}}, "sft.optimisation.advantage: Input should be 'grpo'"),
        (
            {"data": {"path": "d.jsonl", "input": "x"}},
            "sft.data.DataSection.input: unknown key; did you mean input_key",
        ),
        ({"evaluation": {"data": {"two words": "d.jsonl"}}}, "a data set's name is one word"),
        ({"args": {"lr": 1}}, "sft.args: unknown key; did you mean extra_args?"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path, section, said) -> None:
    import yaml

    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({"name": "r", "sft": {"data": "d.jsonl", "num_rollout": 1, **section}}))
    with pytest.raises(UserError) as refused:
        load_recipe(file)
    assert said in str(refused.value)


def test_data_may_be_a_path_or_a_section_and_evaluation_files_start_at_the_recipes_folder_too(tmp_path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "name: r\n"
        "sft: {data: d.jsonl, num_rollout: 1}\n"
        "rl:\n  data: {path: hf://datasets/a/b/c.parquet, input_key: q}\n  num_rollout: 1\n"
        "  evaluation: {interval: 1, data: {own: e.jsonl, hub: hf://datasets/a/b/t.parquet}}\n"
    )
    recipe: Recipe = load_recipe(file)
    assert recipe.sft is not None and recipe.rl is not None
    assert recipe.sft.dataset == DataSection(path=str(tmp_path / "d.jsonl"))
    assert recipe.rl.dataset == DataSection(path="hf://datasets/a/b/c.parquet", input_key="q")
    assert recipe.rl.evaluation.data == {"own": str(tmp_path / "e.jsonl"), "hub": "hf://datasets/a/b/t.parquet"}
