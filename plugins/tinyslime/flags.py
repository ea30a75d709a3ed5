"""The command line of the stand-in: slime's own flag names and defaults, as far as recipes use them.

slime silently ignores a flag it does not know; here such a flag is refused, with the names that look like it. Flags that only steer GPUs
and engines are taken and have no effect. No torch here: the control plane imports this module to check a recipe before it rents.
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Sequence
from typing import Any, NoReturn

from plugins.errors import UserError

SFT_ROLLOUT = "slime.rollout.sft_rollout.generate_rollout"
DEFAULT_GENERATE = "plugins.http_env.adapter.generate"

# Groups of one line each: (type, names with defaults). A default of None means "not given".
_TEXTS: dict[str, Any] = {
    "hf-checkpoint": None, "ref-load": None, "load": None, "save": None, "save-hf": None,
    "prompt-data": None, "input-key": "input", "label-key": None, "metadata-key": "metadata", "tool-key": "tools",
    "custom-generate-function-path": None, "custom-rm-path": None, "custom-rollout-log-function-path": None,
}  # fmt: skip
_INTEGERS: dict[str, Any] = {
    "save-interval": None, "num-rollout": None, "num-epoch": None, "rollout-batch-size": None, "n-samples-per-prompt": 1,
    "global-batch-size": None, "micro-batch-size": 1, "num-steps-per-rollout": None, "start-rollout-id": None,
    "rollout-seed": 42, "seed": 1234, "rollout-max-response-len": None, "rollout-max-context-len": None, "eval-max-context-len": None, "rollout-top-k": -1, "max-tokens-per-gpu": None,
    "eval-interval": None, "n-samples-per-eval-prompt": 1, "eval-max-response-len": None,
    "lr-warmup-iters": 0, "lr-decay-iters": None, "seq-length": None, "sglang-server-concurrency": 32, "sglang-router-port": None,
    "num-layers": None, "hidden-size": None, "ffn-hidden-size": None, "num-attention-heads": None, "num-query-groups": None,
    "max-position-embeddings": None, "vocab-size": None,
}  # fmt: skip
_NUMBERS: dict[str, Any] = {
    "eps-clip": 0.2, "eps-clip-high": None, "kl-loss-coef": 0.0, "entropy-coef": 0.0, "rollout-temperature": 1.0, "rollout-top-p": 1.0,
    "eval-temperature": None, "eval-top-p": None, "lr": 1e-6, "min-lr": 0.0, "lr-warmup-init": 0.0, "lr-warmup-fraction": None,
    "weight-decay": 0.01, "adam-beta1": 0.9, "adam-beta2": 0.999, "adam-eps": 1e-8, "clip-grad": 1.0,
    "rotary-base": None, "norm-epsilon": None,
}  # fmt: skip
_SWITCHES = (
    "apply-chat-template", "rollout-shuffle", "calculate-per-token-loss", "disable-compute-advantages-and-returns", "debug-train-only",
    "use-kl-loss", "use-rollout-logprobs", "disable-grpo-std-normalization", "disable-rewards-normalization", "use-dynamic-batch-size",
    "group-query-attention", "untie-embeddings-and-output-weights", "no-save-optim", "no-load-optim", "override-opt_param-scheduler",
    "skip-eval-before-train",
)  # fmt: skip
_CHOICES: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "rollout-function-path": ("slime.rollout.sglang_rollout.generate_rollout", ("slime.rollout.sglang_rollout.generate_rollout", SFT_ROLLOUT)),
    "loss-type": ("policy_loss", ("policy_loss", "sft_loss")),
    "loss-mask-type": ("qwen", ("qwen", "qwen3", "qwen3_5", "distill_qwen")),
    "advantage-estimator": ("grpo", ("grpo",)),
    "kl-loss-type": ("k1", ("k1", "k2", "k3", "low_var_kl")),
    "lr-decay-style": ("linear", ("constant", "linear", "cosine")),
    "optimizer": ("adam", ("adam",)),
    "normalization": ("RMSNorm", ("RMSNorm",)),
}
# Taken so that one recipe serves slime and the stand-in; the second element is nargs (0: a switch).
NO_EFFECT: dict[str, int] = {
    "actor-num-nodes": 1, "actor-num-gpus-per-node": 1, "rollout-num-gpus": 1, "rollout-num-gpus-per-engine": 1, "num-gpus-per-node": 1,
    "colocate": 0, "offload": 0, "offload-train": 0, "offload-rollout": 0, "balance-data": 0, "use-fault-tolerance": 0,
    "tensor-model-parallel-size": 1, "pipeline-model-parallel-size": 1, "context-parallel-size": 1, "expert-model-parallel-size": 1,
    "expert-tensor-parallel-size": 1, "sequence-parallel": 0, "recompute-granularity": 1, "recompute-method": 1, "recompute-num-layers": 1,
    "attention-dropout": 1, "hidden-dropout": 1, "accumulate-allreduce-grads-in-fp32": 0, "attention-softmax-in-fp32": 0,
    "attention-backend": 1, "bf16": 0, "swiglu": 0, "disable-bias-linear": 0, "add-qkv-bias": 0, "qk-layernorm": 0, "kv-channels": 1,
    "use-rotary-position-embeddings": 0, "position-embedding-type": 1, "sglang-mem-fraction-static": 1,
    "sglang-log-level": 1, "use-tensorboard": 0, "tb-project-name": 1, "tb-experiment-name": 1, "log-passrate": 0, "log-multi-turn": 0,
    "dist-ckpt-optim-fully-reshardable": 0, "distributed-timeout-minutes": 1, "log-probs-max-tokens-per-gpu": 1, "rm-type": 1,
    "update-weights-interval": 1,
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """argparse that raises our error instead of printing its usage over many lines."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parser() -> argparse.ArgumentParser:
    """All flags; `parse_args` raises UserError on a bad value. Flags that are not ours: see `unknown_flags`."""
    made = _Parser(prog="python -m plugins.tinyslime.train", description=__doc__, allow_abbrev=False)
    for kind, group in ((str, _TEXTS), (int, _INTEGERS), (float, _NUMBERS)):
        for name, default in group.items():
            made.add_argument(f"--{name}", type=kind, default=default)
    for name in _SWITCHES:
        made.add_argument(f"--{name}", action="store_true")
    for name, (default, choices) in _CHOICES.items():
        made.add_argument(f"--{name}", choices=choices, default=default)
    made.add_argument("--sglang-router-ip", default="127.0.0.1")
    made.add_argument("--eval-prompt-data", nargs="+")
    made.add_argument("--rollout-stop-token-ids", type=int, nargs="+")
    made.add_argument("--apply-chat-template-kwargs", type=json.loads, default={})
    for name, count in NO_EFFECT.items():
        if count:
            made.add_argument(f"--{name}", default=argparse.SUPPRESS, help="no effect here")
        else:
            made.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help="no effect here")
    return made


