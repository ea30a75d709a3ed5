"""GRPO: rollouts through a custom generate function against our own `/generate`, group-normalised rewards, clipped objective.

slime's contract for the generate function holds (slime.md 4.1). A sample that comes back with `remove_sample` takes no part in anything:
neither in the loss nor in its group's mean, nor in the reward that is reported.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from plugins.errors import UserError
from plugins.tinyslime import flags, log
from plugins.tinyslime.data import DataSource, MicroBatch, load_prompts, micro_batches
from plugins.tinyslime.inference import Engine, RolloutServer
from plugins.tinyslime.model import TinyLlama
from plugins.tinyslime.sample import Sample
from plugins.tinyslime.step import LossFunction, target_logits, token_weights
from plugins.tinyslime.tokenizer import ByteTokenizer


class GrpoStage:
    """Owns the event loop in which the endpoint and all generate functions of the run live."""

    def __init__(self, args: Namespace, tokenizer: ByteTokenizer, model: TinyLlama, reference: TinyLlama | None) -> None:
        self._args, self._model, self._reference = args, model, reference
        self._generate = load_function(args.custom_generate_function_path or flags.DEFAULT_GENERATE)
        self._reward_model = load_function(args.custom_rm_path) if args.custom_rm_path else None
        self._log = load_function(args.custom_rollout_log_function_path) if args.custom_rollout_log_function_path else None
        self.source = self._load(args.prompt_data, args.n_samples_per_prompt)
        names = args.eval_prompt_data or []
        self._evals = {name: self._load(file, args.n_samples_per_eval_prompt) for name, file in zip(names[::2], names[1::2], strict=True)}
        self._runner = asyncio.Runner()
        self._server = RolloutServer(Engine(model))
        args.tokenizer = tokenizer
        for name in ("rollout_max_context_len", "eval_max_context_len"):
            setattr(args, name, getattr(args, name) or model.config.max_position_embeddings)
        args.sglang_router_port = self._runner.run(self._listen())
        self.tokens: list[list[int]] = []
        self.masks: list[list[int]] = []
        self._advantages: list[Tensor] = []
        self._old: list[Tensor] = []
        self._sampled: list[Tensor] = []
        self._ref: list[Tensor] = []

    def _load(self, file: str, group_size: int) -> DataSource:
        args = self._args
        keys = {"key": args.input_key, "label_key": args.label_key, "metadata_key": args.metadata_key}
        samples = load_prompts(file, ByteTokenizer(), **keys, template=args.apply_chat_template)
        training = file == args.prompt_data
        return DataSource(samples, group_size=group_size, shuffle=args.rollout_shuffle and training, seed=args.rollout_seed)

    async def _listen(self) -> int:
        ip, port = self._args.sglang_router_ip, self._args.sglang_router_port or 0
        try:
            return await self._server.start(ip, port)
        except OSError as error:
            raise UserError(f"cannot serve /generate on {ip}:{port} ({error.strerror}): leave --sglang-router-port out for a free port") from error

    def rollout(self, rollout_id: int) -> dict[str, float]:
        """Generate one batch of samples and make it ready for training; gives the values of slime's `rollout` line."""
        began = time.monotonic()
        groups = self.source.groups(self._args.rollout_batch_size)
        samples = [sample for group in self._runner.run(self._play(groups, rollout_id, evaluation=False)) for sample in group]
        self._report(rollout_id, samples, time.monotonic() - began)
        size = self._args.n_samples_per_prompt
        scores = normalise([samples[at : at + size] for at in range(0, len(samples), size)], std=not self._args.disable_grpo_std_normalization)
        return self._prepare(samples, scores)

    async def _play(self, groups: list[list[Sample]], rollout_id: int, *, evaluation: bool) -> list[list[Sample]]:
        """Run the generate function on every sample at once; the groups come back in their order."""

        # Bounded as slime bounds it (sglang_server_concurrency), lower: HTTP clients slow down with the square of their idle connections.
        turns = asyncio.Semaphore(self._args.sglang_server_concurrency)

        async def one(sample: Sample) -> Sample:
            async with turns:
                return await self._one(sample, rollout_id, evaluation=evaluation)

        async def group_of(group: list[Sample]) -> list[Sample]:
            return list(await asyncio.gather(*map(one, group)))

        return list(await asyncio.gather(*map(group_of, groups)))

    async def _one(self, sample: Sample, rollout_id: int, *, evaluation: bool) -> Sample:
        params = sampling_params(self._args, rollout_id, sample.index or 0, evaluation=evaluation)
        extra = {"evaluation": evaluation} if "evaluation" in inspect.signature(self._generate).parameters else {}
        done = await self._generate(self._args, sample, params, **extra)
        if isinstance(done, list):
            raise UserError("the generate function returned a list of samples; tinyslime takes one sample for one prompt")
        if done.status in (Sample.Status.ABORTED, Sample.Status.FAILED) and done.reward is None:
            done.remove_sample = True
        if done.reward is None and not done.remove_sample and self._reward_model:
            done.reward = await self._reward_model(self._args, done)
        check_sample(done)
        return done

    def _report(self, rollout_id: int, samples: list[Sample], elapsed_s: float) -> None:
        """The rollout's own `perf` line, unless the custom log function wrote its own."""
        if self._log and self._log(rollout_id, self._args, samples, {}, elapsed_s):
            return
        lengths = [sample.response_length for sample in samples]
        values = {
            "rollout/response_len/mean": float(mean(lengths)),
            "rollout/response_len/median": float(median(lengths)),
            "rollout/response_len/max": max(lengths),
            "rollout/response_len/min": min(lengths),
            "rollout/truncated_ratio": mean(float(sample.status is Sample.Status.TRUNCATED) for sample in samples),
            "rollout/removed_ratio": mean(float(sample.remove_sample) for sample in samples),
            "perf/rollout_time": elapsed_s,
            "perf/tokens_per_gpu_per_sec": sum(lengths) / elapsed_s,
        }
        log.metrics("perf", rollout_id, values, from_rollout=True)

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
        for start in range(0, len(self.tokens), size):  # the same micro-batches as in training give the very same numbers
            tokens, masks = self.tokens[start : start + size], self.masks[start : start + size]
            for batch in batches_of(self._args, tokens, masks):
                parts = _picked(*target_logits(model, batch, self._args.rollout_temperature)).split([sum(masks[row][1:]) for row in batch.rows])
                for row, part in zip(batch.rows, parts, strict=True):
                    found[start + row] = part
        return found

    def loss_function(self, rows: Sequence[int]) -> LossFunction:
        """The clipped objective over the trained tokens of these rows of the rollout."""
        args = self._args
        weights = token_weights([self.masks[row] for row in rows], per_token=args.calculate_per_token_loss)
        advantages, old, sampled = ([values[row] for row in rows] for values in (self._advantages, self._old, self._sampled))
        ref = [self._ref[row] for row in rows] if self._ref else None
        high = args.eps_clip if args.eps_clip_high is None else args.eps_clip_high

        def loss(batch: MicroBatch) -> tuple[Tensor, dict[str, float]]:
            logits, targets = target_logits(self._model, batch, args.rollout_temperature)
            log_probs, weight, advantage = _picked(logits, targets), batch.per_token(weights), batch.per_token(advantages)
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
        values: dict[str, float] = {}
        for name, source in self._evals.items():
            source.load_state_dict({"sample_offset": 0, "epoch_id": 0, "sample_group_index": 0, "sample_index": 0})
            groups = self._runner.run(self._play(source.groups(len(source)), rollout_id, evaluation=True))
            kept = [sample for group in groups for sample in group if not sample.remove_sample]
            values[f"eval/{name}"] = mean(sample.reward or 0.0 for sample in kept) if kept else float("nan")
            values[f"eval/{name}-truncated_ratio"] = mean(float(s.status is Sample.Status.TRUNCATED) for group in groups for s in group)
        log.metrics("eval", rollout_id, values)

    def update_weights(self) -> None:
        """Give the endpoint the weights that were just trained."""
        self._server.engine.load(self._model)

    def close(self) -> None:
        """Stop the endpoint and the event loop."""
        self._runner.run(self._server.close())
        self._runner.close()


