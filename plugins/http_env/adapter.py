"""The generate function that lets slime, or tinyslime, train against an HTTP environment.

    --custom-generate-function-path plugins.http_env.adapter.generate

    start session -> [ model turn -> step -> observation ] ... done -> close session
                          |           |
       abort: ABORTED, kept for re-entry   environment failed: harmless sample, dropped and never scored

The contract is slime/rollout/sglang_rollout.py's generate_and_rm. An aborted sample is taken up again by replaying
its actions in a new session; if the environment answers otherwise than before, the sample starts afresh. Fan-out and
images are not done.
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from plugins.errors import EnvError, UserError
from plugins.http_env import engine
from plugins.http_env.abort import Aborted, AbortFlag, slime_state
from plugins.http_env.client import EnvClient, Session
from plugins.http_env.outage import Outage
from plugins.http_env.protocol import Json, Problem, Turn
from plugins.http_env.settings import Settings
from plugins.http_env.transcript import KEY, Transcript, make_harmless

T = TypeVar("T")
_outage = Outage()
_closing: set[asyncio.Task[None]] = set()


async def generate(args: Any, sample: Any, sampling_params: Json, evaluation: bool = False) -> Any:
    """Fill `sample` with one episode and return it: COMPLETED or TRUNCATED with the environment's reward, ABORTED
    when the trainer called it back, FAILED and harmless (`remove_sample`, mask 0, reward 0.0) when the environment
    failed.

    Raises UserError for a set-up that cannot work, and when nothing but failures came for Settings.give_up_s.
    """
    settings = Settings.read(args)
    if any(value is not None for value in (getattr(sample, "multimodal_inputs", None) or {}).values()):
        raise UserError("plugins.http_env.adapter takes text only; this sample has images or other media")
    episode = _Episode(args, sample, dict(sampling_params), settings, evaluation)
    try:
        async with asyncio.timeout(settings.sample_s):
            await episode.run()
    except Aborted:
        episode.hand_back()
    except (EnvError, TimeoutError) as error:
        reason = str(error) or f"not finished in {settings.sample_s:g} s"
        make_harmless(args, sample)
        sample.status = type(sample).Status.FAILED
        _note(sample, {"error": reason})
        _outage.failure(reason, give_up_s=settings.give_up_s, give_up_samples=settings.give_up_samples)
    else:
        _outage.success()
    return sample


class _Episode:
    """One sample on its way through one session."""

    def __init__(self, args: Any, sample: Any, params: Json, settings: Settings, evaluation: bool) -> None:
        self._args = args
        self._sample = sample
        self._params = params
        self._settings = settings
        self._evaluation = evaluation
        self._abort = AbortFlag(args)
        self._client = EnvClient(settings.url, call_s=settings.call_s, patience_s=settings.patience_s)
        self._transcript: Transcript | None = None

    async def run(self) -> None:
        """The whole way; the session is closed whatever happens."""
        session = await self._open()
        try:
            transcript = Transcript(self._args, self._sample, _tokenizer(self._args))
            resumed = transcript.resume()
            turn = await self._replay(session, transcript) if resumed else session.opened
            if turn is None:
                await self._client.close(session)
                session = await self._open()
                turn, resumed = session.opened, False
            if not resumed:
                transcript.begin(turn.observation)
            self._transcript = transcript
            await self._play(session, transcript, turn)
        finally:
            await self._client.close(session)

    def hand_back(self) -> None:
        """An aborted sample: never scored as it is, and with what a second try needs to go on from here."""
        sample = self._sample
        left = (sample.metadata or {}).get(KEY)
        if self._transcript is not None:
            left = self._transcript.left_over()
        if sample.response_length and isinstance(left, dict) and "turn_start" in left:
            _note(sample, left)
            sample.reward, sample.remove_sample = 0.0, True
        else:
            make_harmless(self._args, sample)
        sample.status = type(sample).Status.ABORTED

    async def _play(self, session: Session, transcript: Transcript, turn: Turn) -> None:
        reward, finish = turn.reward, "stop"
        while not turn.done:
            if transcript.pending is None:
                budget = self._budget(transcript)
                if budget <= 0 or len(transcript.actions) >= self._settings.max_turns:
                    finish = "length"
                    break
                transcript.end_turn(await self._ask_model(transcript, budget), self._params)
            action, finish = transcript.pending or ("", "stop")
            turn = await self._env(self._client.step(session, action))
            transcript.answered()
            reward = turn.reward if turn.reward is not None else reward
            if turn.done or finish == "length":
                break
            tokens = transcript.observation_tokens(turn.observation)
            if len(tokens) >= self._room():
                finish = "length"
                break
            transcript.add_observation(turn.observation, tokens)
        self._finish(turn, reward, finish, len(transcript.actions))

    def _finish(self, turn: Turn, reward: float | None, finish: str, turns: int) -> None:
        sample = self._sample
        if not sample.response_length:
            raise EnvError("the episode ended, or the context was full, before the model said anything")
        if turn.done and reward is None:
            raise EnvError(f"environment {self._settings.url}: the episode is done but has no reward")
        sample.reward = 0.0 if reward is None else reward  # None: the model used up its budget without being judged
        sample.status = type(sample).Status.TRUNCATED if finish == "length" else type(sample).Status.COMPLETED
        _note(sample, {"turns": turns, "info": turn.info})

    async def _open(self) -> Session:
        metadata = {key: value for key, value in (self._sample.metadata or {}).items() if key != KEY}
        problem = Problem.of(self._sample.prompt, self._sample.label, metadata)
        opening = asyncio.create_task(self._client.start(problem))
        try:
            return await self._env(_result_of(opening))
        except BaseException:
            _close_later(self._client, opening)
            raise

    async def _replay(self, session: Session, transcript: Transcript) -> Turn | None:
        """Bring a new session to where the aborted one was; None when the environment answers otherwise this time."""
        turn = session.opened
        seen = [turn.observation]
        for action in transcript.actions:
            if turn.done:
                return None
            turn = await self._env(self._client.step(session, action))
            seen.append(turn.observation)
        return turn if seen == transcript.observations and not turn.done else None

    async def _ask_model(self, transcript: Transcript, budget: int) -> engine.Generated:
        payload: Json = {
            "input_ids": list(self._sample.tokens),
            "sampling_params": self._params | {"max_new_tokens": budget},
            "return_logprob": True,
        }
        if getattr(self._args, "use_rollout_routing_replay", False):
            payload["return_routed_experts"] = True
        call = engine.generate(
            _model_url(self._args, self._settings),
            payload,
            headers=_routing(self._args, self._sample),
            limit_s=self._settings.generate_s,
            patience_s=self._settings.generate_patience_s,
        )
        generated = await self._abort.wait_for(call, grace_s=self._settings.abort_grace_s)
        transcript.add_model(generated)
        if generated.finish == "abort":
            raise Aborted
        return generated

    async def _env(self, call: Coroutine[Any, Any, T]) -> T:
        """Wait for the environment, counted as time in which nothing was generated."""
        begun = time.monotonic()
        try:
            return await self._abort.wait_for(call)
        finally:
            self._sample.non_generation_time += time.monotonic() - begun

    def _budget(self, transcript: Transcript) -> int:
        """Tokens the model may still generate: max_new_tokens counts for all turns together."""
        total = self._params.get("max_new_tokens") or getattr(self._args, "rollout_max_response_len", None)
        if not total:
            raise UserError("no limit for the response: set --rollout-max-response-len")
        return min(int(total) - transcript.model_tokens, self._room())

    def _room(self) -> int:
        """Tokens that still fit into the context, where the trainer says how long that is."""
        name = "eval_max_context_len" if self._evaluation else "rollout_max_context_len"
        limit = getattr(self._args, name, None)
        return 1 << 30 if limit is None else int(limit) - len(self._sample.tokens)


async def _result_of(task: "asyncio.Task[T]") -> T:
    """Waits without taking the task along when cancelled."""
    return await asyncio.shield(task)


def _close_later(client: EnvClient, opening: "asyncio.Task[Session]") -> None:
    """A session that was still being opened when its sample was called back is closed as soon as it is there."""

    async def close() -> None:
        try:
            await client.close(await opening)
        except EnvError:
            return

    task = asyncio.create_task(close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def _note(sample: Any, what: Json) -> None:
    """In a new dictionary, for samples of one group may share theirs."""
    sample.metadata = {**(sample.metadata or {}), KEY: what}


def _tokenizer(args: Any) -> Any:
    tokenizer = getattr(args, "tokenizer", None) or getattr(slime_state(args), "tokenizer", None)
    if tokenizer is None:
        raise UserError("the adapter found no tokenizer: neither args.tokenizer nor slime's GenerateState has one")
    return tokenizer


def _model_url(args: Any, settings: Settings) -> str:
    if settings.llm_url:
        return settings.llm_url
    ip, port = getattr(args, "sglang_router_ip", None), getattr(args, "sglang_router_port", None)
    if not ip or not port:
        raise UserError("the adapter found no model server: set --sglang-router-ip and --sglang-router-port")
    return f"http://{ip}:{port}/generate"


def _routing(args: Any, sample: Any) -> dict[str, str]:
    """All turns of a sample go to the engine that has its prefix in the cache, where the router can do that."""
    key = getattr(sample, "session_id", None)
    if key and getattr(args, "router_policy", None) == "consistent_hashing":
        return {"X-SMG-Routing-Key": key}
    return {}
