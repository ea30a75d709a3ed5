"""The command line of the stand-in: slime's own flag names and defaults, as far as recipes use them.

slime silently ignores a flag it does not know; here such a flag is refused, with the names that look like it. Flags
that only steer GPUs and engines are taken and have no effect. No torch here: the control plane imports this module
to check a recipe before it rents.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

from plugins.errors import UserError

RL_ROLLOUT = "slime.rollout.sglang_rollout.generate_rollout"
SFT_ROLLOUT = "slime.rollout.sft_rollout.generate_rollout"
DEFAULT_GENERATE = "plugins.http_env.adapter.generate"

# Flags by the type of their value; `name=default`, without a default None ("not given").
_TEXTS = """
    hf-checkpoint ref-load load save save-hf prompt-data input-key=input label-key metadata-key=metadata tool-key=tools
    custom-generate-function-path custom-rm-path custom-rollout-log-function-path sglang-router-ip=127.0.0.1
    custom-eval-rollout-log-function-path
"""
_INTEGERS = """
    save-interval num-rollout num-epoch rollout-batch-size n-samples-per-prompt=1 global-batch-size micro-batch-size=1
    num-steps-per-rollout start-rollout-id rollout-seed=42 seed=1234 rollout-max-response-len rollout-max-context-len
    rollout-top-k=-1 max-tokens-per-gpu eval-interval n-samples-per-eval-prompt=1 eval-max-response-len
    eval-max-context-len lr-warmup-iters=0 lr-decay-iters seq-length sglang-server-concurrency=64 sglang-router-port
    num-layers hidden-size ffn-hidden-size num-attention-heads num-query-groups max-position-embeddings vocab-size
"""
_NUMBERS = """
    eps-clip=0.2 eps-clip-high kl-loss-coef=0 entropy-coef=0 rollout-temperature=1 rollout-top-p=1 eval-temperature
    eval-top-p lr=1e-6 min-lr=0 lr-warmup-init=0 lr-warmup-fraction weight-decay=0.01 adam-beta1=0.9 adam-beta2=0.999
    adam-eps=1e-8 clip-grad=1 rotary-base norm-epsilon
"""
_SWITCHES = """
    apply-chat-template rollout-shuffle calculate-per-token-loss disable-compute-advantages-and-returns
    debug-train-only use-kl-loss use-rollout-logprobs disable-grpo-std-normalization use-dynamic-batch-size
    group-query-attention untie-embeddings-and-output-weights no-save-optim no-load-optim override-opt_param-scheduler
    use-checkpoint-opt_param-scheduler
    skip-eval-before-train async-save
"""
_CHOICES = {
    "rollout-function-path": (RL_ROLLOUT, SFT_ROLLOUT),
    "loss-type": ("policy_loss", "sft_loss"),
    "loss-mask-type": ("qwen", "qwen3", "qwen3_5", "distill_qwen"),
    "advantage-estimator": ("grpo",),
    "kl-loss-type": ("k1", "k2", "k3", "low_var_kl"),
    "lr-decay-style": ("linear", "constant", "cosine"),
    "optimizer": ("adam",),
    "normalization": ("RMSNorm",),
}
"""The first choice is the default."""
# Taken so that one recipe serves slime and the stand-in: flags with a value, and switches.
_NO_EFFECT_VALUES = """
    actor-num-nodes actor-num-gpus-per-node rollout-num-gpus rollout-num-gpus-per-engine num-gpus-per-node
    tensor-model-parallel-size pipeline-model-parallel-size context-parallel-size expert-model-parallel-size
    expert-tensor-parallel-size recompute-granularity recompute-method recompute-num-layers attention-dropout
    hidden-dropout attention-backend kv-channels position-embedding-type sglang-mem-fraction-static sglang-log-level
    tb-project-name tb-experiment-name distributed-timeout-minutes log-probs-max-tokens-per-gpu rm-type
    update-weights-interval
"""
_NO_EFFECT_SWITCHES = """
    colocate offload offload-train offload-rollout balance-data use-fault-tolerance sequence-parallel
    accumulate-allreduce-grads-in-fp32 attention-softmax-in-fp32 bf16 swiglu disable-bias-linear add-qkv-bias
    qk-layernorm use-rotary-position-embeddings use-tensorboard log-passrate log-multi-turn
    dist-ckpt-optim-fully-reshardable
