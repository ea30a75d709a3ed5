import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from plugins.errors import TrainstackError, UserError
from plugins.http_env.adapter import generate
from plugins.http_env.protocol import Problem, Turn
from plugins.tinyslime.sample import Sample

PARAMS = {"temperature": 1.0, "max_new_tokens": 50, "stop_token_ids": [3]}
CHAT = [{"role": "user", "content": "3+4="}]


class Slow:
    """A task that answers when `gate` is set, tells what it was asked, and how often it was closed."""

    def __init__(self, *turns: Turn, opening: Turn | None = None) -> None:
        self.gate, self.entered = asyncio.Event(), asyncio.Event()
        self.turns, self.opening = list(turns), opening or Turn()
        self.problems: list[Problem] = []
        self.actions: list[str] = []
        self.closed = 0

    async def start(self, problem: Problem) -> "tuple[Slow, Turn]":
        self.problems.append(problem)
        return self, self.opening

    async def step(self, action: str) -> Turn:
        self.entered.set()
        await self.gate.wait()
        self.actions.append(action)
        return self.turns.pop(0)

    async def close(self) -> None:
        self.closed += 1


def opened(*turns: Turn, opening: Turn | None = None) -> Slow:
    task = Slow(*turns, opening=opening)
    task.gate.set()
    return task


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def assert_dropped(sample: Sample, because: str) -> None:
    assert (sample.remove_sample, sample.reward, sample.status) == (True, 0.0, Sample.Status.FAILED)
    assert (sample.tokens, sample.response, sample.response_length) == ([0, 0], "", 1)
    assert (sample.loss_mask, sample.rollout_log_probs) == ([0], [0.0])
    assert because in sample.metadata["http_env"]["error"]


def assert_in_line(sample: Sample, prompt_tokens: int) -> None:
    assert sample.loss_mask is not None
    assert sample.rollout_log_probs is not None
    assert len(sample.loss_mask) == len(sample.rollout_log_probs) == sample.response_length
    assert len(sample.tokens) == prompt_tokens + sample.response_length
    assert all(value == 0.0 for mask, value in zip(sample.loss_mask, sample.rollout_log_probs, strict=True) if not mask)


def test_the_signature_is_slimes() -> None:
    assert inspect.iscoroutinefunction(generate)
    assert list(inspect.signature(generate).parameters) == ["args", "sample", "sampling_params", "evaluation"]


def test_one_turn_is_generated_judged_and_the_session_closed(world: Any) -> None:
    async def go() -> None:
        async with world.scene((world.tokens("7<end>"), "stop")) as scene:
            params = dict(PARAMS)
            sample = await generate(scene.args, world.sample(), params)
            assert (sample.status, sample.reward, sample.remove_sample) == (Sample.Status.COMPLETED, 1.0, False)
            assert sample.tokens == world.tokens("3+4=7<end>")
            assert (sample.response, sample.response_length) == ("7<end>", 2)
            assert (sample.loss_mask, sample.rollout_log_probs) == ([1, 1], [-0.5, -1.5])
            assert sample.metadata["http_env"]["info"]["reason"] == "exact"
            assert scene.model.requests[0] == {
                "input_ids": world.tokens("3+4="),
                "sampling_params": PARAMS,
                "return_logprob": True,
            }
            assert (params, len(scene.sessions)) == (PARAMS, 0)

    run(go)


