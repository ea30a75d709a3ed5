"""Base models: how a recipe names them, which files are fetched, and whether flags and config say the same."""

import ast
import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plugins.errors import UserError
from plugins.slime.flags import Value, model_args, parse_argv
from plugins.slime.launch import TrainerSpec, build
from plugins.slime.weights import (
    PAIRS,
    HubModel,
    base_of,
    misfits,
    needed_files,
    parameters_in,
    pinned,
    repo_of,
)
from tests.plugins.slime.hf_folders import write_hf

SLIME = os.environ.get("SLIME", "")
ARGUMENTS = Path(SLIME) / "slime/backends/megatron_utils/arguments.py"
needs_slime = pytest.mark.skipif(
    not SLIME or not ARGUMENTS.is_file(), reason="SLIME names no checkout of upstream slime"
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
QWEN: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 2560,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "intermediate_size": 9728,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
}
FLAGS: dict[str, Value] = {
    "hidden-size": 2560,
    "num-attention-heads": 32,
    "num-layers": 36,
    "ffn-hidden-size": 9728,
    "norm-epsilon": 1e-6,
    "rotary-base": 1000000,
}


def test_a_base_model_is_a_folder_or_a_repository_with_or_without_a_revision() -> None:
    assert base_of("/root/models/x") == Path("/root/models/x")
    assert base_of(" Qwen/Qwen3-4B ") == HubModel("Qwen/Qwen3-4B")
    assert base_of("Qwen/Qwen3-4B@refs/pr/7") == HubModel("Qwen/Qwen3-4B", "refs/pr/7")
    model = HubModel("Qwen/Qwen3-4B", "main")
    assert model.folder_name(COMMIT) == f"Qwen--Qwen3-4B@{COMMIT}"
    for wrong in ("gpt2", "~/x", "./a/b", "a/b/c", "../x", "a/..", "hub://a/b", "a/b@", "a--b/c", ""):
        with pytest.raises(UserError, match="write /root/models/"):
            base_of(wrong)


