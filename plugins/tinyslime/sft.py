"""Supervised training on chat rows: the loss counts what the assistant says and nothing else."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from statistics import mean

import torch.nn.functional as F
from torch import Tensor

from plugins.tinyslime import log
from plugins.tinyslime.data import DataSource, Drawn, MicroBatch, load_chats
from plugins.tinyslime.hooks import report_rollout
from plugins.tinyslime.model import TinyLlama
from plugins.tinyslime.step import LossFunction, target_logits, token_weights
from plugins.tinyslime.tokenizer import ByteTokenizer


class SftStage:
    """A rollout is the next rows of the file; nothing is generated."""

    def __init__(self, args: Namespace, tokenizer: ByteTokenizer, model: TinyLlama) -> None:
        self._args, self._model = args, model
        longest = min(args.seq_length or model.config.max_position_embeddings, model.config.max_position_embeddings)
        samples, cut = load_chats(args.prompt_data, args.input_key, tokenizer, longest)
        log.say(
            f"{len(samples)} rows of {args.prompt_data}, {cut} cut to {longest} tokens (--seq-length)", file="data.py"
        )
        self.source = DataSource(samples, group_size=1, shuffle=args.rollout_shuffle, seed=args.rollout_seed)
        self.tokens: list[list[int]] = []
        self.masks: list[list[int]] = []

    def generate(self, rollout_id: int) -> Drawn:
        """Draw the next rows and report them."""
        began = time.monotonic()
        groups = self.source.groups(self._args.rollout_batch_size)
        samples = [sample for (sample,) in groups]
        report_rollout(self._args, rollout_id, samples, time.monotonic() - began)
        return Drawn(samples, groups)

    def take(self, batch: Drawn) -> dict[str, float]:
        """Put rows into `tokens` and `masks`; gives the values of slime's `rollout` line."""
        samples = batch.prompts
        self.tokens = [sample.tokens for sample in samples]
        self.masks = [sample.loss_mask or [] for sample in samples]
        answers = mean(sample.response_length for sample in samples)
        lengths = {"response_lengths": answers, "total_lengths": mean(map(len, self.tokens))}
        return {
            f"rollout/{name}": float(value)
            for name, value in (lengths | {"truncated": 0, "rewards": 0, "raw_reward": 0}).items()
        }

    def loss_function(self, rows: Sequence[int]) -> LossFunction:
        """Cross-entropy over the trained tokens of these rows of the rollout."""
        weights = token_weights([self.masks[row] for row in rows], per_token=self._args.calculate_per_token_loss)

        def loss(batch: MicroBatch) -> tuple[Tensor, dict[str, float]]:
            logits, targets = target_logits(self._model, batch)
            return (F.cross_entropy(logits, targets, reduction="none") * batch.per_token(weights)).sum(), {}

        return loss

    def update_weights(self) -> None:
        """Nothing generates here."""

    def close(self) -> None:
        """Nothing to close."""
