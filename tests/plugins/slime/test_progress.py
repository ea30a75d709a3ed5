import json
import math
from datetime import datetime
from pathlib import Path

import pytest

from plugins.slime.progress import (
    Point,
    ProgressParser,
    format_line,
    format_loaded,
    format_saved,
    parse_hook_line,
    parse_line,
)

NOW = datetime(2026, 11, 22, 20, 13, 27)
STEP = "[2026-11-22 20:13:27] model.py:918 - step 5: {'train/loss': 0.5, 'train/lr-pg_0': 1e-06}"
STEP_POINT = Point("step", 5, {"train/loss": 0.5, "train/lr-pg_0": 1e-06})
BAR = "Rollout generation:  50%|#####     | 2/4 [00:01<00:01,  1.50it/s]"


@pytest.mark.parametrize("kind", ["step", "rollout", "perf", "eval"])
def test_what_is_written_can_be_read(kind):
    line = format_line(kind, 7, {"a/b": 0.25, "c": 3}, file="model.py", line=918, now=NOW)
    assert line.startswith(f"[2026-11-22 20:13:27] model.py:918 - {kind} 7: {{'a/b': 0.25, ")
    assert parse_line(line) == Point(kind, 7, {"a/b": 0.25, "c": 3.0})


def test_checkpoint_prints_can_be_read():
    assert parse_line(format_saved(19, Path("/w/save dir"), now=NOW)) == Point("saved", 19)
    assert parse_line(format_loaded(19, Path("/w/save"), now=NOW)) == Point("loaded", 19)
    plain = (
        "(MegatronTrainRayActor pid=12)   successfully saved checkpoint from iteration      19 to /w [ t 1/2, p 1/1 ]"
    )
    assert parse_line(plain) == Point("saved", 19)


def test_a_line_of_no_known_kind_is_not_written():
    with pytest.raises(ValueError, match="format_saved"):
        format_line("saved", 1, {}, file="x.py", line=1, now=NOW)


def test_values_are_read_in_every_spelling_and_never_evaluated():
    line = (
        "[2026-11-22 20:13:27] m.py:1 - step 0: {'a': nan, 'b': -inf, 'c': np.float64(0.5), 'd': tensor(2.), "
        "'e': tensor(3.5, device='cuda:0'), 'f': tensor(1e-3, device='cuda:0', grad_fn=<NormBackward1>), "
        "'g': 'text, with: 1', 'h': None, 'i': [1, 2], 'j': 7}"
    )
    point = parse_line(line)
    assert point is not None
    assert math.isnan(point.values.pop("a"))
    assert point.values == {"b": -math.inf, "c": 0.5, "d": 2.0, "e": 3.5, "f": 1e-3, "j": 7.0}
    evil = "[2026-11-22 20:13:27] m.py:1 - step 0: {'a': __import__('os').system('true')}"
    assert parse_line(evil) is None


@pytest.mark.parametrize(
    "dressed",
    [
        STEP + "\n",
        f"(MegatronTrainRayActor pid=1234) {STEP}",
        f"(MegatronTrainRayActor pid=1234, ip=10.0.0.7) {STEP}",
        f"\x1b[36m(MegatronTrainRayActor pid=1234)\x1b[0m {STEP}\x1b[32m [repeated 3x across cluster]\x1b[0m",
        f"{BAR}\r{STEP}",
        f"\r{BAR}{STEP}",
        f"(RolloutManager pid=9) \r{BAR}{STEP}\r\n",
    ],
)
def test_prefixes_colours_and_progress_bars_do_not_hide_a_line(dressed):
    assert parse_line(dressed) == STEP_POINT


@pytest.mark.parametrize(
    "text",
    [
        "step 5: {'train/loss': 0.5}",
        f"First rollout sample: ['{STEP}']",
        f"the model wrote {STEP}",
        f"{STEP} and went on",
        f"  {STEP}",
        STEP[:-1],
        STEP.replace(" - step", " - critic-step"),
        STEP.replace("step 5", "step five"),
        "[2026-11-22 20:13:27] model.py:918 - step 5: {}",
        "  successfully saved checkpoint from iteration 99",
        "he said: successfully saved checkpoint from iteration      99 to /w [ t 1/1, p 1/1 ]",
        BAR,
        "",
    ],
)
def test_text_that_only_looks_like_progress_is_not_trusted(text):
    assert parse_line(text) is None


def test_a_point_comes_once_and_points_with_other_keys_are_others():
    parser = ProgressParser()
    perf = "[2026-11-22 20:13:27] m.py:1 - perf 3: {'%s': 1.0}"
    assert parser.feed(STEP) == STEP_POINT
    assert parser.feed(f"(Actor pid=3) {STEP}") is None
    assert parser.feed(perf % "perf/rollout_time") is not None
    assert parser.feed(perf % "perf/train_time") is not None
    assert parser.feed(perf % "perf/train_time") is None


def test_the_hooks_lines_are_read_and_torn_ones_are_not():
    line = json.dumps({"kind": "rollout", "number": 4, "values": {"reward/mean": 0.5}, "time": 1.0})
    assert parse_hook_line(line) == Point("rollout", 4, {"reward/mean": 0.5})
    for torn in (line[:-3], "", "[]", '{"kind": "shell", "number": 1, "values": {}}', '{"kind": "rollout"}', "null"):
        assert parse_hook_line(torn) is None
