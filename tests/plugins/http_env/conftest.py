"""Real servers on loopback for the tests of this room, and a tokenizer that shows when text was encoded again."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from plugins.http_env.server import build_app
from plugins.http_env.sessions import Sessions
from plugins.http_env.tasks.arithmetic import Arithmetic
from plugins.tinyslime.sample import Sample

END = 3  # the token that ends a turn
RARE = 900  # decodes to "12", but encoding "12" gives two other tokens


class CharTokenizer:
    """One token per character, except that the model knows RARE; keeps every text it was asked to encode."""

    eos_token_id = END

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        self.encoded.append(text)
        tokens = []
        while text:
            size = len("<end>") if text.startswith("<end>") else 1
            tokens.append(END if size > 1 else ord(text[0]))
            text = text[size:]
        return tokens

    def decode(self, ids: list[int]) -> str:
        return "".join({END: "<end>", RARE: "12", 258: "<|im_end|>"}.get(token) or chr(token) for token in ids)

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        text = "".join(f"[{message['role']}]{message['content']}<end>" for message in messages)
        return text + ("[assistant]" if add_generation_prompt else "")


@dataclass
class FakeModel:
    """A /generate server that says what it was told to: (token ids, finish reason), a status, or a function."""

    replies: list[Any] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    async def generate(self, request: Request) -> JSONResponse:
        body = await request.json()
        self.requests.append(body)
        reply = self.replies.pop(0)
        if callable(reply):
            reply = await reply(body)
        if isinstance(reply, int):
            return JSONResponse({}, reply)
        tokens, finish = reply
        tokens = tokens[: body["sampling_params"]["max_new_tokens"]]
        rows = [[-0.5 - place, token, None] for place, token in enumerate(tokens)]
        meta = self.meta | {"finish_reason": {"type": finish}, "output_token_logprobs": rows}
        return JSONResponse({"text": CharTokenizer().decode(tokens), "meta_info": meta})

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/generate", self.generate, methods=["POST"])])


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that has no event of its own, at most 20 s."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI app on a free loopback port in the running event loop; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await asyncio.wait({running}, timeout=10)


@dataclass
class Scene:
    """One adapter call's surroundings: the trainer's arguments, the model server, the environment's sessions."""

    args: SimpleNamespace
    model: FakeModel
    sessions: Sessions
    tokenizer: CharTokenizer


class World:
    """Builds scenes. Tests take it as the fixture `world`."""

    END, RARE = END, RARE
    serving = staticmethod(serving)
    until = staticmethod(until)

    @contextlib.asynccontextmanager
    async def scene(
        self, *replies: Any, task: Any = None, env: Any = None, limit_s: float = 30, **more: Any
    ) -> AsyncIterator[Scene]:
        """Servers for the model (which says `replies`) and for `task`, or any ASGI app `env`; `more` sets arguments.

        Time limits are short where waiting is not the point. Everything ends within `limit_s`.
        """
        model, tokenizer, sessions = FakeModel(list(replies)), CharTokenizer(), Sessions(task or Arithmetic())
        app = env or build_app(task or Arithmetic(), sessions=sessions)
        async with asyncio.timeout(limit_s), serving(model.app()) as llm_url, serving(app) as env_url:
            ip, port = llm_url.removeprefix("http://").split(":")
            values = {"http_env_url": env_url, "http_env_patience_s": 0.01, "http_env_generate_patience_s": 0.01}
            values |= {"sglang_router_ip": ip, "sglang_router_port": int(port), "tokenizer": tokenizer}
            yield Scene(SimpleNamespace(**(values | more)), model, sessions, tokenizer)

    def sample(self, prompt: Any = "3+4=", label: Any = "7", **more: Any) -> Sample:
        return Sample(prompt=prompt, label=label, index=0, group_index=0, **more)

    def tokens(self, text: str) -> list[int]:
        return CharTokenizer().encode(text)


@pytest.fixture
def world() -> World:
    return World()
