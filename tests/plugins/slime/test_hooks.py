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
