"""GRPO: rewards normalised within their group, a clipped objective, and the divergence from a reference model if
asked for.

A sample that comes back with `remove_sample` takes no part in anything: neither in the loss nor in its group's mean,
nor in the reward that is reported.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from statistics import mean

import torch
from torch import Tensor

from plugins.errors import UserError
from plugins.tinyslime.data import Drawn, MicroBatch, batches_of
from plugins.tinyslime.model import TinyLlama
from plugins.tinyslime.rollout import Rollouts
from plugins.tinyslime.sample import Sample
from plugins.tinyslime.step import LossFunction, target_logits, token_weights


class GrpoStage:
    """Turns rollouts into rows, and rows into a loss."""

    def __init__(self, args: Namespace, model: TinyLlama, reference: TinyLlama | None, rollouts: Rollouts) -> None:
        self._args, self._model, self._reference, self._rollouts = args, model, reference, rollouts
        self.source = rollouts.source
        self.tokens: list[list[int]] = []
        self.masks: list[list[int]] = []
        self._advantages: list[Tensor] = []
        self._old: list[Tensor] = []
        self._sampled: list[Tensor] = []
        self._ref: list[Tensor] = []

    def generate(self, rollout_id: int) -> Drawn:
        """Generate one batch of samples with the weights that the endpoint has."""
        groups = self._rollouts.play(rollout_id)
        return Drawn(self._rollouts.drawn, groups)

    def take(self, batch: Drawn) -> dict[str, float]:
        """Make a batch ready for training; gives the values of slime's `rollout` line."""
        scores = normalise(batch.groups, std=not self._args.disable_grpo_std_normalization)
        return self._prepare([sample for group in batch.groups for sample in group], scores)

    def _prepare(self, samples: list[Sample], scores: list[float]) -> dict[str, float]:
        """Turn samples into rows with advantages and the log-probs that the ratio is taken against."""
        self.tokens = [sample.tokens for sample in samples]
        self.masks = [row_mask(sample) for sample in samples]
        counts = [sum(mask) for mask in self.masks]
        self._advantages = [torch.full((count,), score) for count, score in zip(counts, scores, strict=True)]
        self._sampled = [_masked_log_probs(sample, count) for sample, count in zip(samples, counts, strict=True)]
        log_probs = self._log_probs(self._model)
        self._old = self._sampled if self._args.use_rollout_logprobs else log_probs
        self._ref = self._log_probs(self._reference) if self._reference else []
        kept = [sample for sample in samples if not sample.remove_sample]
        values = {
            "response_lengths": mean(sample.response_length for sample in samples),
            "total_lengths": mean(map(len, self.tokens)),
            "truncated": mean(float(sample.status is Sample.Status.TRUNCATED) for sample in samples),
            "rewards": mean(scores),
            "raw_reward": mean(sample.reward or 0.0 for sample in kept) if kept else float("nan"),
            "rollout_log_probs": _mean_of_means(self._sampled),
            "log_probs": _mean_of_means(log_probs),
            "advantages": _mean_of_means(self._advantages),
            "returns": _mean_of_means(self._advantages),
        }
        if self._reference:
            values["ref_log_probs"] = _mean_of_means(self._ref)
        return {f"rollout/{name}": float(value) for name, value in values.items()}

    @torch.no_grad()
    def _log_probs(self, model: TinyLlama) -> list[Tensor]:
        """Log-probs of the trained tokens of every row under `model`."""
        found = [torch.empty(0) for _ in self.tokens]
        size = self._args.global_batch_size
        for start in range(
            0, len(self.tokens), size
        ):  # the same micro-batches as in training give the very same numbers
            tokens, masks = self.tokens[start : start + size], self.masks[start : start + size]
            for batch in batches_of(self._args, tokens, masks):
                counts = [sum(masks[row][1:]) for row in batch.rows]
                log_probs = _picked(*target_logits(model, batch, self._args.rollout_temperature))
                parts = torch.split(log_probs, counts)
                for row, part in zip(batch.rows, parts, strict=True):
                    found[start + row] = part
        return found

    def loss_function(self, rows: Sequence[int]) -> LossFunction:
        """The clipped objective over the trained tokens of these rows of the rollout."""
        args = self._args
        weights = token_weights([self.masks[row] for row in rows], per_token=args.calculate_per_token_loss)
        advantages, old, sampled = (
            [values[row] for row in rows] for values in (self._advantages, self._old, self._sampled)
        )
        ref = [self._ref[row] for row in rows] if self._ref else None
        high = args.eps_clip if args.eps_clip_high is None else args.eps_clip_high

        def loss(batch: MicroBatch) -> tuple[Tensor, dict[str, float]]:
            logits, targets = target_logits(self._model, batch, args.rollout_temperature)
            log_probs, weight, advantage = (
                _picked(logits, targets),
                batch.per_token(weights),
                batch.per_token(advantages),
            )
            gone = batch.per_token(old) - log_probs
            ratio = (-gone).exp()
            plain, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - args.eps_clip, 1 + high)
            pg_loss = (torch.maximum(plain, clipped) * weight).sum()
            all_log_probs = logits.log_softmax(-1)
            entropy = -((all_log_probs.exp() * all_log_probs).sum(-1) * weight).sum()
            total = pg_loss - args.entropy_coef * entropy
            parts = {
                "pg_loss": pg_loss.item(),
                "entropy_loss": entropy.item(),
                "pg_clipfrac": ((clipped > plain).float() * weight).sum().item(),
                "ppo_kl": (gone * weight).sum().item(),
                "train_rollout_logprob_abs_diff": ((log_probs - batch.per_token(sampled)).abs() * weight).sum().item(),
            }
            if ref is not None:
                kl_loss = (kl_estimate(log_probs, batch.per_token(ref), args.kl_loss_type) * weight).sum()
                total, parts = total + args.kl_loss_coef * kl_loss, parts | {"kl_loss": kl_loss.item()}
            return total, parts

        return loss

    def evaluate(self, rollout_id: int) -> None:
        """Play the evaluation prompts and write slime's `eval` line."""
        self._rollouts.evaluate(rollout_id)

    def update_weights(self) -> None:
        """Give the endpoint the weights that were just trained."""
        self._rollouts.update_weights(self._model)

    def close(self) -> None:
        """Stop the endpoint."""
        self._rollouts.close()


