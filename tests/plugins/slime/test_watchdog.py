"""A trainer that stands still: what is a sign of life and what is not, how long is too long, and what it looks like."""

import pytest

from plugins.slime.progress import Point
from plugins.slime.watchdog import Watchdog, lasting

MINUTE = 60.0
PLACEMENT = (
    "placement_group.py:64 - Waiting for placement group of 8 GPUs (elapsed {}s): 4 GPUs registered with Ray, 4 "
)
RETRY = "http_utils.py:185 - Error: timed out, retrying... (attempt {}/60, url=http://x/generate, response=None)"
ABORT = "server_control.py:38 - Abort request for SGLang server http://127.0.0.1:15000"
STILL = "server_control.py:50 - SGLang server http://127.0.0.1:15000 still has 3 requests after abort attempt {}; retry"


class Scene:
    """A watchdog with a clock of its own; limits in minutes."""

    def __init__(self, stall: float | None = 30, start: float = 60, **settings: object) -> None:
        self.now = 0.0
        limit = None if stall is None else stall * MINUTE
        self.dog = Watchdog(limit, start * MINUTE, clock=lambda: self.now, **settings)  # type: ignore[arg-type]

    def wait(self, minutes: float) -> "Scene":
        self.now += minutes * MINUTE
        return self

    def say(self, *lines: str, actor: str = "MegatronTrainRayActor") -> "Scene":
        for line in lines:
            self.dog.hear_line(f"({actor} pid=7) [2026-11-22 20:13:27] {line}")
        return self

    def step(self, number: int) -> "Scene":
        self.dog.take(Point("step", number, {"train/loss": 1.0}))
        return self

    def steps(self, count: int, minutes: float) -> "Scene":
        for number in range(count):
            self.wait(minutes).step(number)
        return self

    @property
    def name(self) -> str | None:
        stall = self.dog.stall()
        return stall.name if stall else None


def test_a_start_may_take_longer_than_an_iteration() -> None:
    scene = Scene().wait(59)
    assert scene.name is None and scene.dog.phase == "start"
    assert scene.wait(1).name == "stall-loading"
    assert Scene().step(0).wait(31).name == "stall-rollout-wait"


def test_without_a_limit_nothing_is_ever_a_stall() -> None:
    scene = Scene(stall=None).wait(10_000)
    assert (scene.name, scene.dog.warning(), scene.dog.limit_s) == (None, None, None)


def test_a_fast_run_is_judged_sooner_but_never_below_a_third_of_the_limit() -> None:
    assert Scene().steps(10, 0.1).wait(9).name is None
    assert Scene().steps(10, 0.1).wait(10.1).name == "stall-rollout-wait"
    assert Scene().steps(10, 2).wait(19).name is None
    assert Scene().steps(10, 2).wait(20.1).name is not None
    assert Scene().steps(3, 0.1).wait(29).name is None  # its pace is not known yet


def test_a_slow_run_gets_three_times_the_longest_silence_that_turned_out_well() -> None:
    scene = Scene().steps(10, 25)
    assert scene.wait(74).name is None
    assert scene.wait(2).name is not None


def test_a_save_is_not_judged_by_the_pace_of_training() -> None:
    begun, ended = "timer.py:24 - Timer save_model start", "timer.py:32 - Timer save_model end (elapsed: 1.0s)"
    scene = Scene().steps(10, 0.1).say(begun, ended, begun)
    assert scene.dog.phase == "save" and scene.wait(29).name is None
    assert scene.wait(2).name == "stall-slow-save"


@pytest.mark.parametrize(("timer", "name"), [("save_model", "stall-slow-save"), ("train", "stall-collective-hang")])
def test_the_first_step_and_the_first_save_may_take_as_long_as_a_start(timer: str, name: str) -> None:
    scene = Scene().step(0).say(f"timer.py:24 - Timer {timer} start")
    assert scene.wait(59).name is None
    assert scene.wait(2).name == name


def test_waiting_for_a_placement_group_is_no_life_however_often_it_is_said() -> None:
    scene = Scene()
    for second in range(30, 3600, 30):
        scene.wait(0.5).say(PLACEMENT.format(second) + "available.")
    stall = scene.wait(1).dog.stall()
    assert stall is not None and stall.name == "stall-placement-group"
    assert "8 GPUs (elapsed 3570s): 4 GPUs registered" in stall.sentence and "pod.ray_cpus" in stall.remedy
    assert "60 minutes in phase start (limit 60 minutes)" in stall.sentence


def test_a_placement_group_that_came_is_forgotten() -> None:
    scene = Scene().say(PLACEMENT.format(30), "placement_group.py:88 - bundle 0, node: 10.0.0.7, gpu: 0")
    assert scene.wait(61).name == "stall-loading"


def test_engines_that_never_get_healthy_are_named() -> None:
    scene = Scene().say("rollout.py:1017 - Ports for engine 0: {'port': 15000}", actor="RolloutManager")
    scene.say("model_runner.py:5 - Load weight begin.", actor="SGLangEngine")
    assert scene.wait(61).name == "stall-engine-start"