def test_several_turns_keep_generated_tokens_as_they_came_and_mask_observations(world: Any) -> None:
    async def go() -> None:
        first, second = [world.RARE, world.END], world.tokens("7<end>")
        async with world.scene((first, "stop"), (second, "stop")) as scene:
            sample = await generate(scene.args, world.sample(CHAT, metadata={"attempts": 3}), dict(PARAMS))
            prompt = world.tokens("[user]3+4=<end>[assistant]")
            said = world.tokens("[user]Wrong. Tries left: 2.<end>[assistant]")  # the model's <end> is not doubled
            assert sample.tokens == prompt + first + said + second
            assert sample.loss_mask == [1] * 2 + [0] * len(said) + [1] * 2
            assert sample.rollout_log_probs == [-0.5, -1.5] + [0.0] * len(said) + [-0.5, -1.5]
            assert sample.response == "12<end>[user]Wrong. Tries left: 2.<end>[assistant]7<end>"
            assert (sample.reward, sample.metadata["http_env"]["turns"]) == (1.0, 2)
            assert scene.model.requests[1]["input_ids"] == prompt + first + said
            assert scene.model.requests[1]["sampling_params"]["max_new_tokens"] == 48
            assert not any("12" in text for text in scene.tokenizer.encoded)
            assert_in_line(sample, len(prompt))

    run(go)


def test_a_turn_cut_before_its_end_token_gets_one_from_the_chat_template(world: Any) -> None:
    async def go() -> None:
        async with world.scene((world.tokens("8"), "stop"), (world.tokens("7<end>"), "stop")) as scene:
            sample = await generate(scene.args, world.sample(CHAT, metadata={"attempts": 2}), dict(PARAMS))
            assert sample.response == "8<end>[user]Wrong. Tries left: 1.<end>[assistant]7<end>"
            assert sample.loss_mask == [1] + [0] * (sample.response_length - 3) + [1, 1]

    run(go)


def test_a_plain_text_prompt_gets_its_observations_as_plain_text(world: Any) -> None:
    async def go() -> None:
        task = opened(Turn("|obs|"), Turn(done=True, reward=0.25), opening=Turn("|first|"))
        async with world.scene((world.tokens("a"), "stop"), (world.tokens("b"), "stop"), task=task) as scene:
            sample = await generate(scene.args, world.sample("p"), dict(PARAMS))
            assert sample.tokens == world.tokens("p|first|a|obs|b")
            assert sample.loss_mask == [1, 0, 0, 0, 0, 0, 1]
            assert (task.actions, sample.reward) == (["a", "b"], 0.25)

    run(go)


def test_a_first_observation_joins_the_users_message(world: Any) -> None:
    async def go() -> None:
        task = opened(Turn(done=True, reward=1.0), opening=Turn("look"))
        async with world.scene((world.tokens("a<end>"), "stop"), task=task) as scene:
            sample = await generate(scene.args, world.sample(CHAT), dict(PARAMS))
            assert sample.tokens == world.tokens("[user]3+4=\nlook<end>[assistant]a<end>")
            assert (sample.response_length, task.actions) == (2, ["a"])

    run(go)


def test_the_token_budget_counts_over_all_turns_and_the_last_cut_turn_is_still_judged(world: Any) -> None:
    async def go() -> None:
        async with world.scene((world.tokens("88<end>"), "stop"), (world.tokens("78888"), "length")) as scene:
            params = PARAMS | {"max_new_tokens": 4}
            sample = await generate(scene.args, world.sample(CHAT, metadata={"attempts": 5}), params)
            assert [r["sampling_params"]["max_new_tokens"] for r in scene.model.requests] == [4, 1]
            assert sample.status == Sample.Status.TRUNCATED
            assert (sum(sample.loss_mask or []), sample.reward) == (4, 1.0)

    run(go)


def test_turns_are_limited_and_an_episode_that_was_never_judged_earns_nothing(world: Any) -> None:
    async def go() -> None:
        replies = [(world.tokens("8<end>"), "stop")] * 2
        async with world.scene(*replies, http_env_max_turns=2) as scene:
            sample = await generate(scene.args, world.sample(CHAT, metadata={"attempts": 9}), dict(PARAMS))
            assert (sample.status, len(scene.model.requests)) == (Sample.Status.TRUNCATED, 2)
            assert 0 < sample.reward < 1  # the last wrong answer was judged
        task = opened(Turn("on"), Turn("on"))
        async with world.scene(*replies, task=task, http_env_max_turns=2) as scene:
            sample = await generate(scene.args, world.sample(CHAT), dict(PARAMS))
            assert (sample.status, sample.reward, sample.remove_sample) == (Sample.Status.TRUNCATED, 0.0, False)

    run(go)