def load_function(path: str) -> Callable[..., Any]:
    """Import `package.module.name` as slime does; raises UserError naming what is missing."""
    module, _, name = path.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot import {path}: {error}") from error
    return found


def sampling_params(args: Namespace, rollout_id: int, index: int, *, evaluation: bool) -> dict[str, Any]:
    """Sampling parameters of one sample. The seed follows from (seed, rollout, sample), so a resumed run draws the same tokens."""
    name = f"{args.rollout_seed}:{rollout_id}:{index}:{evaluation}".encode()
    params = {
        "temperature": args.rollout_temperature,
        "top_p": args.rollout_top_p,
        "top_k": args.rollout_top_k,
        "max_new_tokens": args.rollout_max_response_len,
        "stop_token_ids": args.rollout_stop_token_ids,
        "skip_special_tokens": True,
        "sampling_seed": int.from_bytes(hashlib.blake2b(name, digest_size=6).digest(), "big"),
    }
    if evaluation:
        own = {"temperature": args.eval_temperature, "top_p": args.eval_top_p, "max_new_tokens": args.eval_max_response_len}
        params |= {key: value for key, value in own.items() if value is not None}
    return params


def check_sample(sample: Sample) -> None:
    """Hold a returned sample to slime's rules (ray/rollout.py:677); raises UserError naming what does not fit."""
    wrong = None
    if not 0 < sample.response_length < len(sample.tokens):
        wrong = f"response_length {sample.response_length} of {len(sample.tokens)} tokens (at least one of prompt and response)"
    elif sample.loss_mask is not None and len(sample.loss_mask) != sample.response_length:
        wrong = f"loss mask length {len(sample.loss_mask)} != response length {sample.response_length}"
    elif sample.rollout_log_probs is not None and len(sample.rollout_log_probs) != sample.response_length:
        wrong = f"{len(sample.rollout_log_probs)} log-probs for {sample.response_length} response tokens"
    elif sample.reward is None and not sample.remove_sample:
        wrong = "no reward (the generate function must set it, or give --custom-rm-path)"
    if wrong:
        raise UserError(f"sample {sample.index} from the generate function: {wrong}")


def row_mask(sample: Sample) -> list[int]:
    """The loss mask over the sample's whole row of tokens; all 0 when the sample is removed."""
    mask = sample.loss_mask if sample.loss_mask is not None else [1] * sample.response_length
    if sample.remove_sample:
        mask = [0] * sample.response_length
    return [0] * (len(sample.tokens) - sample.response_length) + mask


def normalise(groups: Sequence[Sequence[Sample]], *, std: bool = True) -> list[float]:
    """Reward minus its group's mean, over its standard deviation with `std`; removed samples get 0.0 and count nowhere."""
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


def batches_of(args: Namespace, tokens: Sequence[list[int]], masks: Sequence[list[int]]) -> list[MicroBatch]:
    """Micro-batches of a step by `--max-tokens-per-gpu` (with `--use-dynamic-batch-size`) or `--micro-batch-size`."""
    return micro_batches(tokens, masks, max_tokens=args.max_tokens_per_gpu if args.use_dynamic_batch_size else None, max_rows=args.micro_batch_size)


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


GenerateFunction = Callable[..., Awaitable[Sample]]