def known_flags() -> set[str]:
    """Every flag that the stand-in takes, with its dashes."""
    return {option for action in parser()._actions for option in action.option_strings if option.startswith("--")}


def unknown_flags(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Flags of `argv` that are not ours, in order, each with up to three known names that look like it."""
    known = known_flags()
    given = [word.partition("=")[0] for word in argv if word.startswith("--") and word != "--"]
    return [(flag, difflib.get_close_matches(flag, sorted(known), n=3, cutoff=0.75)) for flag in given if flag not in known]


def is_sft(args: argparse.Namespace) -> bool:
    """Whether the flags ask for supervised training (else GRPO); UserError when they ask for half of each."""
    asked = (args.loss_type == "sft_loss", args.rollout_function_path == SFT_ROLLOUT)
    if asked[0] != asked[1]:
        raise UserError(f"--loss-type sft_loss and --rollout-function-path {SFT_ROLLOUT} belong together: give both or neither")
    if args.debug_train_only and not asked[0]:
        raise UserError("--debug-train-only without --loss-type sft_loss: there would be no rollout to train on")
    return asked[0]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read and check a command line; `num_rollout` may still be None when `--num-epoch` decides it. Raises UserError."""
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
    for name in ("rollout_batch_size", "n_samples_per_prompt", "global_batch_size", "save_interval", "num_epoch", "micro_batch_size"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    _check_batches(args)


def _check_batches(args: argparse.Namespace) -> None:
    """slime's rule: rollout_batch_size * n_samples_per_prompt == global_batch_size * num_steps_per_rollout; fills in what is left out."""
    if is_sft(args) and args.n_samples_per_prompt != 1:
        raise UserError("--n-samples-per-prompt must be 1 for SFT")
    samples, steps = args.rollout_batch_size * args.n_samples_per_prompt, args.num_steps_per_rollout
    size = args.global_batch_size or samples // (steps or 1)
    steps = steps or max(1, samples // size)
    if size * steps != samples:
        raise UserError(
            f"--rollout-batch-size {args.rollout_batch_size} * --n-samples-per-prompt {args.n_samples_per_prompt} = {samples} is not "
            f"--global-batch-size {size} * --num-steps-per-rollout {steps} = {size * steps}"
        )
    args.global_batch_size, args.num_steps_per_rollout = size, steps