def test_an_observation_that_does_not_fit_the_context_ends_the_episode(world: Any) -> None:
    async def go() -> None:
        task = opened(Turn("x" * 100, reward=0.5))
        async with world.scene((world.tokens("a"), "stop"), task=task, rollout_max_context_len=50) as scene:
            sample = await generate(scene.args, world.sample("p"), dict(PARAMS))
            assert scene.model.requests[0]["sampling_params"]["max_new_tokens"] == 49
            assert (sample.status, sample.reward) == (Sample.Status.TRUNCATED, 0.5)
            assert sample.tokens == world.tokens("pa")

    run(go)


def test_an_environment_that_is_down_for_a_while_drops_samples_and_scores_none(world: Any) -> None:
    async def down(request: Request) -> JSONResponse:
        return JSONResponse({"detail": "maintenance"}, 503)

    async def go() -> None:
        app = Starlette(routes=[Route("/{path:path}", down, methods=["POST"])])
        async with world.scene((world.tokens("7<end>"), "stop")) as scene, world.serving(app) as down_url:
            up_url, scene.args.http_env_url = scene.args.http_env_url, down_url
            dropped = await asyncio.gather(*(generate(scene.args, world.sample(), dict(PARAMS)) for _ in range(8)))
            for sample in dropped:
                assert_dropped(sample, "HTTP 503 maintenance")
            assert scene.model.requests == []
            scene.args.http_env_url = up_url
            sample = await generate(scene.args, dropped[0], dict(PARAMS))  # a dropped one can be tried again
            assert (sample.status, sample.reward, sample.remove_sample) == (Sample.Status.COMPLETED, 1.0, False)
            assert "error" not in sample.metadata["http_env"]

    run(go)


def test_nobody_at_the_address_drops_the_sample(world: Any) -> None:
    async def go() -> None:
        async with world.scene() as scene:
            scene.args.http_env_url = "http://127.0.0.1:9"
            assert_dropped(await generate(scene.args, world.sample(), dict(PARAMS)), "ConnectError")

    run(go)


def test_a_slow_environment_ends_at_the_calls_time_limit(world: Any) -> None:
    async def go() -> None:
        task = Slow()
        async with world.scene((world.tokens("7<end>"), "stop"), task=task, http_env_call_s=1.5) as scene:
            sample = await generate(scene.args, world.sample(), dict(PARAMS))
            assert_dropped(sample, "/v1/session/step failed (")
            assert (task.closed, len(scene.sessions)) == (1, 0)

    run(go)


def test_a_sample_that_takes_too_long_as_a_whole_is_dropped(world: Any) -> None:
    async def go() -> None:
        async def never(body: Any) -> Any:
            await asyncio.sleep(60)

        async with world.scene(never, http_env_sample_s=1.5) as scene:
            assert_dropped(await generate(scene.args, world.sample(), dict(PARAMS)), "not finished in 1.5 s")
            await world.until(lambda: len(scene.sessions) == 0)

    run(go)


@pytest.mark.parametrize("turn", [Turn(done=True), Turn("", False, float("inf"))])
def test_an_episode_without_a_usable_reward_is_dropped(world: Any, turn: Turn) -> None:
    async def go() -> None:
        async with world.scene((world.tokens("7"), "stop"), task=opened(turn)) as scene:
            sample = await generate(scene.args, world.sample(), dict(PARAMS))
            assert (sample.remove_sample, sample.status) == (True, Sample.Status.FAILED)

    run(go)


def test_an_episode_that_is_over_before_it_begins_is_dropped(world: Any) -> None:
    async def go() -> None:
        async with world.scene(task=opened(opening=Turn(done=True, reward=1.0))) as scene:
            assert_dropped(await generate(scene.args, world.sample(), dict(PARAMS)), "before the model said anything")

    run(go)


