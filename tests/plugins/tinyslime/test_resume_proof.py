"""The stand-in speaks as slime does: a right resume is proved by it, and each of its faults makes the proof fail."""

import json
import os
from datetime import datetime

import pytest
from tinyslime_runs import RL, SFT, start, train, train_here

from plugins.slime import hooks, layout
from plugins.slime.cursor import START, Cursor, read_cursor
from plugins.slime.failure import signature
from plugins.slime.progress import parse_line
from plugins.slime.resume import ResumeProof

HOOK = ["--custom-rollout-log-function-path", "plugins.slime.hooks.custom_rollout_log"]


@pytest.fixture
def attempt(tmp_path, chats, prompts, monkeypatch):
    """Run to `last` in this process; gives the verdict on the start, judged when the run is over."""
    save = tmp_path / "save"

    def run(last, *more, stage="sft", resume=False, code=0, judge=True):
        hook = tmp_path / f"hook-{last}-{len(more)}-{resume}.jsonl"
        hook.unlink(missing_ok=True)
        monkeypatch.setenv(hooks.PROGRESS_FILE, str(hook))
        base = [*SFT, "--prompt-data", chats] if stage == "sft" else [*RL, "--prompt-data", prompts]
        argv = [*base, *HOOK, "--num-rollout", last + 1, "--save", save, "--save-interval", 2]
        restored = layout.read_tracker(save) if resume else None
        cursor = read_cursor(layout.dataset_state_file(save, restored)) if resume and judge else None
        if resume:
            argv += ["--load", save, "--start-rollout-id", restored + 1, "--override-opt_param-scheduler"]
        proof = ResumeProof(restored, cursor, kind="tinyslime", load_dir=save, steps_per_rollout=1)
        for line in train_here(*argv, *more, code=code).splitlines():
            proof.hear_line(line)
        for line in hook.read_text().splitlines() if hook.exists() else ():
            proof.hear_hook_line(line)
        return proof.verdict(final=True)

    run.save = save
    return run


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_resume_is_proved_to_the_row(attempt, stage):
    cold = attempt(3, stage=stage)
    assert cold.proved and f"data at {START}" in cold.reason
    verdict = attempt(5, stage=stage, resume=True)
    assert verdict.proved, verdict
    size = 1 if stage == "sft" else 4
    assert f"data at {Cursor(16, 1, 16, 16 * size)}".partition(" (")[0] in verdict.reason
    assert all(row.ok for row in verdict.rows), verdict.rows
    assert {row.what for row in verdict.rows} >= {"next prompt", "next sample", "data cursor's file"}


@pytest.mark.parametrize(
    ("fault", "value", "words"),
    [
        ("TINYSLIME_LOSE_DATASET_STATE", "1", "from 0, but 16 was saved as the next prompt"),
        ("TINYSLIME_IGNORE_LOAD", "1", "slime started from --ref-load"),
        ("TINYSLIME_SKIP_TENSOR", "model.norm.weight", "model.norm.weight is not in the checkpoint"),
    ],
)
def test_each_silent_fault_fails_the_proof(attempt, monkeypatch, fault, value, words):
    attempt(3)
    monkeypatch.setenv(fault, value)
    verdict = attempt(5, resume=True)
    assert verdict.failed and words in verdict.reason, verdict


def test_a_cursor_file_that_is_missing_fails_the_proof(attempt):
    attempt(3)
    layout.dataset_state_file(attempt.save, 3).unlink()
    verdict = attempt(5, resume=True, judge=False)
    assert verdict.failed and "would start again from row 0" in verdict.reason


def test_a_cold_start_from_a_megatron_folder_is_proved_although_a_checkpoint_was_loaded(attempt, tmp_path, chats):
    first = tmp_path / "first"
    train_here(*SFT, "--prompt-data", chats, "--num-rollout", 1, "--save", first, "--save-interval", 1)
    verdict = attempt(1, "--ref-load", first)
    assert verdict.proved, verdict


def test_lines_about_the_data_cursor_are_slimes(attempt, tmp_path, chats):
    argv = [*SFT, "--prompt-data", chats, "--num-rollout", 2, "--save", tmp_path / "s", "--save-interval", 1]
    cold = train_here(*argv)
    assert "global_dataset_state_dict" not in cold
    export = tmp_path / "export"
    train_here(
        *argv[:-4],
        "--num-rollout",
        1,
        "--save",
        tmp_path / "x",
        "--save-interval",
        1,
        "--save-hf",
        f"{export}/{{rollout_id}}",
    )
    kinds = [
        point.kind for line in train_here(*argv, "--ref-load", export / "0").splitlines() if (point := parse_line(line))
    ]
    assert kinds[0] == "no_dataset_state"  # slime looks for number -1 beside the start weights
    resumed = train_here(*argv, "--num-rollout", 3, "--override-opt_param-scheduler", "--load", tmp_path / "s")
    points = [point for line in resumed.splitlines() if (point := parse_line(line))]
    assert [(point.kind, point.number) for point in points[:2]] == [("loaded", 1), ("dataset_state", 1)]


