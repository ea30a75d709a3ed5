"""The hook's line: what a rollout gave and where its data stood, and nothing that reaches the trainer."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import plugins.slime.hooks as hooks
from plugins.slime.progress import parse_hook_line


def sample(reward, status="completed", **more):
    return SimpleNamespace(reward=reward, status=SimpleNamespace(value=status), metadata={}, **more)


def call(monkeypatch, path, samples, **args):
    monkeypatch.setenv(hooks.PROGRESS_FILE, str(path))
    return hooks.custom_rollout_log(3, SimpleNamespace(**args), samples, None, 1.5)


def test_one_line_tells_the_reward_without_the_samples_that_were_dropped(tmp_path, monkeypatch):
    path = tmp_path / "new" / "progress.jsonl"
    samples = [[sample(1.0), sample(0.0, "truncated")], [sample(0.0, "aborted", remove_sample=True), sample(None)]]
    assert call(monkeypatch, path, samples) is False
    assert call(monkeypatch, path, samples) is False
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    point = parse_hook_line(lines[0])
    assert point is not None and (point.kind, point.number) == ("rollout", 3)
    assert point.values == {
        "reward/mean": 0.5,
        "reward/samples": 2,
        "reward/removed": 1,
        "reward/truncated": 1,
        "perf/rollout_time": 1.5,
    }


def test_raw_reward_and_reward_key_are_used_as_slime_does(tmp_path, monkeypatch):
    path = tmp_path / "p.jsonl"
    raw = sample(-3.0)
    raw.metadata["raw_reward"] = 1.0
    call(monkeypatch, path, [raw, sample({"acc": 0.0})], reward_key="acc")
    assert json.loads(path.read_text())["values"]["reward/mean"] == 0.5


def test_supervised_rollouts_tell_no_reward(tmp_path, monkeypatch):
    path = tmp_path / "p.jsonl"
    call(monkeypatch, path, [sample(0), sample(0)], loss_type="sft_loss")
    assert json.loads(path.read_text())["values"] == {"perf/rollout_time": 1.5}


def test_nothing_that_goes_wrong_reaches_the_trainer(tmp_path, monkeypatch):
    assert call(monkeypatch, tmp_path, [sample(1.0)]) is False  # a folder, not a file
    assert call(monkeypatch, tmp_path / "p", [sample(float("nan")), object(), None, 3]) is False
    monkeypatch.delenv(hooks.PROGRESS_FILE)
    assert hooks.custom_rollout_log(0, None, None, None, 0.0) is False


def test_the_hook_needs_nothing_but_the_standard_library():
    root = Path(hooks.__file__).resolve().parents[2]
    script = "import sys; import plugins.slime.hooks; print([m for m in sys.modules if m.startswith('plugins.')])"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['plugins.slime', 'plugins.slime.hooks']"


def drawn(index, group=None, **more):
    return sample(1.0, index=index, group_index=index // 2 if group is None else group, **more)


def position(rollout_id, samples, args=None):
    values = hooks.data_position(rollout_id, args or SimpleNamespace(), list(hooks._flatten(samples)))
    return {name.removeprefix("data/"): value for name, value in values.items()}


def test_the_data_position_is_in_the_line(tmp_path, monkeypatch):
    path = tmp_path / "p.jsonl"
    call(monkeypatch, path, [[drawn(6), drawn(7)], [drawn(4), drawn(5)]], loss_type="sft_loss")
    values = parse_hook_line(path.read_text()).values
    assert values == {
        "data/first_index": 4,
        "data/last_index": 7,
        "data/first_group": 2,
        "data/last_group": 3,
        "data/fresh": 4,
        "data/requeued": 0,
        "data/exact": 1,
        "perf/rollout_time": 1.5,
    }


def test_samples_that_an_earlier_rollout_began_are_not_fresh():
    begun = drawn(2)
    begun.metadata["start_rollout_id"] = 4
    here = drawn(9)
    here.metadata["start_rollout_id"] = 5
    said = position(5, [begun, drawn(8), here])
    assert (said["first_index"], said["last_index"], said["fresh"], said["requeued"]) == (8, 9, 2, 1)


def test_samples_not_beyond_what_was_reported_are_not_fresh():
    args = SimpleNamespace()
    assert position(0, [drawn(0), drawn(5)], args)["last_index"] == 5
    later = position(1, [drawn(3), drawn(6), drawn(7)], args)
    assert (later["first_index"], later["fresh"], later["requeued"]) == (6, 2, 1)
    only_old = position(2, [drawn(1), drawn(2)], args)
    assert only_old == {"fresh": 0, "requeued": 2, "exact": 1}


def test_samples_of_one_prompt_that_fanned_out_share_its_index():
    said = position(0, [[[drawn(4), drawn(4)], [drawn(5)]], [[drawn(6)], [drawn(7), drawn(7)]]])
    assert (said["first_index"], said["last_index"], said["fresh"], said["first_group"]) == (4, 7, 6, 2)


def test_a_sample_without_an_index_makes_the_position_inexact():
    said = position(0, [sample(1.0), drawn(3), drawn(True), drawn("4", group=2)])
    assert (said["first_index"], said["fresh"], said["exact"]) == (3, 1, 0)
    assert position(0, [sample(1.0), object(), None]) == {}
    no_group = position(0, [drawn(3), sample(1.0, index=4)])
    assert "first_group" not in no_group and no_group["exact"] == 1


def test_the_position_is_exact_only_where_slime_trains_all_it_draws():
    def exact(**args):
        return position(0, [drawn(0)], SimpleNamespace(rollout_batch_size=4, **args))["exact"]

    assert exact() == exact(over_sampling_batch_size=4) == 1
    assert exact(rollout_function_path="slime.rollout.sft_rollout.generate_rollout") == 1
    assert exact(over_sampling_batch_size=8) == 0
    assert exact(dynamic_sampling_filter_path="my.filter") == 0
    assert exact(rollout_function_path="slime.rollout.fully_async_rollout.generate_rollout_fully_async") == 0
    assert exact(data_source_path="my.source.Source") == 0
    assert exact(load_debug_rollout_data="/p/{rollout_id}.pt") == 0


def test_arguments_that_take_no_attribute_lose_no_line(tmp_path, monkeypatch):
    monkeypatch.setenv(hooks.PROGRESS_FILE, str(tmp_path / "p.jsonl"))
    assert hooks.custom_rollout_log(0, object(), [drawn(0)], None, 1.0) is False
    assert parse_hook_line((tmp_path / "p.jsonl").read_text()).values["data/first_index"] == 0


def evaluate(monkeypatch, path, data, **args):
    monkeypatch.setenv(hooks.PROGRESS_FILE, str(path))
    return hooks.custom_eval_rollout_log(7, SimpleNamespace(**args), data, None)


def test_an_evaluation_is_one_line_without_the_samples_that_were_dropped(tmp_path, monkeypatch):
    path = tmp_path / "p.jsonl"
    dropped = sample(0.0, remove_sample=True)
    data = {
        "aime": {
            "rewards": [1.0, 0.0, 0.0],
            "truncated": [True, False, False],
            "samples": [sample(1.0), sample(0.0), dropped],
        },
        "plain": {"rewards": [{"acc": 0.5}, None]},
    }
    assert evaluate(monkeypatch, path, data, reward_key="acc") is False
    point = parse_hook_line(path.read_text())
    assert point is not None and (point.kind, point.number, point.hook) == ("eval", 7, True)
    assert point.values == {
        "eval/aime": 0.5,
        "eval/aime-removed": 1,
        "eval/aime-truncated_ratio": 1 / 3,
        "eval/plain": 0.5,
        "eval/plain-removed": 0,
    }


def test_an_evaluation_that_cannot_be_read_reaches_the_trainer_no_more_than_a_rollout(tmp_path, monkeypatch):
    path = tmp_path / "p.jsonl"
    assert evaluate(monkeypatch, path, None) is False
    assert evaluate(monkeypatch, path, {"a": {"rewards": [float("nan")]}}) is False
    assert json.loads(path.read_text())["values"] == {"eval/a-removed": 0}
    monkeypatch.delenv(hooks.PROGRESS_FILE)
    assert hooks.custom_eval_rollout_log(0, None, None, None) is False
