"""What a trainer gets to go on from a checkpoint, and what is refused before it starts."""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins.errors import TornCheckpoint, UserError
from plugins.slime import layout
from plugins.slime.cursor import Cursor, NotPlain, put_back, read_cursor, write_moved
from plugins.slime.load_view import load_decision, prepare
from plugins.slime.restart import Restart, restart
from plugins.slime.saved import Saved, read_saved
from plugins.slime.schedule import numbers
from plugins.slime.tracking import tracking_env, tracking_flags

FLAGS: dict[str, Any] = {
    "num-rollout": 10, "rollout-batch-size": 4, "n-samples-per-prompt": 2, "global-batch-size": 8, "lr": 1e-5,
    "lr-decay-style": "cosine", "lr-warmup-fraction": 0.1, "weight-decay": 0.1,
}  # fmt: skip
ARGS = {"rollout_batch_size": 4, "n_samples_per_prompt": 2, "num_rollout": 10, "no_save_optim": False}
STATE = {
    "sample_offset": 9,
    "epoch_id": 1,
    "sample_group_index": 20,
    "sample_index": 40,
}  # 11 rows, batch 5 drawn ahead
DRAWN = "rollout/global_dataset_state_dict_3.pt"


class Save:
    """A save dir with iteration 3, written by a run that had been told `args`."""

    def __init__(self, root: Path) -> None:
        self.dir, self.view = root / "save", root / "load"
        self.folder = layout.iteration_dir(self.dir, 3)
        self.folder.mkdir(parents=True)
        (self.dir / "rollout").mkdir()
        (self.folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
        layout.write_tracker(self.dir, 3)
        self.write()

    def write(self, *, state: dict[str, Any] | None = None, common: dict[str, Any] | None = None, **args: Any) -> None:
        said = {
            "args": argparse.Namespace(**{**ARGS, **args}),
            "opt_param_scheduler": numbers(FLAGS) | {"num_steps": 32},
            "content_metadata": {"distrib_optim_sharding_type": "dp_reshardable"},
        }
        torch.save(said if common is None else common, self.folder / "common.pt")
        torch.save(STATE | {"metadata": {"seen": [1, "a"]}} | (state or {}), self.dir / DRAWN)

    def restart(self, script: str = "train_async.py", rows: int | None = 11, **flags: Any) -> Restart:
        changed = {name.replace("_", "-"): value for name, value in flags.items()}
        return restart(self.dir, self.view, {**FLAGS, **changed}, script=script, rows=rows)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    return Save(tmp_path)


def test_a_resume_loads_a_view_with_the_batch_put_back_and_saves_where_it_did(save: Save) -> None:
    before = (save.dir / DRAWN).read_bytes()
    found = save.restart()
    assert found == Restart(
        save.view,
        {"load": str(save.view), "start-rollout-id": 4},
        ("the data goes on at prompt 16, sample 32 (epoch 1): 4 prompts had been drawn ahead and are drawn again",),
    )
    assert load_decision(save.view).iteration == 3
    assert layout.iteration_dir(save.view, 3).readlink() == Path("../save/iter_0000003")
    assert torch.load(save.view / DRAWN, weights_only=True) == {
        "sample_offset": 5, "epoch_id": 1, "sample_group_index": 16, "sample_index": 32, "metadata": {"seen": [1, "a"]}
    }  # fmt: skip
    assert (save.dir / DRAWN).read_bytes() == before


def test_a_view_of_an_earlier_attempt_goes_and_what_it_links_to_stays(save: Save) -> None:
    save.restart()
    found = save.restart("train.py")
    assert found.load_dir == save.dir and not save.view.exists()
    assert (save.folder / "common.pt").exists()


@pytest.mark.parametrize(
    ("args", "state"),
    [
        ({}, {"sample_group_index": 16}),  # exactly what was trained
        ({"num_rollout": 4}, {}),  # the last rollout of its command line draws nothing ahead
        ({"colocate": True}, {}),  # cannot have been train_async
    ],
)
def test_a_cursor_that_counts_nothing_ahead_is_taken_as_it_stands(save: Save, args: Any, state: Any) -> None:
    save.write(state=state, **args)
    assert save.restart().load_dir == save.dir and not save.view.exists()


@pytest.mark.parametrize(
    ("args", "state", "reason"),
    [
        ({"over_sampling_batch_size": 8}, {}, "over-sampling draws more"),
        ({"dynamic_sampling_filter_path": "a.b"}, {}, "--dynamic-sampling-filter-path changes what is drawn"),
        ({"partial_rollout": True}, {}, "--partial-rollout"),
        ({"rollout_function_path": "mine.generate"}, {}, "a rollout function of your own"),
        ({"data_source_path": "mine.Source"}, {}, "a data source of your own"),
        ({}, {"sample_offset": 2, "epoch_id": 0}, "no number of whole epochs"),
        (
            {},
            {"sample_offset": 2, "sample_group_index": 22},
            "the data has 11 rows, but the cursor counts epochs of 20",
        ),
        ({}, {"sample_index": 7}, "less than one batch"),
        ({}, {"metadata": {"t": torch.ones(1)}}, "which is not a plain value"),
    ],
)
def test_where_the_cursor_cannot_be_put_back_the_loss_is_said(save: Save, args: Any, state: Any, reason: str) -> None:
    save.write(state=state, **args)
    found = save.restart()
    assert found.load_dir == save.dir and not save.view.exists()
    (note,) = found.notes
    lost = 6 if state.get("sample_group_index") == 22 else 4
    assert note.startswith(f"WARNING {lost} prompts were drawn and never trained before iteration 3") and reason in note


def test_batches_lost_by_earlier_resumes_are_still_counted(save: Save) -> None:
    save.write(state={"sample_offset": 2, "epoch_id": 2, "sample_group_index": 24, "sample_index": 48})
    notes = save.restart().notes
    assert "data goes on at prompt 20, sample 40 (epoch 1)" in notes[0]
    assert notes[1] == "WARNING 4 prompts were drawn and never trained before iteration 3"


def test_rows_that_slime_leaves_out_are_counted_by_the_cursor_alone(save: Save) -> None:
    save.write(state={"sample_offset": 2, "epoch_id": 2})  # 9 of the 11 rows are short enough
    assert save.restart().load_dir == save.dir
    assert save.restart(rollout_max_prompt_len=512).load_dir == save.view
    assert read_cursor(save.view / DRAWN) == Cursor(7, 1, 16, 32)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"num_rollout": 20}, "lr_warmup_steps 8.0 -> 16.0, lr_decay_steps 80 -> 160, wd_incr_steps 80 -> 160"),
        ({"lr_decay_iters": 5}, "lr_decay_steps 80 -> 40"),
        ({"lr": "2e-5"}, "max_lr 1e-05 -> 2e-05"),
    ],
)
def test_another_schedule_is_taken_up_and_told(save: Save, flags: dict[str, Any], words: str) -> None:
    found = save.restart(**flags)
    assert found.flags["override-opt_param-scheduler"] is True
    assert words in " ".join(found.notes)
    assert ("WARNING Megatron keeps the checkpoint's --lr 1e-05" in " ".join(found.notes)) == ("lr" in flags)


