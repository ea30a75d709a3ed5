"""The lines that slime's own code writes, read by the progress parser, the hook, the figures and the watchdog.

Needs checkouts: SLIME=... MEGATRON=... pytest -m slime
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from plugins.slime.hooks import PROGRESS_FILE
from plugins.slime.progress import Point, ProgressParser
from plugins.slime.watchdog import Watchdog
from tasks.stage_progress import StageProgress
from tests.slime_real import ROOT, environment, needs_slime

pytestmark = needs_slime
RAY = "\x1b[36m(MegatronTrainRayActor pid=1234, ip=10.0.0.7)\x1b[0m "


@dataclass
class Said:
    """What one run said: the lines of its log, and of the hooks' file."""

    log: list[str]
    hooked: list[str]

    def points(self, prefix: str = "") -> list[Point]:
        parser = ProgressParser()
        return [point for line in self.log if (point := parser.feed(prefix + line))]

    def point(self, kind: str, key: str) -> Point:
        (found,) = [point for point in self.points() if point.kind == kind and key in point.values]
        return found


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    folder = tmp_path_factory.mktemp("said")
    hooked = folder / "progress.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "tests.slime_real.speak", str(folder)],
        env=os.environ | environment() | {PROGRESS_FILE: str(hooked)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        check=False,
    )
    text = done.stdout.decode()
    assert done.returncode == 0, text
    return Said(text.split("\n"), hooked.read_text().splitlines())


def test_every_line_of_figures_is_a_point_and_nothing_else_is(said: Said) -> None:
    kinds = [(point.kind, point.number) for point in said.points()]
    assert kinds == [("perf", 3), ("eval", 3), ("rollout", 3), ("step", 6), ("step", 7), ("perf", 3)]
    assert repr(said.points(RAY)) == repr(said.points())  # nan is not equal to nan


def test_the_steps_of_slimes_training_loop_are_read_with_a_gradient_that_is_none(said: Said) -> None:
    first, second = (point for point in said.points() if point.kind == "step")
    assert first.values["train/loss"] == 0.5 and first.values["train/train_rollout_logprob_abs_diff"] == 0.02
    assert (
        first.values["train/lr-pg_0"] == 1e-6 and second.values["train/grad_norm"] != second.values["train/grad_norm"]
    )


def test_what_slime_says_of_a_rollout_has_the_keys_that_the_figures_are_made_of(said: Said) -> None:
    assert said.point("perf", "rollout/truncated_ratio").values["rollout/truncated_ratio"] == 0.25
    assert "rollout/repetition_frac" in said.point("perf", "perf/rollout_time").values
    assert said.point("rollout", "rollout/raw_reward").values["rollout/response_lengths"] == 96.5
    assert said.point("eval", "eval/aime").values["eval/aime"] == 0.5
    assert said.point("perf", "perf/step_time").values["perf/save_model_time"] == 2.0


def test_the_hooks_are_called_by_slime_and_leave_out_what_was_removed(said: Said) -> None:
    parser = ProgressParser()
    rollout, evaluation = (parser.feed_hook(line) for line in said.hooked)
    assert rollout is not None and evaluation is not None
    assert (rollout.kind, rollout.number, rollout.values["reward/removed"]) == ("rollout", 3, 1)
    assert rollout.values["reward/mean"] == evaluation.values["eval/aime"] == pytest.approx(2 / 3)
    assert (evaluation.kind, evaluation.values["eval/aime-removed"]) == ("eval", 1)


def test_the_figures_of_a_stage_come_from_slimes_own_lines(said: Said) -> None:
    progress, parser = StageProgress(steps_per_rollout=2), ProgressParser()
    for point in [*said.points(), *filter(None, map(parser.feed_hook, said.hooked))]:
        progress.take(point)
    figures = progress.newest()
    assert set(figures) >= {"loss", "KL", "grad norm", "log-prob difference", "reward", "response length", "truncated"}
    assert (figures["reward"], figures["tokens per GPU-second"], progress.iteration) == (0.6667, 0.24, 3)
    assert [name for name in figures if name.startswith("eval/")] == ["eval/aime", "eval/aime-truncated_ratio"]
    assert set(progress.split()) == {"generate", "train", "update weights", "save", "whole"}
    assert progress.warning is not None and "grad_norm was not finite at step 7" in progress.warning


def test_the_watchdog_hears_timers_and_not_the_wait_for_gpus(said: Said) -> None:
    now = [0.0]
    dog, phases, parser = Watchdog(60, 60, clock=lambda: now[0], steps_per_rollout=2), [], ProgressParser()
    waits = [line for line in said.log if "Waiting for placement group" in line]
    for line in waits:
        now[0] += 40
        dog.hear_line(RAY + line)
    stall = dog.stall()
    assert len(waits) == 2 and stall is not None and stall.name == "stall-placement-group"
    assert "8 GPUs (elapsed 60s): 4 GPUs registered" in stall.sentence
    for line in said.log:
        dog.hear_line(RAY + line)
        if point := parser.feed(line):
            dog.take(point)
        if not phases or phases[-1] != dog.phase:
            phases.append(dog.phase)
    assert phases == ["start", "rollout", "train", "rollout", "save", "rollout", "train", "rollout"]
    assert dog.stall() is None


def test_the_text_of_a_sample_is_in_the_log_and_nothing_of_it_is_believed(said: Said) -> None:
    assert any("step 999" in line for line in said.log)
    assert 999 not in [point.number for point in said.points()]


def test_slimes_logger_writes_the_prefix_that_is_looked_for(said: Said) -> None:
    steps = [line for line in said.log if " - step 7: " in line]
    assert len(steps) == 1 and Path(steps[0].split(" - ")[0].split()[-1].partition(":")[0]).suffix == ".py"