def row_mask(sample: Sample) -> list[int]:
    """The loss mask over the sample's whole row of tokens; all 0 when the sample is removed."""
    mask = sample.loss_mask if sample.loss_mask is not None else [1] * sample.response_length
    if sample.remove_sample:
        mask = [0] * sample.response_length
    return [0] * (len(sample.tokens) - sample.response_length) + mask


def normalise(groups: Sequence[Sequence[Sample]], *, std: bool = True) -> list[float]:
    """Reward minus its group's mean, over its standard deviation with `std`; removed samples get 0.0 and count
    nowhere.
    """
    scores: list[float] = []
    for group in groups:
        kept = torch.tensor([sample.reward for sample in group if not sample.remove_sample], dtype=torch.float)
        centred = kept - kept.mean() if len(kept) else kept
        if std and len(kept) > 1:
            centred = centred / (centred.std() + 1e-6)
        values = iter(centred.tolist())
        scores += [0.0 if sample.remove_sample else next(values) for sample in group]
    return scores


def kl_estimate(log_probs: Tensor, ref: Tensor, kind: str) -> Tensor:
    """Estimates of the divergence from the reference, token by token: k1, k2, or k3 (also called low_var_kl)."""
    gone = ref - log_probs
    if kind == "k1":
        return -gone
    return gone.square() / 2 if kind == "k2" else gone.exp() - gone - 1


def _picked(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def _masked_log_probs(sample: Sample, count: int) -> Tensor:
    if not count:
        return torch.empty(0)
    if sample.rollout_log_probs is None:
        raise UserError(f"sample {sample.index} from the generate function has no rollout_log_probs")
    mask = sample.loss_mask if sample.loss_mask is not None else [1] * sample.response_length
    return torch.tensor([value for value, trained in zip(sample.rollout_log_probs, mask, strict=True) if trained])


def _mean_of_means(values: Sequence[Tensor]) -> float:
    return mean([value.mean().item() for value in values if len(value)] or [0.0])
