"""Asking the model: tokens in, tokens out, over SGLang's /generate, which tinyslime serves too.

What a model server said wrong about one sample is an EnvError (the sample is dropped); a server that cannot be
reached for `patience_s` is no sample's fault and raises TrainstackError, so that the job fails and is started again.
"""

import asyncio
import json
import math
import time
from dataclasses import dataclass
from typing import Any

import httpx

from plugins.errors import EnvError, TrainstackError
from plugins.http_env.client import RETRIED
from plugins.http_env.connections import connections_for
from plugins.http_env.protocol import Json, plain


@dataclass(frozen=True)
class Generated:
    """What the model said: token ids, their log-probs (same length), the text, and why it stopped (stop, length,
    abort).
    """

    tokens: list[int]
    log_probs: list[float]
    text: str
    finish: str
    matched: int | str | None
    meta_info: Json


async def generate(url: str, payload: Json, *, headers: dict[str, str], limit_s: float, patience_s: float) -> Generated:
    """One generation. `limit_s` bounds each try, `patience_s` how long an unreachable server is asked again."""
    begun = time.monotonic()
    content = json.dumps(payload, default=plain)
    wait_s = 0.5
    while True:
        try:
            async with asyncio.timeout(limit_s):
                response = await connections_for(url).request(
                    "POST",
                    url,
                    content=content,
                    headers={"content-type": "application/json"} | headers,
                    timeout=limit_s,
                )
            if response.status_code not in RETRIED:
                return _read(response, url)
            failure = f"HTTP {response.status_code}"
        except (TimeoutError, httpx.ReadTimeout) as error:
            raise EnvError(f"model server {url}: no answer in {limit_s:g} s") from error
        except httpx.HTTPError as error:
            failure = f"{type(error).__name__}: {error}".rstrip(": ")
        if time.monotonic() - begun + wait_s > patience_s:
            raise TrainstackError(f"model server {url}: failed for {patience_s:g} s ({failure}); see the engine's log")
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, 5.0)


def _read(response: httpx.Response, url: str) -> Generated:
    if not response.is_success:
        raise EnvError(f"model server {url}: refused with HTTP {response.status_code}: {response.text[:300]}")
    try:
        body: Any = response.json()
        meta: Json = body["meta_info"]
        finish: Json = meta["finish_reason"]
        rows = meta.get("output_token_logprobs") or []
        tokens = [int(row[1]) for row in rows]
        log_probs = [float(row[0]) for row in rows]
        generated = Generated(tokens, log_probs, str(body["text"]), finish["type"], finish.get("matched"), meta)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise EnvError(
            f"model server {url}: the answer has not SGLang's shape ({type(error).__name__}: {error})"
        ) from error
    if generated.finish not in ("stop", "length", "abort"):
        raise EnvError(f"model server {url}: unknown finish reason {generated.finish!r}")
    if any(math.isnan(value) for value in log_probs):
        raise EnvError(f"model server {url}: a log-prob is not a number")
    if generated.text and not tokens:
        raise EnvError(f"model server {url}: text without output_token_logprobs; tokens are never guessed from text")
    return generated
