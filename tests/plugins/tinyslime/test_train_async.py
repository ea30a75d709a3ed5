"""The order of slime's train_async.py: its data cursor counts a batch too many, and a restart makes that good."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tinyslime_runs import RL, SFT, chat, start, train_here, write_jsonl

from plugins.errors import UserError
from plugins.slime import layout
from plugins.slime.cursor import Cursor, read_cursor
from plugins.slime.flags import parse_argv, render
from plugins.slime.restart import ASYNC, restart

ROWS, BATCH = 11, 4  # batches run over the ends of epochs: 0-4-8 | 1-5-9 | 2-...
HOOK = ["--custom-rollout-log-function-path", "plugins.slime.hooks.custom_rollout_log"]


@pytest.fixture
def rows(tmp_path):
    return write_jsonl(tmp_path / "rows.jsonl", [chat(f"{number}+1=", str(number + 1)) for number in range(ROWS)])


@pytest.fixture
def run(tmp_path, rows, monkeypatch):
    """Train in this process as train_async does; gives what each rollout was trained on, by its number."""
    witness = tmp_path / "witness.jsonl"
    monkeypatch.setenv("TINYSLIME_BATCH_LOG", str(witness))

    def go(save, *more, rollouts=8, crash_at=None, script=ASYNC, correct=True):
        argv = [*SFT, *HOOK, "--prompt-data", rows, "--num-rollout", rollouts]
        argv += ["--save", save, "--save-interval", 1, "--save-hf", f"{save}/hf/{{rollout_id}}", *more]
        if layout.list_iterations(save):
            asked = script if correct else "train.py"
            argv += render(restart(save, save.parent / "load", parse_argv([*map(str, argv)]), script=asked).flags)
        witness.unlink(missing_ok=True)
        monkeypatch.setenv("TINYSLIME_CRASH_AT", "" if crash_at is None else str(crash_at))
        if crash_at is None:
            train_here(*argv, ahead=script == ASYNC)
        else:
            with pytest.raises(RuntimeError, match="TINYSLIME_CRASH_AT"):
                train_here(*argv, ahead=script == ASYNC)
        records = [json.loads(line) for line in witness.read_text().splitlines()] if witness.exists() else []
        return {record["rollout"]: record["rows"] for record in records}

    return go


def weights(save, iteration):
    return load_file(layout.export_dir(save, iteration) / "model.safetensors")


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def test_the_cursor_counts_the_batch_drawn_ahead_except_after_the_last_rollout(tmp_path, run):
    run(tmp_path / "a" / "save", rollouts=3)
    counted = [read_cursor(layout.dataset_state_file(tmp_path / "a/save", number)) for number in range(3)]
    assert counted == [Cursor(8, 0, 8, 8), Cursor(1, 1, 12, 12), Cursor(1, 1, 12, 12)]


@pytest.mark.parametrize("cuts", [[1], [2], [3], [4], [5], [6], [7], [1, 2, 3, 4, 5, 6, 7], [3, 6]], ids=str)
def test_a_run_cut_anywhere_ends_with_the_bits_and_the_batches_of_the_uncut_one(tmp_path, run, cuts):
    whole, cut = tmp_path / "whole/save", tmp_path / "cut/save"
    expected = run(whole)
    trained = {}
    for crash_at in [*cuts, None]:
        trained |= run(cut, crash_at=crash_at)
    assert trained == expected
    assert same(weights(whole, 7), weights(cut, 7))
    last = layout.dataset_state_file(cut, 7)
    assert read_cursor(last) == read_cursor(layout.dataset_state_file(whole, 7))


def test_without_the_correction_each_resume_skips_a_batch(tmp_path, run):
    expected = run(tmp_path / "whole/save")
    trained = run(tmp_path / "cut/save", crash_at=3) | run(tmp_path / "cut/save", correct=False)
    assert trained[2] == expected[2] and trained[3] == expected[4]
    assert not same(weights(tmp_path / "whole/save", 7), weights(tmp_path / "cut/save", 7))


def test_a_finished_run_goes_on_with_more_rollouts_and_draws_what_a_longer_run_draws(tmp_path, run):
    expected = run(tmp_path / "whole/save", rollouts=7)
    trained = run(tmp_path / "more/save", rollouts=4)
    trained |= run(tmp_path / "more/save", rollouts=7)
    assert trained == expected


def test_a_run_resumed_in_the_order_of_train_py_is_taken_as_it_stands(tmp_path, run):
    expected = run(tmp_path / "whole/save", script="train.py")
    trained = run(tmp_path / "cut/save", script="train.py", crash_at=5) | run(tmp_path / "cut/save", script="train.py")
    assert trained == expected
    assert not (tmp_path / "cut/load").exists()


def test_rl_generates_ahead_with_the_weights_before_the_step(tmp_path, prompts, monkeypatch):
    """One rollout in both orders is the same; from the second on the weights that generate are one step older."""
    witness = tmp_path / "witness.jsonl"
    monkeypatch.setenv("TINYSLIME_BATCH_LOG", str(witness))
    argv = [*RL, "--prompt-data", prompts, "--num-rollout", 3, "--save-interval", 1]
    for name, ahead in (("sync", False), ("async", True)):
        save = tmp_path / name
        train_here(*argv, "--save", save, "--save-hf", f"{save}/{{rollout_id}}", ahead=ahead)
    records = [json.loads(line) for line in witness.read_text().splitlines()]
    assert records[:3] == records[3:]  # the same prompts in the same order
    read = [
        load_file(tmp_path / name / str(number) / "model.safetensors")
        for number in (0, 2)
        for name in ("sync", "async")
    ]
    assert same(read[0], read[1]) and not same(read[2], read[3])


def test_colocation_is_refused_as_slimes_script_refuses_it(prompts):
    with pytest.raises(UserError, match="--colocate"):
        from plugins.tinyslime import flags, train

        train.train(
            flags.parse([*map(str, [*RL, "--prompt-data", prompts, "--num-rollout", 1, "--colocate"])]), ahead=True
        )


def test_the_module_of_that_name_runs_in_that_order(tmp_path, chats):
    save = tmp_path / "save"
    argv = [*SFT, "--prompt-data", chats, "--num-rollout", 2, "--save", save, "--save-interval", 1]
    out, err = start(argv, module="plugins.tinyslime.train_async").communicate(timeout=240)
    assert " step 1: " in out, err
    assert read_cursor(layout.dataset_state_file(save, 0)).sample_group_index == 8