def test_the_same_schedule_needs_no_flag_and_the_users_choice_stays(save: Save) -> None:
    assert set(save.restart().flags) == {"load", "start-rollout-id"}
    for chosen in ("override-opt_param-scheduler", "use-checkpoint-opt_param-scheduler"):
        found = save.restart(num_rollout=20, **{chosen: True})
        assert set(found.flags) == {"load", "start-rollout-id"}
        assert any("learning-rate schedule" in note for note in found.notes)
    assert "override-opt_param-scheduler" in save.restart(custom_config_path="/x.yaml").flags


def test_a_checkpoint_that_says_nothing_gets_the_command_lines_schedule(save: Save) -> None:
    (save.folder / "common.pt").write_bytes(b"no torch file")
    assert read_saved(save.folder) == Saved()
    found = save.restart()
    assert found.flags["override-opt_param-scheduler"] is True
    assert any("cannot be compared" in note for note in found.notes)
    assert found.load_dir == save.view  # the batch sizes are the command line's


def test_a_checkpoint_without_its_optimizer_goes_on_without_and_says_so(save: Save) -> None:
    save.write(no_save_optim=True)
    found = save.restart(num_rollout=20, tensor_model_parallel_size=2)
    assert found.flags == {"load": str(save.view), "start-rollout-id": 4, "no-load-optim": True}
    assert "WARNING the checkpoint was saved without its optimizer" in found.notes[0]
    assert "no-load-optim" not in save.restart(no_load_optim=True).flags


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"tensor_model_parallel_size": 2}, r"parallelism\.tensor 1 -> 2"),
        ({"pipeline_model_parallel_size": 2}, r"parallelism\.pipeline 1 -> 2"),
        ({"expert_model_parallel_size": 4}, r"parallelism\.expert 1 -> 4"),
    ],
)
def test_another_shape_is_refused_before_the_trainer_starts(save: Save, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words + r".*checkpoint\.reshardable: true"):
        save.restart(**flags)
    assert save.restart(**flags, no_load_optim=True).load_dir == save.view
    for reshardable in ({"content_metadata": {"distrib_optim_sharding_type": "fully_reshardable"}}, {}):
        args = argparse.Namespace(**ARGS, dist_ckpt_optim_fully_reshardable=True)
        save.write(common={"args": args, "opt_param_scheduler": numbers(FLAGS)} | reshardable)
        assert save.restart(**flags).load_dir == save.view


