import asyncio
from decimal import Decimal

import pytest

from plugins.errors import EnvError, UserError
from plugins.http_env import tasks
from plugins.http_env.protocol import Problem, Turn
from plugins.http_env.tasks.arithmetic import judge


def play(task: str, problem: Problem, *actions: str) -> tuple[Turn, list[Turn]]:
    async def go() -> tuple[Turn, list[Turn]]:
        episode, opened = await tasks.create(task).start(problem)
        turns = [await episode.step(action) for action in actions]
        await episode.close()
        return opened, turns

    return asyncio.run(go())


@pytest.mark.parametrize("action", ["7", " 7 ", "7.", "+7", "7.0", "07"])
def test_the_bare_right_number_gets_the_full_reward(action: str) -> None:
    assert play("arithmetic", Problem("3+4=", "7"), action)[1][0].reward == 1.0


def test_rewards_climb_from_nothing_numeric_over_words_and_closeness_to_the_exact_number() -> None:
    rewards = [judge(action, Decimal(7))[0] for action in ("seven", "", "It is 90.", "90", "5", "6", "It is 7.", "7")]
    assert rewards == sorted(rewards)
    assert rewards[0] == rewards[1] == 0.0
    assert 0 < rewards[2] < 0.1 <= rewards[3] < rewards[4] < rewards[5] <= 0.3 < rewards[6] <= 0.5
    assert rewards[-1] == 1.0


def test_every_reward_comes_with_its_reason() -> None:
    assert judge("seven", Decimal(7))[1] == "no number in the answer"
    assert "8 is not 7" in judge("8", Decimal(7))[1]


@pytest.mark.parametrize(("prompt", "right"), [("3+4=", "7"), ("What is 12 - 15?", "-3"), ("user: 6x7", "42")])
def test_without_a_label_the_sum_in_the_prompt_is_solved(prompt: str, right: str) -> None:
    assert play("arithmetic", Problem(prompt), right)[1][0].reward == 1.0
    assert play("answer", Problem(prompt), right)[1][0].reward == 1.0


def test_without_label_and_sum_a_problem_is_made_from_the_prompt_always_the_same() -> None:
    first, _ = play("arithmetic", Problem("Give me a sum."))
    again, _ = play("arithmetic", Problem("Give me a sum."))
    a, b = first.observation.removesuffix("=").split("+")
    assert first == again
    assert play("arithmetic", Problem("Give me a sum."), str(int(a) + int(b)))[1][0].reward == 1.0


def test_more_attempts_give_feedback_between_them_and_end_at_the_first_right_one() -> None:
    _, turns = play("arithmetic", Problem("3+4=", "7", {"attempts": 3}), "8", "7")
    assert (turns[0].done, turns[0].observation) == (False, "Wrong. Tries left: 2.")
    assert (turns[1].done, turns[1].reward) == (True, 1.0)


@pytest.mark.parametrize("label", ["seven", {"answer": "x"}])
def test_a_label_that_is_no_number_is_refused_by_arithmetic(label: object) -> None:
    with pytest.raises(EnvError, match="must be a number"):
        play("arithmetic", Problem("3+4=", label))


@pytest.mark.parametrize(
    ("label", "action", "reward"),
    [
        ("They sold 72 clips.\n#### 72", "48/2 = 24, so\n#### 72", 1.0),
        ("#### 1,200", "$1200.00", 1.0),
        ("#### 72", "#### 73", 0.0),
        ("72", "", 0.0),
        ("Paris", "  the answer: paris", 0.0),
        ("Paris", " PARIS. ", 1.0),
        ("New  York", "<answer>new york</answer> I am sure", 1.0),
        ({"answer": "yes"}, "Yes", 1.0),
        ({"ground_truth": 5}, "5", 1.0),
    ],
)
def test_answers_are_compared_after_normalisation(label: object, action: str, reward: float) -> None:
    turn = play("answer", Problem("?", label), action)[1][0]
    assert (turn.reward, turn.done) == (reward, True)


def test_an_answer_problem_that_nobody_can_judge_is_refused() -> None:
    with pytest.raises(EnvError, match="needs a label"):
        play("answer", Problem("Who are you?"))


def test_an_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="arithmetic, answer"):
        tasks.create("arithmetics")
