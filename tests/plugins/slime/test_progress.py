"""slime's log lines: what is written can be read, and text that only looks like them is not trusted."""

import json
import math
from datetime import datetime
from pathlib import Path

import pytest

from plugins.slime.progress import (
    LONGEST_LINE,
    Point,
    ProgressParser,
    bar,
    format_line,
    format_loaded,
    format_saved,
    format_scheduled,
    format_skipped,
    logged,
    parse_hook_line,
    parse_line,
    parse_values,
    undressed,
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


LOADED = "  successfully loaded checkpoint from /w/save [ t 1/2, p 1/1 ] at iteration 19"
SKIPPED = "optimizer.state.exp_avg.decoder.layers.0.weight from model not in state dict, will skip"
NO_TRACKER = "WARNING: could not find the metadata file /w/save/latest_checkpointed_iteration.txt"
STATE = "/w/save/rollout/global_dataset_state_dict_19.pt"
NO_STATE = f"[2026-11-22 20:13:27] data_source.py:147 - Checkpoint {STATE} does not exist."
READ_STATE = f"[2026-11-22 20:13:27] data_source.py:150 - load metadata from {STATE}"
SAID = {
    LOADED: ("loaded", 19, "/w/save"),
    SKIPPED: ("skipped", 0, "optimizer.state.exp_avg.decoder.layers.0.weight"),
    NO_TRACKER: ("no_tracker", 0, "/w/save/latest_checkpointed_iteration.txt"),
    NO_STATE: ("no_dataset_state", 19, STATE),
    NO_STATE.replace("_19", "_-1"): ("no_dataset_state", -1, STATE.replace("_19", "_-1")),
    READ_STATE: ("dataset_state", 19, STATE),
}


@pytest.mark.parametrize("line", SAID)
def test_what_is_said_about_loading_is_read_with_prefixes_and_colours(line):
    point = parse_line(line)
    assert point is not None and (point.kind, point.number, point.text) == SAID[line]
    actor = "RolloutManager" if "data_source" in line else "MegatronTrainRayActor"
    for dressed in (
        f"({actor} pid=12) {line}",
        f"\x1b[36m({actor} pid=12, ip=10.0.0.7)\x1b[0m {line}\r\n",
        f"({actor} pid=12) {line} [repeated 7x across cluster]",
        f"(pid=12) {line}",
    ):
        assert parse_line(dressed) == point, dressed


@pytest.mark.parametrize("line", SAID)
def test_a_process_that_cannot_know_is_not_believed(line):
    wrong = "MegatronTrainRayActor" if "data_source" in line else "RolloutManager"
    assert parse_line(f"({wrong} pid=12) {line}") is None


@pytest.mark.parametrize("line", SAID)
def test_words_about_loading_inside_other_text_are_not_trusted(line):
    for text in (f"First rollout sample: ['{line}']", f"he said {line}", f"{line} and went on", f"label: {line}"):
        assert parse_line(text) is None, text


def test_the_same_words_about_another_folder_are_another_point():
    parser = ProgressParser()
    assert parser.feed(LOADED) is not None
    assert parser.feed(LOADED) is None
    assert parser.feed(LOADED.replace("/w/save", "/w/ref")) is not None


def test_lines_that_the_stand_in_writes_are_read_as_slimes():
    assert parse_line(format_skipped("a.b")) == Point("skipped", 0)
    assert parse_line(format_scheduled(3, Path("/w"))) is None  # nothing is on the disk yet
    assert "scheduled an async checkpoint save at iteration       3 to /w" in format_scheduled(3, Path("/w"))


def test_a_point_of_the_hook_says_so():
    line = json.dumps({"kind": "rollout", "number": 4, "values": {"data/first_index": 8}})
    point = parse_hook_line(line)
    assert point is not None and point.hook
    assert parse_line(STEP).hook is False


@pytest.mark.parametrize("line", ["-" * 99_000, "a" * 99_000, "'k': " + "1" * 99_000, "(" * 99_000, " " * 99_000])
def test_a_very_long_line_is_read_in_part_and_says_nothing(line: str) -> None:
    assert len(undressed(line)[1]) <= LONGEST_LINE
    assert parse_line(line) is None and bar(line) is None and logged(line) is None


def test_what_stands_behind_a_long_drawn_bar_is_read() -> None:
    said = format_line("step", 5, {"train/loss": 0.5}, file="model.py", line=9, now=datetime(2030, 1, 1))
    point = parse_line("bar:  50%|##  | 1/2 [00:01<00:01]\r" * 5000 + said)
    assert point is not None and (point.kind, point.number) == ("step", 5)


def test_a_number_of_very_many_digits_is_no_work() -> None:
    assert parse_values("'a': " + "1" * 15_000 + "x") == {}  # was tried in every way to part the digits
    assert parse_values("'a': 1., 'b': .5, 'c': 12.25e-3") == {"a": 1.0, "b": 0.5, "c": 0.01225}
