"""Figures out of what a trainer says: loss by step, reward by rollout, the hook's word before the log's."""

import math

from plugins.slime.progress import Point
from tasks.stage_progress import StageProgress


def step(number: int, loss: float) -> Point:
    return Point("step", number, {"train/loss": loss})


def logged(number: int, reward: float) -> Point:
    return Point("rollout", number, {"rollout/raw_reward": reward})


def counted(number: int, reward: float) -> Point:
    return Point("rollout", number, {"reward/mean": reward, "reward/samples": 8.0})


def taken(*points: Point, **settings) -> StageProgress:
    progress = StageProgress(**settings)
    for point in points:
        progress.take(point)
    return progress


def test_before_the_first_word_nothing_is_known() -> None:
    progress = StageProgress()
    assert (progress.iteration, progress.last("loss"), progress.figures(), progress.ends()) == (
        None,
        None,
        [],
        ({}, {}),
    )


def test_loss_is_a_curve_over_steps_in_order() -> None:
    progress = taken(step(0, 2.0), step(2, 1.0), step(1, 1.5))
    assert progress.curve("loss") == [(0, 2.0), (1, 1.5), (2, 1.0)]
    assert progress.last("loss") == 1.0
    assert (progress.first_iteration, progress.iteration) == (0, 2)


def test_steps_are_counted_into_iterations() -> None:
    progress = taken(*(step(number, 1.0) for number in range(8, 13)), steps_per_rollout=4)
    assert (progress.first_iteration, progress.iteration) == (2, 3)
    assert len(progress.curve("loss")) == 5


def test_the_hooks_reward_wins_over_the_logs_whichever_comes_first() -> None:
    assert taken(counted(0, 0.75), logged(0, 0.5)).curve("reward") == [(0, 0.75)]
    assert taken(logged(0, 0.5), counted(0, 0.75)).curve("reward") == [(0, 0.75)]
    assert taken(logged(0, 0.5), counted(1, 0.75)).curve("reward") == [(0, 0.5), (1, 0.75)]


def test_rewards_of_supervised_training_mean_nothing() -> None:
    assert taken(logged(0, 0.0), counted(1, 0.0), rewarded=False).figures() == []


def test_a_figure_that_is_no_number_leaves_no_point() -> None:
    progress = taken(step(0, 2.0), step(1, math.nan))
    assert progress.curve("loss") == [(0, 2.0)]
    assert progress.iteration == 1


def test_loading_and_saving_are_no_progress() -> None:
    progress = taken(Point("loaded", 7), Point("saved", 9), Point("perf", 3, {"perf/x": 1.0}))
    assert (progress.iteration, progress.first_iteration, progress.first_new_at) == (None, None, None)


def test_what_a_save_cost_and_how_long_an_iteration_takes_are_kept() -> None:
    clock = iter([10.0, 12.0, 14.0])
    progress = StageProgress(now=lambda: next(clock))
    for number in (4, 5, 6):
        progress.take(Point("step", number, {"train/loss": float(number)}))
    progress.take(Point("perf", 6, {"perf/save_model_time": 1.5}))
    assert (progress.save_s, progress.iteration_s, progress.last_iteration_at) == (1.5, 2.0, 14.0)
    assert progress.at(5, 2) == {"loss": 4.5}


def test_an_iteration_is_new_when_no_earlier_attempt_trained_it() -> None:
    clock = iter([10.0, 12.0, 14.0])
    progress = StageProgress(trained_before=4, now=lambda: next(clock))
    for number in (3, 4, 5):
        progress.take(Point("step", number, {"train/loss": 1.0}))
    assert (progress.first_iteration, progress.first_new_at) == (3, 14.0)


def test_first_and_last_are_means_over_a_tenth_of_the_curve() -> None:
    progress = taken(*(step(number, 40.0 - number) for number in range(40)), counted(0, 0.1), counted(1, 0.2))
    first, last = progress.ends()
    assert first == {"loss": 38.5, "reward": 0.1}
    assert last == {"loss": 2.5, "reward": 0.2}
