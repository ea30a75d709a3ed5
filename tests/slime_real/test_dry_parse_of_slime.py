"""slime's real parser and validation, asked as a stage asks them, and run up to the place where it wants GPUs."""

import sys
from pathlib import Path
from typing import Any

import pytest

from plugins.errors import UserError
from plugins.slime.dry_run import run_dry_parse
from plugins.slime.flags import model_args
from tests.slime_real import SLIME, environment, hf_folder, needs_slime, validate

pytestmark = needs_slime

SFT = """
--debug-train-only --rollout-function-path slime.rollout.sft_rollout.generate_rollout --loss-type sft_loss
--calculate-per-token-loss --disable-compute-advantages-and-returns --input-key messages --rollout-shuffle
--rollout-batch-size 128 --global-batch-size 128 --num-rollout 10 --actor-num-gpus-per-node 4
--use-dynamic-batch-size --max-tokens-per-gpu 9216 --optimizer adam --lr 1e-5 --lr-decay-style cosine --min-lr 1e-6
--lr-warmup-fraction 0.1 --recompute-granularity full --recompute-method uniform --recompute-num-layers 1
"""
RL = """
--colocate --rollout-batch-size 32 --n-samples-per-prompt 8 --global-batch-size 256 --num-rollout 10
--rm-type deepscaler --rollout-max-response-len 8192 --rollout-temperature 1
--actor-num-gpus-per-node 8 --num-gpus-per-node 8
--advantage-estimator grpo --use-kl-loss --kl-loss-coef 0.0 --kl-loss-type low_var_kl --entropy-coef 0.0
--tensor-model-parallel-size 2 --sequence-parallel --use-dynamic-batch-size --max-tokens-per-gpu 9216
--rollout-num-gpus-per-engine 2 --sglang-mem-fraction-static 0.7 --optimizer adam --lr 1e-6 --lr-decay-style constant
"""


def command_line(folder: Path, flags: str, model: str = "qwen3-0.6B", **changes: Any) -> list[str]:
    """Arguments of train.py for a model whose Hugging Face folder lies in `folder`; changes: of its config.json."""
    weights = str(hf_folder(folder / "hf", model, **changes))
    data = ["--hf-checkpoint", weights, "--ref-load", weights, "--prompt-data", str(folder / "data.parquet")]
    return [*model_args(SLIME, model), *flags.split(), *data]


def ask(argv: list[str]) -> None:
    run_dry_parse(sys.executable, argv, environment(), SLIME, timeout_s=240)


@pytest.mark.parametrize("flags", [SFT, RL], ids=["sft", "rl"])
def test_a_good_command_line_passes(flags: str, tmp_path: Path) -> None:
    ask(command_line(tmp_path, flags))


def test_misspelt_flags_of_slime_megatron_and_sglang_are_all_named(tmp_path: Path) -> None:
    wrong = " --save-intervall 5 --lerning-rate 3 --sglang-bogus 1 --router-polciy random --lr-warmup-iters 1.5"
    with pytest.raises(UserError) as refused:
        ask(command_line(tmp_path, RL + wrong))
    for word in ("--save-intervall", "--lerning-rate", "--sglang-bogus", "--router-polciy", "'1.5' is not a whole"):
        assert word in str(refused.value)
    assert "--save-interval" in str(refused.value).split("did you mean")[1]


def test_weights_that_the_model_flags_do_not_describe_are_refused_in_slimes_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hidden_size in hf config 512.*the recipe's `model` does not describe"):
        ask(command_line(tmp_path, SFT, hidden_size=512))


def test_the_kl_loss_without_reference_weights_is_refused_in_plain_words(tmp_path: Path) -> None:
    argv = command_line(tmp_path, RL)
    at = argv.index("--ref-load")
    with pytest.raises(UserError, match="need --ref-load"):
        ask(argv[:at] + argv[at + 2 :])


def test_weights_that_are_not_there_are_refused_in_plain_words(tmp_path: Path) -> None:
    argv = command_line(tmp_path, SFT)
    argv[argv.index("--hf-checkpoint") + 1] = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="--hf-checkpoint is no folder on the pod"):
        ask(argv)


def test_gpus_that_do_not_divide_are_refused_in_megatrons_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"world size.*is not divisible.*the GPUs must divide"):
        ask(command_line(tmp_path, RL + " --actor-num-gpus-per-node 3"))


@pytest.mark.parametrize("model", ["qwen3-4B", "qwen3-0.6B", "qwen2.5-0.5B"])
def test_slimes_script_takes_the_published_sizes_of_a_model(model: str, tmp_path: Path) -> None:
    args = validate(command_line(tmp_path, RL, model))
    assert args["gpus"] == 8
    assert args["rollout_batch_size"] * args["n_samples_per_prompt"] == args["global_batch_size"] == 256
    assert args["sglang_tp_size"] == 2
    assert args["start_rollout_id"] == 0


def test_the_asynchronous_script_asks_for_the_trainers_gpus_and_refuses_to_share_them(tmp_path: Path) -> None:
    argv = command_line(tmp_path, SFT)
    assert validate(argv, "train_async.py")["gpus"] == 4
    with pytest.raises(AssertionError, match="Colocation is not supported"):
        validate([*argv, "--colocate"], "train_async.py")


def test_what_argparse_refuses_comes_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="argument --lr: invalid float value: '1e-5x'"):
        validate([*command_line(tmp_path, SFT), "--lr", "1e-5x"])
