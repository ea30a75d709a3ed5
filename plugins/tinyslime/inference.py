"""The `/generate` endpoint of the stand-in: SGLang's request and response shapes on a free loopback port, inside the
trainer's process.

Concurrent requests are answered together in one batch. What a request gets must not depend on who shares its batch,
or a resumed run would differ from an uncut one: the model runs here in float64, log-probs are rounded far above
float64's noise, and the random number of each token comes from the request's `sampling_seed` and the token's
position alone. Nothing of it has a state to save.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plugins.tinyslime.model import KVCache, TinyLlama
from plugins.tinyslime.tokenizer import VOCAB_SIZE, ByteTokenizer

LOG_PROB_STEP = 2.0**-16
"""Log-probs are whole multiples of this: 10 orders of magnitude above float64's noise, below what float32 training
can tell.
"""
_GATHER_S = 0.002
_MAX_BODY_BYTES = 4 << 20
_KNOWN_PARAMS = {
    "temperature",
    "top_p",
    "top_k",
    "max_new_tokens",
    "stop_token_ids",
    "skip_special_tokens",
    "sampling_seed",
}
_NO_EFFECT = {"stop", "no_stop_trim", "spaces_between_special_tokens", "custom_params"}


@dataclass
class Request:
    """One text to continue, and its tokens so far."""

    prompt: list[int]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_new_tokens: int = 16
    stop_token_ids: frozenset[int] = frozenset()
    skip_special_tokens: bool = True
    seed: int = 0
    output: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def uniform(self) -> float:
        """The random number of the next token, in [0, 1): a hash of the seed and the token's position."""
        name = f"{self.seed}:{len(self.prompt) + len(self.output)}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") / 2.0**64

    @property
    def finish(self) -> dict[str, Any] | None:
        """SGLang's finish reason, None while unfinished."""
        if self.output and self.output[-1] in self.stop_token_ids:
            return {"type": "stop", "matched": self.output[-1]}
        if len(self.output) >= self.max_new_tokens:
            return {"type": "length", "length": len(self.output)}
        return None


class Engine:
    """Samples from a float64 copy of the model; `load` gives it new weights."""

    def __init__(self, model: TinyLlama) -> None:
        self.config = model.config
        self._model = copy.deepcopy(model).double().eval()

    def load(self, model: TinyLlama) -> None:
        """Take over the weights of the trained model."""
        self._model.load_state_dict(model.state_dict())

    @torch.no_grad()
    def generate(self, requests: list[Request]) -> None:
        """Continue every request until it is finished; fills `output` and `log_probs`."""
        longest = max(len(r.prompt) + r.max_new_tokens for r in requests)
        cache = KVCache(self.config, len(requests), longest, torch.float64)
        width = max(len(r.prompt) for r in requests)
        ids = torch.zeros(len(requests), width, dtype=torch.long)
        for row, request in enumerate(requests):
            ids[row, : len(request.prompt)] = torch.tensor(request.prompt)
        # Prompts are padded at their end. What the padding leaves in the cache is overwritten before it can be seen.
        cache.positions = torch.arange(width).expand(len(requests), width)
        last = torch.tensor([len(r.prompt) - 1 for r in requests])
        states = self._model.hidden(ids, cache)[torch.arange(len(requests)), last]
        while True:
            chosen = self._sample(self._model.logits(states), requests)
            if all(request.finish for request in requests):
                return
            last = (last + 1).clamp(max=longest - 1)
            cache.positions = last[:, None]
            states = self._model.hidden(chosen[:, None], cache)[:, 0]

    def _sample(self, logits: Tensor, requests: list[Request]) -> Tensor:
        """Draw one token for each unfinished request from logits [requests, vocab]; gives the tokens drawn."""
        heat = torch.tensor([[max(r.temperature, 1e-6)] for r in requests], dtype=torch.float64)
        logits = logits[:, :VOCAB_SIZE] / heat
        log_probs = torch.log_softmax(logits, -1)
        ranked, order = log_probs.exp().sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked
        top_p = torch.tensor([[r.top_p] for r in requests])
        top_k = torch.tensor([[r.top_k if r.top_k > 0 else VOCAB_SIZE] for r in requests])
        kept = ranked * ((before < top_p) & (torch.arange(VOCAB_SIZE) < top_k))
        draw = torch.tensor([[r.uniform()] for r in requests], dtype=torch.float64) * kept.sum(-1, keepdim=True)
        place = (kept.cumsum(-1) <= draw).sum(-1, keepdim=True).clamp(max=VOCAB_SIZE - 1)
        tokens = order.gather(-1, place)
        said = (log_probs.gather(-1, tokens) / LOG_PROB_STEP).round() * LOG_PROB_STEP
        for request, token, log_prob in zip(requests, tokens[:, 0].tolist(), said[:, 0].tolist(), strict=True):
            if request.finish is None:
                request.output.append(token)
                request.log_probs.append(log_prob)
        return tokens[:, 0]


