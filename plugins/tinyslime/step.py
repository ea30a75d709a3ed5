"""One optimizer step: AdamW with Megatron's learning-rate schedule over micro-batches whose losses add up to the
step's loss.

The schedule counts samples, not steps, as Megatron's does, and its settings are kept in the checkpoint: a resume
with others is refused. The rate itself comes with the optimizer, as in Megatron: overriding the schedule does not
change it.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plugins.errors import UserError
from plugins.tinyslime.data import MicroBatch
from plugins.tinyslime.model import TinyLlama

LossFunction = Callable[[MicroBatch], tuple[Tensor, dict[str, float]]]
"""Gives a micro-batch's share of the step's loss, and its share of each reported value."""


class Schedule:
    """Learning rate after warm-up and decay (Megatron's optimizer_param_scheduler.py: constant, linear, cosine)."""

    def __init__(self, args: Namespace, num_rollout: int) -> None:
        iterations = args.lr_decay_iters or num_rollout * args.num_steps_per_rollout
        decay = iterations * args.global_batch_size
        fraction = args.lr_warmup_fraction
        warmup = args.lr_warmup_iters * args.global_batch_size if fraction is None else fraction * decay
        self.settings: dict[str, Any] = {
            "max_lr": args.lr,
            "min_lr": args.min_lr,
            "lr_warmup_steps": warmup,
            "lr_decay_steps": decay,
            "lr_decay_style": args.lr_decay_style,
            "start_wd": args.weight_decay,
            "end_wd": args.weight_decay,
            "wd_incr_steps": num_rollout * args.num_steps_per_rollout * args.global_batch_size,
            "wd_incr_style": "constant",
        }
        self.group = {name: self.settings[name] for name in ("max_lr", "min_lr")}
        self._init_lr = args.lr_warmup_init
        self._override = args.override_opt_param_scheduler
        self._use_saved = args.use_checkpoint_opt_param_scheduler
        if self._override and self._use_saved:
            raise UserError("--override-opt_param-scheduler and --use-checkpoint-opt_param-scheduler: give one of them")
        self.num_steps = 0

    @property
    def lr(self) -> float:
        """The rate for the next step."""
        s = self.settings
        top, low, warmup = self.group["max_lr"], self.group["min_lr"], s["lr_warmup_steps"]
        if warmup > 0 and self.num_steps <= warmup:
            return float(self._init_lr + (top - self._init_lr) * self.num_steps / warmup)
        if s["lr_decay_style"] == "constant":
            return float(top)
        if self.num_steps > s["lr_decay_steps"]:
            return float(low)
        done = (self.num_steps - warmup) / max(1, s["lr_decay_steps"] - warmup)
        left = 1.0 - done if s["lr_decay_style"] == "linear" else 0.5 * (math.cos(math.pi * done) + 1.0)
        return float(low + left * (top - low))

    def state_dict(self) -> dict[str, Any]:
        """Settings and the number of samples seen."""
        return self.settings | {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Go on from a checkpoint; UserError when its settings are others and no flag says which of them count.

        group: the rates that the optimizer's parameter groups bring along (Megatron's distrib_optimizer.py:760-770).
        """
        self.group = group
        if self._use_saved:
            self.settings |= {name: state[name] for name in self.settings}
        wrong = [
            f"{name} {state.get(name)} -> {value}" for name, value in self.settings.items() if state.get(name) != value
        ]
        if wrong and not self._override:
            raise UserError(
                f"the learning-rate schedule differs from the checkpoint's: {', '.join(wrong)}. It follows from --lr*, "
                "--num-rollout and the batch sizes; give the old ones, or --override-opt_param-scheduler"
            )
        self.num_steps = int(state["num_steps"])


def make_optimizer(model: TinyLlama, args: Namespace) -> torch.optim.AdamW:
    """AdamW; norms are not decayed."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_eps)


def target_logits(model: TinyLlama, batch: MicroBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits [tokens, vocab] of the trained tokens of a micro-batch, and these tokens [tokens]."""
    states = model.hidden(batch.ids[:, :-1])
    picked = states.flatten(0, 1).index_select(0, batch.targets.flatten().nonzero()[:, 0])
    logits = model.logits(picked)
    return (logits if temperature == 1.0 else logits / temperature), batch.ids[:, 1:][batch.targets]


def token_weights(masks: Sequence[list[int]], *, per_token: bool) -> list[Tensor]:
    """Weight of each trained token in the step's loss, row by row: a mean over all tokens of the step, or a mean
    over the rows' means.

    Rows without trained tokens count in neither. The first token of a row has nothing before it and is never trained.
    """
    counts = [sum(mask[1:]) for mask in masks]
    total, rows = sum(counts), sum(count > 0 for count in counts)
    return [
        torch.full((count,), 1.0 / (total if per_token else rows * count)) if count else torch.empty(0)
        for count in counts
    ]


def train_step(
    model: TinyLlama,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    batches: Sequence[MicroBatch],
    loss_function: LossFunction,
    args: Namespace,
) -> dict[str, float]:
    """Do one step and report its values under slime's `train/` keys.

    Without a trained token (every sample was removed) the weights stay as they are. Raises UserError when the
    gradient is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    values: dict[str, float] = {"loss": 0.0}
    for batch in batches:
        loss, parts = loss_function(batch)
        torch.autograd.backward(loss)
        for name, part in ({"loss": loss.item()} | parts).items():
            values[name] = values.get(name, 0.0) + part
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad)) if batches else 0.0
    if not math.isfinite(norm):
        raise UserError(f"the gradient is not finite (loss {values['loss']}): lower --lr")
    lr = schedule.lr
    for group in optimizer.param_groups:
        group["lr"] = lr
    if batches:
        optimizer.step()
    schedule.num_steps += args.global_batch_size
    report = {f"train/{name}": value for name, value in values.items()}
    return report | {
        "train/grad_norm": norm,
        "train/lr-pg_0": lr,
        "train/lr-pg_1": lr,
        "train/global_batch_size": args.global_batch_size,
    }
