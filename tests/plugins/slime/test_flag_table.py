"""The lint of slime's command line: what it refuses, in which words, and what it lets through."""

import re

import pytest

from plugins.errors import UserError
from plugins.slime import flag_table
from plugins.slime.flag_table import Flag, check

SFT = """
--num-layers 28 --hidden-size 1024 --ffn-hidden-size 3072 --swiglu --rotary-base 1000000 --qk-layernorm
--debug-train-only --rollout-function-path slime.rollout.sft_rollout.generate_rollout --loss-type sft_loss
--calculate-per-token-loss --disable-compute-advantages-and-returns --input-key messages --rollout-shuffle
--rollout-batch-size 128 --global-batch-size 128 --num-epoch 3 --lr 1e-5 --lr-decay-style cosine --min-lr 1e-6
--lr-warmup-fraction 0.1 --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.95 --save /save --save-interval 20
--save-hf /save/hf/{rollout_id} --custom-rollout-log-function-path plugins.slime.hooks.custom_rollout_log --seed 7
"""
RL = """
--num-layers 28 --moe-layer-freq ([0]*1+[1]*27) --colocate --rollout-batch-size 32 --n-samples-per-prompt 8
--global-batch-size 256 --num-rollout 3000 --rollout-temperature 1 --rollout-stop-token-ids 151645 151643
--eval-interval 20 --eval-prompt-data aime /data/aime.jsonl --advantage-estimator grpo --eps-clip 0.2
--sglang-mem-fraction-static 0.7 --sglang-cuda-graph-bs 1 2 4 8 --sglang-enable-metrics --router-policy random
--custom-generate-function-path plugins.http_env.adapter.generate --apply-chat-template-kwargs {"enable_thinking":0}
"""


def refusal(line: str) -> str:
    with pytest.raises(UserError) as refused:
        check(line.split())
    return str(refused.value)


@pytest.mark.parametrize("line", [SFT, RL], ids=["sft", "rl"])
def test_good_command_lines_pass(line: str) -> None:
    check(line.split())


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("--save-intervall 5", "--save-interval"),
        ("--save_interval 5", "--save-interval"),
        ("--lerning-rate 3", None),
        ("-lr 1e-5", "--lr"),
        ("--rollout-num-gpu 4", "--rollout-num-gpus"),
        ("--colocated", "--colocate"),
        ("--calculate-per-token", "--calculate-per-token-loss"),  # slime's main parser takes no abbreviations
        ("--help", None),
    ],
)
def test_a_flag_that_slime_would_ignore_is_refused_with_those_that_look_like_it(line: str, meant: str | None) -> None:
    said = refusal(f"--num-layers 2 {line} --swiglu")
    assert f"{line.split()[0]} is no flag of slime" in said
    if meant is not None:
        assert re.search(rf"did you mean .*{meant}\b", said)


def test_all_that_is_wrong_is_said_at_once() -> None:
    said = refusal("5 --lr 1e-5x --optimizer adamw --save-intervall 5 --num-layers --swiglu true")
    assert said.startswith("the trainer's flags have 6 problems: '5' stands before the first flag")
    assert "--lr: '1e-5x' is not a number" in said
    assert "--optimizer: 'adamw' is not one of adam, sgd" in said
    assert "--num-layers needs a value" in said
    assert "--swiglu is a switch: slime would ignore 'true'" in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--num-layers 28.0", "'28.0' is not a whole number"),
        ("--num-rollout 1e3", "'1e3' is not a whole number"),
        ("--swiglu=true", "--swiglu is a switch and takes no value, not 'true'"),
        ("--lr -1e-5", "--lr needs a value (a value that starts with - is given as --lr=-...)"),
        ("--lr 1e-5 1e-6", "--lr takes 1 value: slime would ignore '1e-6'"),
        ("--lr=1e-5 1e-6", "--lr takes 1 value: slime would ignore '1e-6'"),
        ("--rampup-batch-size 1 2", "--rampup-batch-size needs 3 values"),
        ("--eval-prompt-data --swiglu", "--eval-prompt-data needs a value"),
        ("--rollout-stop-token-ids 1 x", "'x' is not a whole number"),
        ("--apply-chat-template-kwargs {'a':1}", "is not JSON"),
        ("--moe-layer-freq [x]*3", "is not a whole number or a pattern"),
        ("--attention-backend Flash", "'Flash' is not one of flash, fused"),
        ("--empty-unused-memory-level 3", "'3' is not one of 0, 1, 2"),
        ("--lazy-mpu-init false", "any text counts as yes, so leave the flag out"),
        ("--lr 1e-5 -- --swiglu", "`--` ends the flags"),
    ],
)
def test_values_that_slime_would_refuse_or_ignore_are_named(line: str, words: str) -> None:
    assert words in refusal(line)


@pytest.mark.parametrize(
    "line",
    [
        "--lr=1e-5",
        "--lr=-1e-5",
        "--lr -0.5",
        "--num-layers 2 --num-layers 3",  # the later one wins, and a model's own arguments are changed so
        "--persistent-save-interval 5",
        "--disable-tp-comm-bulk-wgrad",
        "--no-offload-train",
        "--freeze-params-name-list",
        "--override-opt_param-scheduler",
        "--use-gated-attention",  # from slime's patch of Megatron
    ],
)
def test_spellings_and_values_that_argparse_takes_pass(line: str) -> None:
    check(line.split())


@pytest.mark.parametrize("name", ["--sglang-some-new-option", "--router-some-new-option", "--sglang-mem-fraction"])
def test_options_of_the_engines_pass_by_their_prefix(name: str) -> None:
    check([name, "1", "2", "three"])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("--sglang-mem-fraction-statick", "--sglang-mem-fraction-static"),
        ("--sglang-mem_fraction_static", "--sglang-mem-fraction-static"),
        ("--router-polciy", "--router-policy"),
        ("--sglang-router-prot", "--sglang-router-port"),
    ],
)
def test_a_misspelt_well_known_option_of_the_engines_is_refused(name: str, meant: str) -> None:
    assert f"{name} looks like a misspelt flag of SGLang (did you mean {meant}" in refusal(f"{name} 1")


def test_an_engine_option_that_slime_sets_itself_is_refused() -> None:
    assert "--sglang-tp-size would be ignored" in refusal("--sglang-tp-size 2")


def test_an_engine_option_is_refused_where_the_engines_parser_is_known() -> None:
    (said,) = flag_table.problems(["--sglang-bogus", "1"], flag_table.known(), engine_flags_known=True)
    assert said.startswith("--sglang-bogus is no flag of slime")


def test_a_table_is_read_as_it_was_written() -> None:
    flags = [
        Flag("--b", ("--c", "-d"), "+", "int", ("1", "2"), "megatron", "b", "[1]"),
        Flag("--a", takes="0", type="", sets="a", default='{"x": 1}'),
    ]
    text = flag_table.write_table(flags, ["made by hand"])
    assert flag_table.read_table(text) == sorted(flags, key=lambda flag: flag.name)
    assert text.startswith("# made by hand\n# name\talso\t")


def test_the_table_holds_the_options_of_both_and_the_defaults_that_slime_sets() -> None:
    known = flag_table.known()
    assert {flag.source for flag in known.values()} == {"slime", "megatron"}
    assert len({flag.name for flag in known.values()}) > 850
    assert known["--lr"].default == "1e-06"  # Megatron's own is none
    assert known["--persistent-save-interval"] is known["--save-interval"]