class RolloutServer:
    """`POST /generate` and `GET /health` over HTTP/1.1 with kept connections. Lives in the event loop that starts
    it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._waiting: asyncio.Queue[tuple[Request, asyncio.Future[None]]] = asyncio.Queue()

    async def start(self, host: str, port: int) -> int:
        """Listen; gives the port (`port` 0 takes a free one). Raises OSError when the port is taken."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=1 << 16)
        self._batches = asyncio.create_task(self._answer())
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and answering."""
        self._server.close()
        self._batches.cancel()
        await asyncio.gather(self._batches, return_exceptions=True)

    async def _answer(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            size = 0
            while size < len(
                batch
            ):  # wait while more keep coming: one batch of many is far cheaper than many small ones
                size = len(batch)
                await asyncio.sleep(_GATHER_S)
                while not self._waiting.empty():
                    batch.append(self._waiting.get_nowait())
            try:
                await asyncio.to_thread(self.engine.generate, [request for request, _ in batch])
            except Exception as error:  # the requests must be answered, whatever it was
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for _, done in batch:
                if not done.done():
                    done.set_result(None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *fields = head.decode("latin-1").split("\r\n")
                headers = {name.strip().lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
                length = int(headers.get("content-length", 0))
                if length > _MAX_BODY_BYTES:
                    return
                status, answer = await self._handle(" ".join(line.split(" ")[:2]), await reader.readexactly(length))
                body = json.dumps(answer).encode()
                writer.write(
                    b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                    % (status.encode(), len(body))
                )
                writer.write(body)
                await writer.drain()
        except asyncio.CancelledError:
            pass  # the run ends; asyncio's own callback would report a cancelled handler as an error
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
            pass  # the client went away or does not speak HTTP: nobody is left to answer
        finally:
            writer.close()

    async def _handle(self, what: str, body: bytes) -> tuple[str, Any]:
        if what in ("GET /health", "GET /health_generate"):
            return "200 OK", {"status": "ok"}
        if what != "POST /generate":
            return "404 Not Found", {
                "error": {"message": f"{what}: only POST /generate and GET /health are served here"}
            }
        try:
            request = parse_request(json.loads(body), self.engine.config.max_position_embeddings)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return "400 Bad Request", {"error": {"message": f"bad /generate request: {error}"}}
        if request.finish is None:
            done = asyncio.get_running_loop().create_future()
            self._waiting.put_nowait((request, done))
            try:
                await done
            except Exception as error:  # shown to the client: there is no other way out of a server
                return "500 Internal Server Error", {"error": {"message": str(error)}}
        return "200 OK", _response(request)


def parse_request(payload: dict[str, Any], max_positions: int) -> Request:
    """Read SGLang's body (`input_ids` or `text`, `sampling_params`); raises ValueError for what cannot be served.

    The budget of new tokens is cut to what the model's positions leave; a prompt that leaves nothing finishes at
    once by length.
    """
    params = payload.get("sampling_params") or {}
    if unknown := set(params) - _KNOWN_PARAMS - _NO_EFFECT:
        raise ValueError(f"unknown sampling_params {', '.join(sorted(unknown))}")
    prompt = payload["input_ids"] if "input_ids" in payload else ByteTokenizer().encode(payload["text"])
    if not prompt or not all(isinstance(token, int) and 0 <= token < VOCAB_SIZE for token in prompt):
        raise ValueError(f"input_ids must be a list of tokens from 0 to {VOCAB_SIZE - 1}, at least one")
    # A request without a seed gets one from its text: equal requests then get equal answers, which is honest if not
    # useful.
    seed = params.get("sampling_seed")
    digest = hashlib.blake2b(json.dumps(prompt).encode(), digest_size=8).digest()
    return Request(
        prompt=prompt,
        temperature=float(params.get("temperature", 1.0)),
        top_p=float(params.get("top_p", 1.0)),
        top_k=int(params.get("top_k", -1)),
        max_new_tokens=max(0, min(int(params.get("max_new_tokens", 16)), max_positions - len(prompt))),
        stop_token_ids=frozenset(params.get("stop_token_ids") or ()) | frozenset(ByteTokenizer.stop_token_ids),
        skip_special_tokens=bool(params.get("skip_special_tokens", True)),
        seed=int.from_bytes(digest, "big") if seed is None else int(seed),
    )


def _response(request: Request) -> dict[str, Any]:
    return {
        "text": ByteTokenizer().decode(request.output, skip_special_tokens=request.skip_special_tokens),
        "output_ids": request.output,
        "meta_info": {
            "finish_reason": request.finish,
            "prompt_tokens": len(request.prompt),
            "completion_tokens": len(request.output),
            "cached_tokens": 0,
            "output_token_logprobs": [
                [lp, token, None] for lp, token in zip(request.log_probs, request.output, strict=True)
            ],
        },
    }