def test_the_same_shape_is_no_other_one(save: Save) -> None:
    save.write(tensor_model_parallel_size=2, expert_tensor_parallel_size=2)
    assert save.restart(tensor_model_parallel_size=2).load_dir == save.view
    with pytest.raises(UserError, match="2 -> 1"):
        save.restart()


@pytest.mark.parametrize(
    ("tracker", "words"),
    [(None, "no tracker file"), ("", "exit code 0"), ("release", "is missing"), ("7", "iter_0000007: is missing")],
)
def test_a_folder_that_slime_would_not_go_on_from_is_refused(save: Save, tracker: str | None, words: str) -> None:
    (save.dir / layout.TRACKER).unlink()
    if tracker is not None:
        (save.dir / layout.TRACKER).write_text(tracker)
    with pytest.raises(TornCheckpoint, match=words):
        save.restart()


ROWS = 11


def drawn(batches: list[int], samples: int = 1) -> list[Cursor]:
    """slime's own arithmetic (data_source.py:88-107), written down once more: the cursor after each draw."""
    found, offset, epoch, groups = [Cursor()], 0, 0, 0
    for count in batches:
        if offset + count <= ROWS:
            offset += count
        else:
            epoch, offset = epoch + 1, count - (ROWS - offset)
        groups += count
        found.append(Cursor(offset, epoch, groups, groups * samples))
    return found


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 10, 11])
def test_putting_back_a_draw_gives_the_place_before_it(batch: int) -> None:
    stands = drawn([batch] * 40, samples=3)
    for before, after in itertools.pairwise(stands):
        for rows in (ROWS, None):
            back = put_back(after, batch, 3, rows)
            same = (
                back.sample_offset == 0 and before.sample_offset == ROWS
            )  # the end of an epoch is the start of the next
            assert back == (
                Cursor(0, before.epoch_id + 1, before.sample_group_index, before.sample_index) if same else before
            )


def test_a_batch_longer_than_an_epoch_cannot_be_put_back() -> None:
    with pytest.raises(NotPlain, match="shorter than a batch"):
        put_back(Cursor(3, 1, 14, 14), 12, 1)


def test_a_moved_cursor_is_a_file_that_torch_loads(tmp_path: Path) -> None:
    torch.save(STATE | {"metadata": {"a": None, "b": [1.5, True]}, "more": "kept"}, tmp_path / "a.pt")
    write_moved(tmp_path / "a.pt", tmp_path / "b.pt", Cursor(1, 2, 3, 4))
    assert torch.load(tmp_path / "b.pt", weights_only=True) == {
        "sample_offset": 1, "epoch_id": 2, "sample_group_index": 3, "sample_index": 4,
        "metadata": {"a": None, "b": [1.5, True]}, "more": "kept",
    }  # fmt: skip
    with pytest.raises(TornCheckpoint):
        prepare(tmp_path, tmp_path / "v", 9, rows=None, prompts_per_rollout=1, samples_per_prompt=1)


def test_trackers_go_on_with_the_same_curves_and_hold_no_key(tmp_path: Path) -> None:
    assert tracking_env("run", "sft", tmp_path) == tracking_env("run", "sft", tmp_path)
    env = tracking_env("run", "rl", tmp_path)
    assert env == {"WANDB_RUN_ID": "run-rl", "WANDB_RESUME": "allow", "TENSORBOARD_DIR": str(tmp_path / "tensorboard")}
    assert tracking_flags("run", "rl") == {}
    assert tracking_flags("run", "rl", wandb_project="p", tensorboard=True) == {
        "use-wandb": True, "wandb-project": "p", "wandb-group": "run-rl", "disable-wandb-random-suffix": True,
        "use-tensorboard": True,
    }  # fmt: skip
