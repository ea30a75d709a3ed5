"""Whole runs in processes of their own: resume to the bit, save rules, log lines, failures."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from tinyslime_runs import RL, SFT, start, train, train_here

from plugins.slime import layout
from plugins.slime.progress import ProgressParser


def save_flags(save, interval=2, load=True):
    export = ["--save-hf", f"{save}/hf/{{rollout_id}}"]
    return ["--save", save, "--save-interval", interval, *export, *(["--load", save] if load else [])]


def weights(save, iteration):
    return load_file(layout.export_dir(save, iteration) / "model.safetensors")


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def points(out, kind):
    parser = ProgressParser()
    return [point for line in out.splitlines() if (point := parser.feed(line)) and point.kind == kind]


def cut_after(argv, save, iteration, **env):
    """Start, kill -9 as soon as the iteration is complete and the next rollout has begun."""
    process = start(argv, TINYSLIME_STEP_DELAY_S="0.4", **env)
    try:
        deadline = time.monotonic() + 120
        while not layout.dataset_state_file(save, iteration).exists():
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.02)
        time.sleep(0.1)  # let the writer close the file; the step delay keeps the next save away
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_a_run_cut_by_kill_9_and_resumed_ends_with_the_same_bits(kind, tmp_path, chats, prompts):
    base = [*SFT, "--prompt-data", chats] if kind == "sft" else [*RL, "--prompt-data", prompts]
    base += ["--num-rollout", 6]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    out = train(*base, *save_flags(whole), PROBE_SHUFFLES="1")
    cut_after([*base, *save_flags(cut)], cut, 1, PROBE_SHUFFLES="1")
    resumed = train(*base, *save_flags(cut), PROBE_SHUFFLES="1")

    (loaded,) = points(resumed, "loaded")
    assert loaded.number >= 1
    assert points(resumed, "rollout")[0].number == loaded.number + 1
    assert_same(weights(whole, 5), weights(cut, 5))
    assert points(resumed, "step")[-1] == points(out, "step")[-1]
    assert points(resumed, "rollout")[-1] == points(out, "rollout")[-1]


def test_log_lines_layout_and_save_rule_are_those_of_slime(tmp_path, chats):
    save = tmp_path / "save"
    out = train_here(*SFT, "--prompt-data", chats, "--num-rollout", 5, *save_flags(save))
    assert [point.number for point in points(out, "step")] == [0, 1, 2, 3, 4]
    assert [point.number for point in points(out, "saved")] == [1, 3, 4]
    losses = [point.values["train/loss"] for point in points(out, "step")]
    assert losses[-1] < losses[0]
    assert layout.list_iterations(save) == [1, 3, 4]
    assert layout.read_tracker(save) == 4
    for iteration in (1, 3, 4):
        layout.check_complete(save, iteration, kind="slime", export=True)
    assert {path.name for path in layout.iteration_dir(save, 4).iterdir()} == {
        "common.pt", ".metadata", "__0_0.distcp", "metadata.json"
    }  # fmt: skip
    state = torch.load(layout.dataset_state_file(save, 4), weights_only=True)
    assert state == {"sample_offset": 20, "epoch_id": 0, "sample_group_index": 20, "sample_index": 20, "metadata": {}}

    again = train_here(*SFT, "--prompt-data", chats, "--num-rollout", 5, *save_flags(save))
    assert "nothing to do" in again
    assert points(again, "step") == []


def test_epochs_are_counted_as_slime_does_and_each_end_is_saved(tmp_path, chats):
    save = tmp_path / "save"
    flags = ["--num-epoch", 2, "--rollout-batch-size", 8]
    out = train_here(*SFT, "--prompt-data", chats, *flags, *save_flags(save, interval=100))
    assert len(points(out, "step")) == 30 // 8 * 2
    assert layout.list_iterations(save) == [2, 5]


def test_rl_starts_from_the_sft_export_and_removed_samples_are_never_scored(tmp_path, chats, prompts, monkeypatch):
    monkeypatch.setenv("PROBE_FAILS", "1")
    sft, rl = tmp_path / "sft", tmp_path / "rl"
    train_here(*SFT, "--prompt-data", chats, "--num-rollout", 1, *save_flags(sft))
    folder = layout.export_dir(sft, 0)
    reference = ["--hf-checkpoint", folder, "--ref-load", folder, "--use-kl-loss", "--kl-loss-type", "low_var_kl"]
    evals = ["--eval-interval", 2, "--eval-prompt-data", "sums", prompts]
    hooked = [*RL, "--prompt-data", prompts, *reference, *evals, "--num-rollout", 2, "--num-steps-per-rollout", 2]
    out = train_here(*hooked, *save_flags(rl))
    first, second = points(out, "rollout")
    assert max(first.values["rollout/raw_reward"], second.values["rollout/raw_reward"]) <= 1.0
    assert [point.number for point in points(out, "step")] == [0, 1, 2, 3]
    assert points(out, "step")[0].values["train/kl_loss"] == pytest.approx(0, abs=1e-6)
    assert points(out, "step")[0].values["train/train_rollout_logprob_abs_diff"] < 1e-3
    assert [point.number for point in points(out, "eval")] == [0, 1]
    assert len([p for p in points(out, "perf") if "rollout/removed_ratio" in p.values]) == 2
    assert not torch.equal(weights(sft, 0)["model.norm.weight"], weights(rl, 1)["model.norm.weight"])


def test_load_without_a_tracker_is_a_cold_start_from_the_given_weights(tmp_path, chats):
    first = tmp_path / "first"
    train_here(*SFT, "--prompt-data", chats, "--num-rollout", 1, *save_flags(first))
    out = train_here(
        *SFT, "--prompt-data", chats, "--num-rollout", 1, "--load", tmp_path / "empty", "--ref-load", first
    )
    assert f"start weights from {first}" in out
    assert points(out, "step")[0].number == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda save: (save / layout.TRACKER).write_text("x7"), layout.TRACKER),
        (lambda save: (save / layout.TRACKER).write_text("7"), "iter_0000007"),
        (lambda save: os.truncate(save / "iter_0000001/__0_0.distcp", 2000), "__0_0.distcp"),
        (lambda save: os.truncate(save / "iter_0000001/common.pt", 100), "common.pt"),
        (lambda save: (save / "iter_0000001/.metadata").unlink(), ".metadata"),
        (lambda save: os.truncate(save / "rollout/global_dataset_state_dict_1.pt", 30), "global_dataset_state_dict_1"),
    ],
    ids=["garbage tracker", "missing folder", "torn data", "torn common", "no metadata", "torn cursor"],
)
def test_a_damaged_checkpoint_ends_the_run_with_a_message_that_names_the_file(damage, said, saved):
    base, save = saved
    damage(save)
    assert said in train_here(*base, "--load", save, "--num-rollout", 2, code=1)


@pytest.fixture
def saved(tmp_path, chats):
    save = tmp_path / "save"
    base = [*SFT, "--prompt-data", chats]
    train_here(*base, "--num-rollout", 2, *save_flags(save))
    return base, save


def test_a_schedule_that_differs_from_the_checkpoint_is_refused_unless_overridden(saved):
    base, save = saved
    assert "wd_incr_steps 8 -> 12" in train_here(*base, "--load", save, "--num-rollout", 3, code=2)
    argv = [*base, "--load", save, "--num-rollout", 3, "--lr", "1e-4"]
    assert "max_lr 0.003 -> 0.0001" in train_here(*argv, code=2)
    went_on = train_here(*argv, "--override-opt_param-scheduler")
    (step,) = points(went_on, "step")
    assert step.number == 2
    assert step.values["train/lr-pg_0"] > 1e-4  # the rate itself comes with the optimizer, in Megatron too
    kept = train_here(*argv, "--use-checkpoint-opt_param-scheduler")
    assert points(kept, "step")[0].values["train/lr-pg_0"] == pytest.approx(0.0)  # at the end of the old cosine
    both = ["--override-opt_param-scheduler", "--use-checkpoint-opt_param-scheduler"]
    assert "give one of them" in train_here(*argv, *both, code=2)


def test_a_checkpoint_without_optimizer_state_says_how_to_go_on(tmp_path, chats):
    save = tmp_path / "save"
    base = [*SFT, "--prompt-data", chats]
    train_here(*base, "--num-rollout", 1, "--no-save-optim", *save_flags(save))
    assert "--no-load-optim" in train_here(*base, "--load", save, "--num-rollout", 2, code=2)
    assert "step 1: " in train_here(*base, "--load", save, "--num-rollout", 2, "--no-load-optim")


def test_a_full_disk_ends_the_run_and_leaves_the_tracker_alone(saved):
    base, save = saved
    argv = [*base, "--load", save, "--save", save, "--save-interval", 1, "--num-rollout", 4]
    argv += ["--override-opt_param-scheduler"]

    def small_files():  # what a full disk does to a write: it fails half-way
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [sys.executable, "-m", "plugins.tinyslime.train", *map(str, argv)],
        preexec_fn=small_files, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "cannot write" in done.stderr and "iter_0000002" in done.stderr
    assert "Traceback" not in done.stderr
    assert layout.read_tracker(save) == 1


def test_sigterm_ends_the_run_at_once(tmp_path, chats):
    process = start([*SFT, "--prompt-data", chats, "--num-rollout", 1000], TINYSLIME_STEP_DELAY_S="30")
    try:
        assert any(" step 0: " in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


def test_bad_input_is_one_message_and_exit_code_2(tmp_path, chats):
    def fails(*argv):
        return train_here(*SFT, "--num-rollout", 1, *argv, code=2)

    empty = tmp_path / "empty.jsonl"
    empty.touch()
    bad = tmp_path / "bad.jsonl"
    bad.write_text(chats.read_text() + json.dumps({"messages": [{"role": "user", "content": "hm"}]}) + "\n")
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{}\n{")
    (tmp_path / "file").touch()
    assert "no such file" in fails("--prompt-data", tmp_path / "none.jsonl")
    assert "no rows" in fails("--prompt-data", empty)
    assert "bad.jsonl:31: no trainable token" in fails("--prompt-data", bad)
    assert "broken.jsonl:1" in fails("--prompt-data", broken)
    assert "did you mean --save-interval" in fails("--prompt-data", chats, "--save-intervall", 5)
    assert "no such folder" in fails("--prompt-data", chats, "--hf-checkpoint", tmp_path / "none")
    assert "cannot be made" in fails("--prompt-data", chats, "--save", tmp_path / "file/save", "--save-interval", 1)
    assert "--seq-length" in fails("--prompt-data", chats, "--seq-length", 10)
