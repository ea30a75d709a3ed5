"""Output that is worth nothing shows in several figures at once, from the first rollout on."""

import math

from plugins.slime.progress import Point
from plugins.slime.symptoms import Symptoms


def rollout(number: int, *, truncated: float = 0.1, repetition: float = 0.0, reward: float = 0.4, diff: float = 0.01):
    yield Point("perf", number, {"rollout/truncated_ratio": truncated, "rollout/repetition_frac": repetition})
    yield Point("rollout", number, {"rollout/raw_reward": reward})
    yield Point("step", number, {"train/loss": 0.1, "train/train_rollout_logprob_abs_diff": diff})


BAD = {"truncated": 1.0, "repetition": 0.9, "reward": 0.0, "diff": 4.0}


def seen(*points) -> dict[str, str]:
    symptoms = Symptoms()
    for point in points:
        symptoms.take(point)
    return symptoms.warnings


def test_a_model_that_writes_nonsense_from_the_start_is_said_to_have_no_weights() -> None:
    found = seen(*rollout(0, **BAD), *rollout(1, **BAD))
    assert list(found) == ["garbled-output"]
    assert "truncated answers 1.00" in found["garbled-output"] and "model.args" in found["garbled-output"]


def test_a_resumed_run_is_judged_from_its_own_first_rollout_on() -> None:
    assert list(seen(*rollout(40, **BAD), *rollout(41, **BAD))) == ["garbled-output"]


def test_one_bad_rollout_or_one_bad_figure_says_nothing() -> None:
    assert seen(*rollout(0, **BAD)) == {}
    assert seen(*rollout(0), *rollout(1, **BAD)) == {}
    hard = {"truncated": 1.0, "reward": 0.0}
    assert seen(*rollout(0, **hard), *rollout(1, **hard), *rollout(2, **hard)) == {}


def test_the_warning_goes_once_the_output_is_well() -> None:
    assert seen(*rollout(0, **BAD), *rollout(1, **BAD), *rollout(2)) == {}


def test_a_model_that_falls_to_pieces_later_is_told_apart() -> None:
    points = [point for number in range(20) for point in rollout(number)]
    found = seen(*points, *rollout(20, **BAD), *rollout(21, **BAD))
    assert list(found) == ["collapsed-output"] and "rollout 20" in found["collapsed-output"]


def test_a_gradient_that_is_not_finite_is_said_for_a_while() -> None:
    bad = Point("step", 7, {"train/loss": 0.5, "train/grad_norm": math.nan})
    found = seen(bad, Point("step", 8, {"train/loss": 0.5, "train/grad_norm": 1.0}))
    assert "grad_norm was not finite at step 7" in found["gradient-not-finite"]
    assert seen(bad, *(Point("step", number, {"train/grad_norm": 1.0}) for number in range(8, 18))) == {}
    assert "loss" in seen(Point("step", 0, {"train/loss": math.inf}))["gradient-not-finite"]