def test_an_abort_that_waits_for_a_hung_environment_is_named() -> None:
    scene = Scene().step(0).say(ABORT)
    for attempt in range(600):
        scene.wait(0.05).say(STILL.format(attempt))
    assert scene.wait(0.1).name == "stall-abort-wait"


def test_requests_that_fail_again_and_again_are_no_life() -> None:
    scene = Scene().step(0)
    for attempt in range(310):
        scene.wait(0.1).say(RETRY.format(attempt % 60))
    assert scene.name == "stall-engine-silent"


def test_a_step_that_hangs_is_a_hang_of_the_ranks() -> None:
    begun, ended = "timer.py:24 - Timer train start", "timer.py:32 - Timer train end (elapsed: 1.0s)"
    scene = Scene().say(begun, ended).step(0).say(begun, ended, begun, "timer.py:24 - Timer actor_train start")
    assert scene.dog.phase == "train" and scene.wait(31).name == "stall-collective-hang"


def test_timers_lead_from_phase_to_phase() -> None:
    scene, phases = Scene().step(0), []
    for words in ("train start", "train end (elapsed: 1.0s)", "save_model start", "save_model end (elapsed: 1.0s)"):
        phases.append(scene.say(f"timer.py:24 - Timer {words}").dog.phase)
    assert phases == ["train", "rollout", "save", "rollout"]
    scene.dog.see_bar("Eval aime", 1, 30)
    assert scene.dog.phase == "eval"
    scene.dog.take(Point("eval", 3, {"eval/aime": 0.5}))
    assert scene.dog.phase == "rollout"


def test_a_bar_that_moves_is_life_and_one_that_is_drawn_again_is_not() -> None:
    scene = Scene().step(0)
    for done in range(10):
        scene.dog.see_bar("Rollout generation", done, 10)
        scene.wait(20)
    assert scene.name is None
    scene.dog.see_bar("Rollout generation", 9, 10)
    scene.say("Rollout generation:  90%|#### | 9/10 [01:00<00:06,  6.0s/it]")
    assert scene.wait(100).name == "stall-rollout-wait"


def test_engines_that_generate_are_life() -> None:
    scene = Scene().step(0)
    for _ in range(10):
        scene.wait(20)
        scene.dog.hear_line("(SGLangEngine pid=9) [2026-11-22 20:13:27 TP0] Decode batch. #running-req: 4, #token: 9")
    assert scene.dog.silent_s == 0


def test_the_same_words_from_the_same_place_are_life_only_once() -> None:
    scene = Scene().step(0).say("env.py:7 - session 17 does not answer")
    for number in range(40):
        scene.wait(1).say(f"env.py:7 - session {number} does not answer", f"(x) warning {number}")
    assert scene.name is not None


def test_any_new_line_of_a_command_is_life_and_its_start_is_not_judged() -> None:
    scene = Scene(kind="command").wait(59)
    assert scene.name is None
    scene.dog.hear_line("epoch 1")
    scene.dog.hear_line("")
    assert scene.wait(29).name is None
    scene.dog.hear_line("epoch 1")
    assert scene.wait(31).name is None  # was silent for longer before
    assert scene.wait(200).name == "stall-silent"


def test_a_warning_comes_at_half_of_the_limit_and_does_not_change_until_there_is_life() -> None:
    scene = Scene().step(0).wait(14)
    assert scene.dog.warning() is None
    first = scene.wait(1.1).dog.warning()
    assert first is not None and "no sign of progress for 15 minutes in phase rollout, stopped after 30" in first
    assert scene.wait(5).dog.warning() == first
    assert scene.step(1).dog.warning() is None


@pytest.mark.parametrize("kind", ["slime", "tinyslime"])
def test_an_optimizer_step_is_counted_into_its_iteration(kind: str) -> None:
    scene = Scene(kind=kind, steps_per_rollout=4)
    for number in range(40):
        scene.wait(0.5).step(number)
    assert scene.wait(19).name is None  # ten iterations of two minutes
    assert scene.wait(2).name is not None


def test_a_bar_that_redraws_itself_without_a_line_end_is_life() -> None:
    scene = Scene(kind="command").wait(61)
    assert scene.name is not None
    scene.dog.hear_rest("60%")
    assert scene.name is None
    slime = Scene().step(0).wait(31)
    slime.dog.hear_rest("Rollout:  50%|##  | 1/2 [00:01<00:01]")
    assert slime.name is None
    slime.wait(200).dog.hear_rest("Rollout:  50%|##  | 1/2 [00:01<00:02]")  # drawn again, not moved
    assert slime.name is not None


def test_a_stall_of_a_command_tells_the_limit_it_was_stopped_by() -> None:
    stall = Scene(kind="command").wait(61).dog.stall()
    assert stall is not None and "for 61 minutes in phase start (limit 60 minutes)" in stall.sentence


def test_short_times_are_told_in_seconds() -> None:
    assert [lasting(seconds) for seconds in (0.4, 15, 119, 120, 3600)] == [
        "0 seconds", "15 seconds", "119 seconds", "2 minutes", "60 minutes"
    ]  # fmt: skip