@pytest.mark.parametrize("status", [400, 422])
def test_a_model_server_that_refuses_one_request_drops_that_sample(world: Any, status: int) -> None:
    async def go() -> None:
        async with world.scene(status) as scene:
            assert_dropped(await generate(scene.args, world.sample(), dict(PARAMS)), f"refused with HTTP {status}")

    run(go)


def test_a_model_server_that_stays_down_fails_the_job_and_leaves_no_session(world: Any) -> None:
    async def go() -> None:
        async with world.scene(*[500] * 9) as scene:
            with pytest.raises(TrainstackError, match="model server"):
                await generate(scene.args, world.sample(), dict(PARAMS))
            assert len(scene.sessions) == 0

    run(go)


def test_without_tokenizer_model_or_limit_the_set_up_is_refused(world: Any) -> None:
    async def go() -> None:
        async with world.scene() as scene:
            for name in ("tokenizer", "sglang_router_ip"):
                kept = vars(scene.args).pop(name)
                with pytest.raises(UserError):
                    await generate(scene.args, world.sample(), dict(PARAMS))
                setattr(scene.args, name, kept)
            with pytest.raises(UserError, match="--rollout-max-response-len"):
                await generate(scene.args, world.sample(), {})
            assert len(scene.sessions) == 0

    run(go)


def test_the_environment_gets_the_task_but_not_our_own_notes(world: Any) -> None:
    class Array:
        def tolist(self) -> list[int]:
            return [1, 2]

    async def go() -> None:
        task = opened(Turn(done=True, reward=1.0))
        async with world.scene((world.tokens("a"), "stop"), task=task) as scene:
            sample = world.sample(CHAT, metadata={"level": Array(), "http_env": {"error": "old"}})
            await generate(scene.args, sample, dict(PARAMS))
        assert task.problems == [Problem("user: 3+4=", "7", {"level": [1, 2]}, tuple(CHAT))]

    run(go)


def abortable(args: Any) -> Callable[[bool], None]:
    state = [False]
    args.rollout_aborted = lambda: state[0]
    return lambda value: state.__setitem__(0, value)


def assert_called_back(sample: Sample) -> None:
    """Harmless if it were trained on as it is."""
    assert (sample.status, sample.reward, sample.remove_sample) == (Sample.Status.ABORTED, 0.0, True)
    assert sample.loss_mask is not None
    assert len(sample.loss_mask) == len(sample.rollout_log_probs or []) == sample.response_length >= 1


def test_an_aborted_generation_is_kept_and_gone_on_with_when_the_sample_comes_again(world: Any) -> None:
    async def go() -> None:
        replies = [(world.tokens("8<end>"), "stop"), ([world.RARE], "abort"), (world.tokens("<end>"), "stop")]
        async with world.scene(*replies) as scene:
            sample = world.sample(CHAT, label="12", metadata={"attempts": 3})
            sample = await generate(scene.args, sample, dict(PARAMS))
            assert_called_back(sample)
            assert sample.tokens[-1] == world.RARE
            assert len(scene.sessions) == 0
            before = list(sample.tokens)
            sample.loss_mask = [0] * sample.response_length  # slime does this with --mask-offpolicy-in-partial-rollout
            sample = await generate(scene.args, sample, dict(PARAMS))
            assert (sample.status, sample.reward, sample.remove_sample) == (Sample.Status.COMPLETED, 1.0, False)
            assert sample.tokens == [*before, world.END]
            assert scene.model.requests[2]["input_ids"] == before
            assert scene.model.requests[2]["sampling_params"]["max_new_tokens"] == 47
            assert sample.loss_mask == [0] * (sample.response_length - 1) + [1]
            assert len(sample.rollout_log_probs or []) == sample.response_length
            assert len(scene.sessions) == 0

    run(go)


