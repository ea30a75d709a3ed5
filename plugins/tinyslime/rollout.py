"""Rollouts: prompts in, samples out, through a custom generate function and our own `/generate`.

slime's contract for the generate function holds (slime.md 4.1), and what it returns is held to slime's rules. What
becomes of the samples is `grpo`'s business.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import inspect
import time
from argparse import Namespace
from statistics import mean
from typing import Any

from plugins.errors import UserError
from plugins.tinyslime import flags
from plugins.tinyslime.data import DataSource, load_prompts
from plugins.tinyslime.hooks import load_function, report_eval, report_rollout
from plugins.tinyslime.inference import Engine, RolloutServer
from plugins.tinyslime.model import TinyLlama
from plugins.tinyslime.sample import Sample
from plugins.tinyslime.tokenizer import ByteTokenizer


class Rollouts:
    """Owns the event loop in which the endpoint and all generate functions of the run live.

    Sets `tokenizer`, the endpoint's port and the context limits on `args`, where generate functions look for them.
    """

    def __init__(self, args: Namespace, tokenizer: ByteTokenizer, model: TinyLlama) -> None:
        self._args, self._tokenizer = args, tokenizer
        self._generate = load_function(args.custom_generate_function_path or flags.DEFAULT_GENERATE)
        self._reward_model = load_function(args.custom_rm_path) if args.custom_rm_path else None
        if args.custom_rollout_log_function_path:
            load_function(args.custom_rollout_log_function_path)  # what cannot be imported is said before training
        self.source = self._load(args.prompt_data, args.n_samples_per_prompt, shuffle=args.rollout_shuffle)
        self.drawn: list[Sample] = []
        names, files = (args.eval_prompt_data or [])[::2], (args.eval_prompt_data or [])[1::2]
        size = args.n_samples_per_eval_prompt
        self._evals = {n: self._load(f, size, shuffle=False) for n, f in zip(names, files, strict=True)}
        self._runner = asyncio.Runner()
        self._server = RolloutServer(Engine(model))
        args.tokenizer = tokenizer
        for name in ("rollout_max_context_len", "eval_max_context_len"):
            setattr(args, name, getattr(args, name) or model.config.max_position_embeddings)
        args.sglang_router_port = self._runner.run(self._listen())

    def _load(self, file: str, group_size: int, *, shuffle: bool) -> DataSource:
        args = self._args
        keys = {"key": args.input_key, "label_key": args.label_key, "metadata_key": args.metadata_key}
        samples = load_prompts(file, self._tokenizer, **keys, template=args.apply_chat_template)
        return DataSource(samples, group_size=group_size, shuffle=shuffle, seed=args.rollout_seed)

    async def _listen(self) -> int:
        ip, port = self._args.sglang_router_ip, self._args.sglang_router_port or 0
        try:
            return await self._server.start(ip, port)
        except OSError as error:
            raise UserError(
                f"cannot serve /generate on {ip}:{port} ({error.strerror}): leave --sglang-router-port out, any free "
                "port will do"
            ) from error

    def play(self, rollout_id: int) -> list[list[Sample]]:
        """Generate the next batch of groups and report it."""
        began = time.monotonic()
        groups = self.source.groups(self._args.rollout_batch_size)
        self.drawn = [copy.copy(group[0]) for group in groups]  # a generate function may return other samples
        groups = self._runner.run(self._play(groups, rollout_id, evaluation=False))
        report_rollout(
            self._args, rollout_id, [sample for group in groups for sample in group], time.monotonic() - began
        )
        return groups

    async def _play(self, groups: list[list[Sample]], rollout_id: int, *, evaluation: bool) -> list[list[Sample]]:
        """Run the generate function on every sample at once; the groups come back in their order."""

        # Bounded as slime bounds it (sglang_server_concurrency), lower: HTTP clients slow down with the square of
        # their idle connections.
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
        done: Sample | list[Sample] = await self._generate(self._args, sample, params, **extra)
        if isinstance(done, list):
            raise UserError(
                "the generate function returned a list of samples; tinyslime takes one sample for one prompt"
            )
        if done.status in (Sample.Status.ABORTED, Sample.Status.FAILED) and done.reward is None:
            done.remove_sample = True
        if done.reward is None and not done.remove_sample and self._reward_model:
            done.reward = await self._reward_model(self._args, done)
        check_sample(done)
        return done

    def evaluate(self, rollout_id: int) -> None:
        """Play the evaluation prompts and write slime's `eval` line."""
        values: dict[str, float] = {}
        data: dict[str, dict[str, Any]] = {}
        for name, source in self._evals.items():
            source.load_state_dict({"sample_offset": 0, "epoch_id": 0, "sample_group_index": 0, "sample_index": 0})
            groups = self._runner.run(self._play(source.groups(len(source)), rollout_id, evaluation=True))
            samples = [sample for group in groups for sample in group]
            data[name] = {
                "rewards": [sample.reward for sample in samples],
                "truncated": [sample.status is Sample.Status.TRUNCATED for sample in samples],
                "samples": samples,
            }
            kept = [sample for group in groups for sample in group if not sample.remove_sample]
            values[f"eval/{name}"] = mean(sample.reward or 0.0 for sample in kept) if kept else float("nan")
            values[f"eval/{name}-truncated_ratio"] = mean(
                float(s.status is Sample.Status.TRUNCATED) for group in groups for s in group
            )
        report_eval(self._args, rollout_id, data, values)

    def update_weights(self, model: TinyLlama) -> None:
        """Give the endpoint the weights that were just trained."""
        self._server.engine.load(model)

    def close(self) -> None:
        """Stop the endpoint and the event loop."""
        self._runner.run(self._server.close())
        self._runner.close()


def sampling_params(args: Namespace, rollout_id: int, index: int, *, evaluation: bool) -> dict[str, Any]:
    """Sampling parameters of one sample. The seed follows from (seed, rollout, sample), so a resumed run draws the
    same tokens.
    """
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
        own = {
            "temperature": args.eval_temperature,
            "top_p": args.eval_top_p,
            "max_new_tokens": args.eval_max_response_len,
        }
        params |= {key: value for key, value in own.items() if value is not None}
    return params


def check_sample(sample: Sample) -> None:
    """Hold a returned sample to slime's rules (ray/rollout.py:677); raises UserError naming what does not fit."""
    wrong = None
    if not 0 < sample.response_length < len(sample.tokens):
        wrong = f"response_length {sample.response_length} of {len(sample.tokens)} tokens, prompt included"
    elif sample.loss_mask is not None and len(sample.loss_mask) != sample.response_length:
        wrong = f"loss mask length {len(sample.loss_mask)} != response length {sample.response_length}"
    elif sample.rollout_log_probs is not None and len(sample.rollout_log_probs) != sample.response_length:
        wrong = f"{len(sample.rollout_log_probs)} log-probs for {sample.response_length} response tokens"
    elif sample.reward is None and not sample.remove_sample:
        wrong = "no reward (the generate function must set it, or give --custom-rm-path)"
    if wrong:
        raise UserError(f"sample {sample.index} from the generate function: {wrong}")