"""
NO_EFFECT = (*_NO_EFFECT_VALUES.split(), *_NO_EFFECT_SWITCHES.split())


class _Parser(argparse.ArgumentParser):
    """argparse that raises our error instead of printing its usage over many lines."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parser() -> argparse.ArgumentParser:
    """All flags; `parse_args` raises UserError on a bad value. Flags that are not ours: see `unknown_flags`."""
    made = _Parser(prog="python -m plugins.tinyslime.train", description=__doc__, allow_abbrev=False)
    for kind, group in ((str, _TEXTS), (int, _INTEGERS), (float, _NUMBERS)):
        for name, _, default in (word.partition("=") for word in group.split()):
            made.add_argument(f"--{name}", type=kind, default=kind(default) if default else None)
    for name in _SWITCHES.split():
        made.add_argument(f"--{name}", action="store_true")
    for name, choices in _CHOICES.items():
        made.add_argument(f"--{name}", choices=choices, default=choices[0])
    made.add_argument("--eval-prompt-data", nargs="+")
    made.add_argument("--rollout-stop-token-ids", type=int, nargs="+")
    for name in _NO_EFFECT_VALUES.split():
        made.add_argument(f"--{name}", default=argparse.SUPPRESS, help="no effect here")
    for name in _NO_EFFECT_SWITCHES.split():
        made.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help="no effect here")
    return made


def known_flags() -> set[str]:
    """Every flag that the stand-in takes, with its dashes."""
    return {option for action in parser()._actions for option in action.option_strings if option.startswith("--")}


def unknown_flags(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Flags of `argv` that are not ours, in order, each with up to three known names that look like it."""
    known = known_flags()
    given = [word.partition("=")[0] for word in argv if word.startswith("--") and word != "--"]
    return [
        (flag, difflib.get_close_matches(flag, sorted(known), n=3, cutoff=0.75)) for flag in given if flag not in known
    ]


def is_sft(args: argparse.Namespace) -> bool:
    """Whether the flags ask for supervised training (else GRPO); UserError when they ask for half of each."""
    asked: tuple[bool, bool] = (args.loss_type == "sft_loss", args.rollout_function_path == SFT_ROLLOUT)
    if asked[0] != asked[1]:
        raise UserError(
            f"--loss-type sft_loss and --rollout-function-path {SFT_ROLLOUT} belong together: give both or neither"
        )
    if args.debug_train_only and not asked[0]:
        raise UserError("--debug-train-only without --loss-type sft_loss: there would be no rollout to train on")
    return asked[0]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read and check a command line; `num_rollout` may still be None when `--num-epoch` decides it. Raises
    UserError.
    """
    if unknown := unknown_flags(argv):
        said = [f"{flag} (did you mean {' or '.join(near)}?)" if near else flag for flag, near in unknown]
        raise UserError(f"flags that tinyslime does not know: {', '.join(said)}")
    args = parser().parse_args(argv)
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    if args.prompt_data is None or args.rollout_batch_size is None:
        raise UserError("--prompt-data and --rollout-batch-size are required")
    if args.num_rollout is None and args.num_epoch is None:
        raise UserError("give --num-rollout or --num-epoch")
    if (args.save is None) != (args.save_interval is None):
        raise UserError("--save and --save-interval belong together")
    if args.save_hf and "{rollout_id}" not in args.save_hf:
        raise UserError("--save-hf needs the placeholder {rollout_id}, or each export replaces the one before")
    if args.use_kl_loss and args.ref_load is None:
        raise UserError("--use-kl-loss needs --ref-load, the weights to stay near")
    if args.use_dynamic_batch_size and args.max_tokens_per_gpu is None:
        raise UserError("--use-dynamic-batch-size needs --max-tokens-per-gpu")
    if not is_sft(args) and args.rollout_max_response_len is None:
        raise UserError("--rollout-max-response-len is required for RL")
    if args.rollout_temperature <= 0:
        raise UserError("--rollout-temperature must be greater than 0")
    if args.eval_interval is not None and (args.eval_prompt_data is None or len(args.eval_prompt_data) % 2):
        raise UserError("--eval-interval needs --eval-prompt-data NAME FILE [NAME FILE ...]")
    for name in (
        "rollout_batch_size",
        "n_samples_per_prompt",
        "global_batch_size",
        "save_interval",
        "num_epoch",
        "micro_batch_size",
    ):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    _check_batches(args)


def _check_batches(args: argparse.Namespace) -> None:
    """slime's rule for the batch flags, filling in what is left out."""
    if is_sft(args) and args.n_samples_per_prompt != 1:
        raise UserError("--n-samples-per-prompt must be 1 for SFT")
    samples, steps = args.rollout_batch_size * args.n_samples_per_prompt, args.num_steps_per_rollout
    size = args.global_batch_size or samples // (steps or 1)
    steps = steps or max(1, samples // size)
    if size * steps != samples:
        raise UserError(
            f"--rollout-batch-size {args.rollout_batch_size} * --n-samples-per-prompt {args.n_samples_per_prompt} = "
            f"{samples} is not --global-batch-size {size} * --num-steps-per-rollout {steps} = {size * steps}"
        )
    args.global_batch_size, args.num_steps_per_rollout = size, steps