def test_an_asynchronous_save_is_finished_one_interval_late_and_its_cursor_is_not(tmp_path, chats):
    save = tmp_path / "save"
    argv = [*SFT, "--prompt-data", chats, "--num-rollout", 6, "--save", save, "--save-interval", 2, "--async-save"]
    argv += ["--save-hf", f"{save}/hf/{{rollout_id}}"]
    process = start(argv, TINYSLIME_CRASH_AT="5")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1 and "TINYSLIME_CRASH_AT" in err
    assert layout.read_tracker(save) == 1
    assert layout.list_iterations(save) == [1, 3]
    assert {path.name for path in layout.iteration_dir(save, 3).iterdir()} == {"common.pt", "__0_0.distcp"}
    assert read_cursor(layout.dataset_state_file(save, 3)).sample_group_index == 16
    assert (layout.export_dir(save, 3) / "model.safetensors").is_file()
    assert layout.complete_iterations(save, "slime", export=True) == [1]
    assert "scheduled an async checkpoint save at iteration       3" in out
    saved = [point.number for line in out.splitlines() if (point := parse_line(line)) and point.kind == "saved"]
    assert saved == [1]

    again = train(*argv, "--load", save)  # it goes on from 1 and comes to 3 again; the last save is finished at the end
    saved = [point.number for line in again.splitlines() if (point := parse_line(line)) and point.kind == "saved"]
    assert saved == [3, 5]
    assert layout.read_tracker(save) == 5
    assert layout.complete_iterations(save, "slime", export=True) == [5, 3, 1]


def test_an_asynchronous_run_ends_with_the_same_checkpoint(tmp_path, chats):
    import torch

    states = []
    for name, more in (("sync", []), ("async", ["--async-save"])):
        save = tmp_path / name
        argv = [*SFT, "--prompt-data", chats, "--num-rollout", 3, "--save", save, "--save-interval", 1]
        train_here(*argv, *more, "--save-hf", f"{save}/hf/{{rollout_id}}")
        assert layout.complete_iterations(save, "slime", export=True) == [2, 1, 0]
        from safetensors.torch import load_file

        states.append(load_file(layout.export_dir(save, 2) / "model.safetensors"))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_every_trained_batch_is_written_down_and_a_resume_skips_and_repeats_none(attempt, tmp_path, monkeypatch, stage):
    witness = tmp_path / "witness.jsonl"

    def batches():
        records = [json.loads(line) for line in witness.read_text().splitlines()]
        witness.unlink()
        return records

    monkeypatch.setenv("TINYSLIME_BATCH_LOG", str(witness))
    monkeypatch.setenv("TRAINSTACK_ATTEMPT", "1")
    attempt(5, stage=stage)
    whole = batches()
    assert [record["rollout"] for record in whole] == [0, 1, 2, 3, 4, 5]
    assert len({row for record in whole[:2] for row in record["rows"]}) == 8  # no row twice in an epoch
    assert [group for record in whole for group in record["groups"]] == list(range(24))

    for path in attempt.save.iterdir():
        path.rename(tmp_path / f"old-{path.name}")
    monkeypatch.setenv("TINYSLIME_CRASH_AT", "3")
    with pytest.raises(RuntimeError, match="TINYSLIME_CRASH_AT"):
        attempt(5, stage=stage)
    monkeypatch.delenv("TINYSLIME_CRASH_AT")
    monkeypatch.setenv("TRAINSTACK_ATTEMPT", "2")
    assert attempt(5, stage=stage, resume=True).proved
    parts = batches()
    assert [(record["attempt"], record["rollout"]) for record in parts] == [
        ("1", 0), ("1", 1), ("1", 2), ("2", 2), ("2", 3), ("2", 4), ("2", 5)
    ]  # fmt: skip
    last = {record["rollout"]: record["rows"] for record in parts}
    assert last == {record["rollout"]: record["rows"] for record in whole}


def test_a_crash_at_the_same_rollout_has_the_same_signature_in_another_process(chats):
    argv = [*SFT, "--prompt-data", chats, "--num-rollout", 3]
    errors = [train(*argv, code=1, TINYSLIME_CRASH_AT=str(at)) for at in (1, 1, 2)]
    assert len({signature(error.splitlines(), "exit code 1") for error in errors}) == 1
    assert errors[0] != errors[1]  # the process id is in it
    assert signature(errors[0].splitlines()).startswith("RuntimeError: TINYSLIME_CRASH_AT: rollout # fails as asked")


@pytest.mark.parametrize("name", ["TINYSLIME_STEP_DELAY_S", "TINYSLIME_CRASH_AT"])
def test_a_setting_that_is_no_number_is_named(chats, monkeypatch, name):
    monkeypatch.setenv(name, "soon")
    assert f"{name} must be a number, not 'soon'" in train_here(
        *SFT, "--prompt-data", chats, "--num-rollout", 1, code=2
    )


def test_a_batch_log_that_cannot_be_written_ends_the_run(chats, monkeypatch, tmp_path):
    monkeypatch.setenv("TINYSLIME_BATCH_LOG", str(tmp_path))
    assert "cannot be written" in train_here(*SFT, "--prompt-data", chats, "--num-rollout", 1, code=2)


def test_the_hook_file_is_stamped_with_this_time(attempt, tmp_path):
    attempt(1)
    path = next(tmp_path.glob("hook-*.jsonl"))
    record = json.loads(path.read_text().splitlines()[0])
    assert abs(record["time"] - datetime.now().timestamp()) < 600
    assert record["values"]["data/exact"] == 1.0
    assert os.environ[hooks.PROGRESS_FILE] == str(path)