def test_an_abort_does_not_wait_for_a_hanging_environment_and_the_answer_is_not_generated_twice(world: Any) -> None:
    async def go() -> None:
        task = Slow(Turn(done=True, reward=0.75))
        async with world.scene((world.tokens("7<end>"), "stop"), task=task, http_env_call_s=600) as scene:
            abort = abortable(scene.args)
            running = asyncio.create_task(generate(scene.args, world.sample(CHAT), dict(PARAMS)))
            await task.entered.wait()
            abort(True)
            sample = await running
            assert_called_back(sample)
            assert (sample.response, task.closed) == ("7<end>", 1)
            abort(False)
            task.gate.set()
            sample = await generate(scene.args, sample, dict(PARAMS))
            assert (sample.reward, sample.status, len(scene.model.requests)) == (0.75, Sample.Status.COMPLETED, 1)
            assert (sample.response, sample.loss_mask, task.actions) == ("7<end>", [1, 1], ["7"])

    run(go)


def test_an_abort_does_not_wait_for_a_model_server_that_hands_nothing_over(world: Any) -> None:
    async def go() -> None:
        entered = asyncio.Event()

        async def never(body: Any) -> Any:
            entered.set()
            await asyncio.sleep(60)

        async with world.scene(never, http_env_abort_grace_s=0.05) as scene:
            abort = abortable(scene.args)
            running = asyncio.create_task(generate(scene.args, world.sample(), dict(PARAMS)))
            await entered.wait()
            abort(True)
            assert_called_back(await running)
            assert len(scene.sessions) == 0

    run(go)


def test_a_session_still_being_opened_at_an_abort_is_closed_afterwards(world: Any) -> None:
    class SlowStart(Slow):
        async def start(self, problem: Problem) -> "tuple[Slow, Turn]":
            self.entered.set()
            await self.gate.wait()
            return await super().start(problem)

    async def go() -> None:
        task = SlowStart()
        async with world.scene(task=task) as scene:
            abort = abortable(scene.args)
            running = asyncio.create_task(generate(scene.args, world.sample(), dict(PARAMS)))
            await task.entered.wait()
            abort(True)
            assert_called_back(await running)
            task.gate.set()
            await world.until(lambda: task.closed == 1)

    run(go)


def test_when_the_environment_answers_otherwise_the_second_time_the_sample_starts_afresh(world: Any) -> None:
    async def go() -> None:
        task = opened(Turn("rain"), Turn("sun"), Turn(done=True, reward=1.0))
        replies = [(world.tokens("a"), "stop"), (world.tokens("b"), "abort"), (world.tokens("c"), "stop")]
        async with world.scene(*replies, task=task) as scene:
            sample = await generate(scene.args, world.sample("p"), dict(PARAMS))
            assert sample.response == "arainb"
            sample = await generate(scene.args, sample, dict(PARAMS))
            assert (sample.tokens, sample.reward, sample.loss_mask) == (world.tokens("pc"), 1.0, [1])
            assert (task.actions, len(scene.sessions), task.closed) == (["a", "a", "c"], 0, 3)

    run(go)


def test_an_abort_before_anything_happened_returns_a_harmless_sample_at_once(world: Any) -> None:
    async def go() -> None:
        async with world.scene() as scene:
            abortable(scene.args)(True)
            sample = await generate(scene.args, world.sample(), dict(PARAMS))
            assert_called_back(sample)
            assert scene.model.requests == []

    run(go)


def test_a_cancelled_sample_closes_its_session(world: Any) -> None:
    async def go() -> None:
        task = Slow()
        async with world.scene((world.tokens("7"), "stop"), task=task) as scene:
            running = asyncio.create_task(generate(scene.args, world.sample(), dict(PARAMS)))
            await task.entered.wait()
            running.cancel()
            await asyncio.wait({running})
            assert (running.cancelled(), task.closed) == (True, 1)

    run(go)
