"""A custom generate function for the tests: no environment, the reward is the share of digits in the answer."""

import asyncio
import os
import random

import httpx


async def generate(args, sample, sampling_params):
    if os.environ.get("PROBE_SHUFFLES"):  # requests arrive in another order in each run
        await asyncio.sleep(random.random() / 20)
    tokens = args.tokenizer.encode(sample.prompt)
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        body = {"input_ids": tokens, "sampling_params": sampling_params, "return_logprob": True}
        answer = (await client.post(url, json=body, timeout=60)).json()
    meta = answer["meta_info"]
    sample.tokens = list(tokens)
    said = [row[1] for row in meta["output_token_logprobs"]]
    log_probs = [row[0] for row in meta["output_token_logprobs"]]
    sample.append_response_tokens(args, tokens=said, log_probs=log_probs, meta_info=meta, text=answer["text"])
    sample.reward = sum(48 <= token < 58 for token in said) / len(said)
    if os.environ.get("PROBE_FAILS") and sample.index % 3 == 0:
        sample.tokens, sample.response_length, sample.loss_mask, sample.rollout_log_probs = [0, 0], 1, [0], [0.0]
        sample.reward, sample.remove_sample, sample.status = 1000.0, True, sample.Status.FAILED
    return sample
