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


def perf(number: int, **values: float) -> Point:
    return Point("perf", number, {f"perf/{key}": value for key, value in values.items()})


def test_what_slimes_lines_give_becomes_figures_under_plain_names() -> None:
    progress = taken(
        Point("step", 0, {"train/loss": 0.5, "train/grad_norm": 1.5, "train/kl_loss": 0.1, "train/ppo_kl": 0.2}),
        Point("rollout", 0, {"rollout/raw_reward": 0.25, "rollout/response_lengths": 90.0, "rollout/truncated": 0.5}),
        Point("perf", 0, {"rollout/response_len/mean": 100.0, "perf/tokens_per_gpu_per_sec": 1234.56}),
    )
    assert progress.newest() == {
        "KL": 0.1,
        "grad norm": 1.5,
        "loss": 0.5,
        "policy KL": 0.2,
        "response length": 100.0,
        "reward": 0.25,
        "tokens per GPU-second": 1235.0,
        "truncated": 0.5,
    }
    assert progress.ends()[1] == {"loss": 0.5, "reward": 0.25}


def test_the_time_of_an_iteration_is_split_and_a_save_belongs_to_the_iteration_before() -> None:
    progress = taken(
        step(0, 1.0),
        perf(0, rollout_time=10.0),
        perf(0, actor_train_time=4.0, update_weights_time=1.0, step_time=15.0),
        step(1, 1.0),
        perf(1, rollout_time=20.0),
        perf(1, actor_train_time=4.0, update_weights_time=1.0, save_model_time=3.0, step_time=28.0),
    )
    assert progress.split() == {"generate": 15.0, "train": 4.0, "update weights": 1.0, "save": 1.5, "whole": 21.5}
    first, second = progress.table()
    assert (first["iteration"], first["save (s)"], first["generate (s)"]) == (0, 3.0, 10.0)
    assert (second["iteration"], second["loss"], second["whole (s)"]) == (1, 1.0, 28.0)


def test_the_table_holds_the_newest_iterations_only() -> None:
    progress = taken(*(step(number, 1.0) for number in range(200)), *(perf(n, rollout_time=1.0) for n in range(200)))
    assert [row["iteration"] for row in progress.table()] == list(range(180, 200))
    assert len(progress._times) <= 80


def test_supervised_training_has_no_response_lengths() -> None:
    point = Point("perf", 0, {"rollout/response_len/mean": 5.0, "perf/rollout_time": 1.0, "perf/actor_train_time": 2.0})
    progress = taken(point, rewarded=False)
    assert progress.figures() == [] and progress.split() == {"train": 2.0}


def test_the_hooks_evaluation_wins_over_the_logs_whichever_comes_first() -> None:
    said = [Point("eval", 0, {"eval/aime": 0.5}), Point("eval", 0, {"eval/aime": 0.75}, hook=True)]
    assert taken(*said).curve("eval/aime") == taken(*reversed(said)).curve("eval/aime") == [(0, 0.75)]


def test_what_worries_is_one_line() -> None:
    progress = taken(Point("step", 0, {"train/loss": math.nan}))
    progress.stalled = "no sign of progress"
    assert progress.warning is not None and progress.warning.startswith("no sign of progress; gradient-not-finite: ")
    assert taken(step(0, 1.0)).warning is None