def test_a_base_model_has_one_id_with_or_without_a_revision() -> None:
    assert repo_of("Qwen/Qwen3-4B@main") == repo_of("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"
    assert repo_of("/root/x@y") == "/root/x@y" and repo_of(None) is None


def test_the_trainer_gets_the_folder_for_its_config_and_the_converted_one_for_its_weights(tmp_path: Path) -> None:
    spec = TrainerSpec(
        kind="slime",
        stage="sft",
        run_id="r",
        attempt=1,
        save_dir=tmp_path / "save",
        rollout_dir=tmp_path / "rollouts",
        init_dir=tmp_path / "hf",
        ref_dir=tmp_path / "hf.torch_dist",
        data=tmp_path / "x.jsonl",
        num_rollout=1,
        slime_dir=tmp_path,
    )
    flags = parse_argv(build(spec).argv)
    assert (flags["hf-checkpoint"], flags["ref-load"]) == (str(tmp_path / "hf"), str(tmp_path / "hf.torch_dist"))


def test_a_lineage_binds_the_commit_of_this_model_only() -> None:
    model = HubModel("a/b")
    assert pinned({"base_model": model.at(COMMIT)}, model) == COMMIT
    for other in ({}, {"base_model": ""}, {"base_model": "a/b"}, {"base_model": "a/b@main"}):
        assert pinned(other, model) is None
    assert pinned({"base_model": f"a/c@{COMMIT}"}, model) is None


def test_weights_config_tokenizer_and_code_are_fetched_and_copies_are_not(tmp_path: Path) -> None:
    hf = write_hf(tmp_path / "hf")
    here = {path.name for path in hf.iterdir()}
    others = {
        *("pytorch_model-00001-of-00002.bin", "consolidated.safetensors", "original/params.json", "README.md"),
        *(".gitattributes", "tf_model.h5", "model.gguf", "LICENSE", "figure.png"),
    }
    more = {"modeling_x.py", "merges.txt", "tiktoken.model", "chat_template.jinja", "generation_config.json"}
    assert set(needed_files(here | others | more, hf / "model.safetensors.index.json")) == here | more


def test_a_repository_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model\.safetensors: slime needs weights in safetensors"):
        needed_files(["config.json", "pytorch_model.bin"], None)
    hf = write_hf(tmp_path / "hf")
    with pytest.raises(UserError, match=r"no model-00001-of-00002\.safetensors, which its .* names"):
        needed_files(["config.json"], hf / "model.safetensors.index.json")


def test_parameters_follow_from_bytes_and_type() -> None:
    assert parameters_in({"torch_dtype": "bfloat16"}, 800) == 400
    assert parameters_in({"dtype": "float32"}, 800) == 200
    assert parameters_in({}, 800) == 400
    assert parameters_in({"torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}}, 800) == 800
    assert parameters_in({"text_config": {"dtype": "float16"}}, 800) == 400


def test_equal_flags_and_config_fit() -> None:
    assert misfits(QWEN, FLAGS, whole=True) == []
    assert misfits(QWEN, {}, whole=False) == []
    assert misfits({}, FLAGS, whole=True) == []


@pytest.mark.parametrize(
    ("config", "flags", "words"),
    [
        ({"hidden_size": 2048}, {}, "hidden_size is 2048 in the model's config.json, --hidden-size is 2560"),
        ({"num_hidden_layers": 28}, {}, "num_hidden_layers is 28"),
        ({}, {"rotary-base": 10000}, "rope_theta is 1000000 in the model's config.json, --rotary-base is 10000"),
        ({"rope_parameters": {"rope_theta": 5e6}}, {}, "rope_theta is 5000000.0"),
        ({}, {"norm-epsilon": 1e-5}, "rms_norm_eps is 1e-06"),
        ({"tie_word_embeddings": False}, {}, "tie_word_embeddings is False"),
        ({}, {"untie-embeddings-and-output-weights": True}, "tie_word_embeddings is True"),
        ({"text_config": {**QWEN, "hidden_size": 7}}, {}, "hidden_size is 7"),
    ],
)
def test_a_contradiction_is_told_with_both_sides(config: dict[str, Any], flags: dict[str, Value], words: str) -> None:
    (said,) = misfits({**QWEN, **config}, {**FLAGS, **flags}, whole=True)
    assert words in said


def test_a_missing_rotary_base_is_megatrons_default() -> None:
    without = {name: value for name, value in FLAGS.items() if name != "rotary-base"}
    assert len(misfits(QWEN, without, whole=True)) == 1
    assert misfits(QWEN, without, whole=False) == []


def test_a_model_of_experts_has_no_dense_size_unless_some_layers_are_dense() -> None:
    experts = {**QWEN, "num_experts": 128, "intermediate_size": 1, "moe_intermediate_size": 768}
    flags = {**FLAGS, "moe-ffn-hidden-size": 768}
    assert misfits(experts, {**flags, "moe-layer-freq": "[1,1,1]"}, whole=True) == []
    assert len(misfits(experts, {**flags, "moe-layer-freq": "[0,1,1]"}, whole=True)) == 1
    assert len(misfits(experts, {**flags, "moe-ffn-hidden-size": 7}, whole=True)) == 1


def slimes_check() -> Any:
    """slime's `_hf_validate_args`, cut out of its module, which needs Megatron."""
    wanted = ("_hf_validate_args", "_is_moe_config", "_has_dense_moe_layers")
    parts = [
        node
        for node in ast.parse(ARGUMENTS.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name in wanted
    ]
    names: dict[str, Any] = {"ast": ast}
    exec(compile(ast.Module(parts, []), "slime", "exec"), names)
    return names["_hf_validate_args"]


def refused_by_slime(config: dict[str, Any], flags: dict[str, Value]) -> bool:
    defaults = {"rotary-base": 10000, "norm-epsilon": 1e-5, "untie-embeddings-and-output-weights": False}
    args = {name.replace("-", "_"): value for name, value in {**defaults, **flags}.items()}
    try:
        slimes_check()(Namespace(**args), SimpleNamespace(**config))
    except AssertionError:
        return True
    return False


@pytest.mark.slime
@needs_slime
@pytest.mark.parametrize("changed", [*sorted({flag for _, flag in PAIRS}), "rotary-base", "untie", "nothing"])
def test_slime_and_we_refuse_the_same(changed: str) -> None:
    config = {**QWEN, "moe_intermediate_size": 5, "shared_expert_intermediate_size": 6}
    flags = {
        **FLAGS,
        "moe-ffn-hidden-size": 5,
        "moe-shared-expert-intermediate-size": 6,
        "layernorm-epsilon": 1e-6,
        "moe-layer-freq": "[0, 1]",
    }
    if changed == "untie":
        flags["untie-embeddings-and-output-weights"] = True
    elif changed != "nothing":
        flags[changed] = 3
    assert refused_by_slime(config, flags) == bool(misfits(config, flags, whole=True)) == (changed != "nothing")


@pytest.mark.slime
@needs_slime
def test_slimes_own_arguments_of_qwen3_4b_fit_its_config() -> None:
    flags = parse_argv(model_args(Path(SLIME), "qwen3-4B"))
    assert misfits(QWEN, flags, whole=True) == [] and not refused_by_slime(QWEN, flags)
