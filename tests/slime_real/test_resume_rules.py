"""What a resume expects of slime and Megatron, against their own code: where `--load` leads, and the schedule."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins.slime import layout, schedule
from plugins.slime.cursor import read_cursor
from plugins.slime.flags import parse_argv
from plugins.slime.load_view import load_decision, prepare
from plugins.slime.restart import restart
from tests.slime_real import needs_slime, run, validate
from tests.slime_real.test_dry_parse_of_slime import RL, SFT, command_line

pytestmark = needs_slime

ASK = Path(__file__).with_name("resume.py")
Make = Callable[[Path], Any]


def tracker(text: str) -> Make:
    return lambda folder: (folder / layout.TRACKER).write_text(text)


def without(name: str) -> Make:
    return lambda folder: (folder / name).unlink()


def remove(name: str) -> Make:
    return lambda folder: shutil.rmtree(folder / name)


def released(folder: Path) -> None:
    (folder / "iter_0000008").rename(folder / "release")
    tracker("release")(folder)


def hugging_face(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3"}')


STATES: dict[str, tuple[Make, int | None]] = {
    "no folder": (shutil.rmtree, None),
    "an empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), None),
    "iterations without a tracker": (without(layout.TRACKER), None),
    "weights of Hugging Face": (hugging_face, None),
    "a whole checkpoint": (lambda _: None, None),
    "spaces around the number": (tracker("  8\n"), None),
    "an empty tracker": (tracker(""), None),
    "a tracker of garbage": (tracker("x8"), None),
    "a negative number": (tracker("-8"), None),
    "a tracker without its iteration": (tracker("9"), None),
    "no metadata.json": (without("iter_0000008/metadata.json"), None),
    "neither metadata.json nor .metadata": (
        lambda folder: [without(f"iter_0000008/{name}")(folder) for name in ("metadata.json", ".metadata")],
        None,
    ),
    "a converted model": (released, None),
    "a converted model that is gone": (tracker("release"), None),
    "another iteration by --ckpt-step": (tracker("9"), 8),
    "a missing iteration by --ckpt-step": (lambda _: None, 7),
    "--ckpt-step 0, which counts as none": (lambda _: None, 0),
    "--ckpt-step without a tracker": (without(layout.TRACKER), 8),
    "--ckpt-step of a converted model": (released, 8),
    "--ckpt-step beside garbage": (tracker("x8"), 8),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint by Megatron's own writer."""
    save_dir = tmp_path_factory.mktemp("written") / "save"
    run(ASK, ["writes", str(save_dir), "8"])
    return save_dir


@pytest.fixture(scope="module")
def asked(written: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Each state's folder, and what slime and Megatron do with it."""
    root = tmp_path_factory.mktemp("states")
    folders = {}
    for number, (name, (make, _)) in enumerate(STATES.items()):
        folders[name] = root / f"{number}" / "save"
        make(Path(shutil.copytree(written, folders[name])))
    viewed = root / "viewed" / "save"
    shutil.copytree(written, viewed)
    folders["a view"] = prepare(
        viewed, viewed.parent / "load", 8, rows=None, prompts_per_rollout=4, samples_per_prompt=1
    )
    steps = {name: step for name, (_, step) in STATES.items()} | {"a view": None}
    questions = [{"load": str(folder), "ckpt_step": steps[name]} for name, folder in folders.items()]
    (root / "questions.json").write_text(json.dumps(questions))
    said = run(ASK, ["loads", str(root / "questions.json"), *command_line(root, SFT)])["said"]
    return {name: (folder, answer) for (name, folder), answer in zip(folders.items(), said, strict=True)}


@pytest.mark.parametrize("name", [*STATES, "a view"])
def test_what_a_folder_leads_to_is_what_slime_does_with_it(
    name: str, asked: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    folder, did = asked[name]
    decision = load_decision(folder, STATES[name][1] if name in STATES else None)
    if "error" in did:
        assert decision.outcome == "error", (decision, did)
        assert ("exit code 0" in decision.reason) == (did["exit_code"] == 0), did
    elif did["fresh"]:
        assert decision.outcome == ("weights" if did["from"] == "given" else "cold"), (decision, did)
        assert did["start"] == 0
    elif did["release"]:
        assert (decision.outcome, decision.iteration, did["start"]) == ("release", None, 1)
    else:
        assert (decision.outcome, decision.iteration) == ("resume", did["start"] - 1), (decision, did)


def test_the_states_lead_to_every_outcome(asked: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    assert {load_decision(folder).outcome for folder, _ in asked.values()} == {
        "cold", "weights", "resume", "release", "error"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "more", "script", "ahead"),
    [
        (SFT, "", "train_async.py", True),
        (RL.replace("--colocate", ""), "--rollout-num-gpus 8", "train_async.py", True),
        (RL, "", "train.py", False),
    ],
    ids=["sft", "async rl", "rl"],
)
def test_what_slime_saves_of_its_arguments_says_whether_a_batch_was_drawn_ahead(
    flags: str, more: str, script: Any, ahead: bool, tmp_path: Path
) -> None:
    argv = command_line(tmp_path, f"{flags} {more}")
    attributes = validate(argv, script)
    save_dir, told = tmp_path / "save", parse_argv(argv)
    folder = layout.iteration_dir(save_dir, 3)
    folder.mkdir(parents=True)
    (save_dir / "rollout").mkdir()
    torch.save({"args": argparse.Namespace(**attributes), "iteration": 3}, folder / "common.pt")
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    layout.write_tracker(save_dir, 3)
    batch, samples = attributes["rollout_batch_size"], attributes["n_samples_per_prompt"]
    groups = batch * (5 if ahead else 4)
    state = {"sample_offset": groups, "epoch_id": 0, "sample_group_index": groups, "sample_index": groups * samples}
    torch.save(state | {"metadata": {}}, layout.dataset_state_file(save_dir, 3))
    found = restart(save_dir, tmp_path / "load", told, script=script, rows=10_000)
    assert found.load_dir == (tmp_path / "load" if ahead else save_dir)
    assert read_cursor(layout.dataset_state_file(found.load_dir, 3)).sample_group_index == 4 * batch
    assert not any("WARNING" in note for note in found.notes), found.notes


CHANGES: dict[str, tuple[str, bool]] = {
    "nothing": ("", True),
    "more rollouts": ("--num-rollout 20", False),
    "more rollouts, fixed decay": (
        "--num-rollout 20 --lr-decay-iters 10",
        False,
    ),  # the weight decay's steps follow too
    "larger batches": ("--rollout-batch-size 256 --global-batch-size 256", False),
    "more steps of the same size": ("--rollout-batch-size 256", False),
    "another rate": ("--lr 2e-5", False),
    "another end of the decay": ("--min-lr 1e-7", False),
    "another style": ("--lr-decay-style linear", False),
    "another warm-up": ("--lr-warmup-fraction 0.2", False),
    "another weight decay": ("--weight-decay 0.2", False),
    "the same decay by hand": ("--lr-decay-iters 10", True),
    "another start of the warm-up, which is not compared": ("--lr-warmup-init 1e-7", True),
    "more rollouts, overridden": ("--num-rollout 20 --override-opt_param-scheduler", True),
    "another rate, overridden": ("--lr 2e-5 --override-opt_param-scheduler", True),
    "more rollouts, the checkpoint's schedule": ("--num-rollout 20 --use-checkpoint-opt_param-scheduler", True),
}


@pytest.fixture(scope="module")
def schedules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Flags of each new command line, and what Megatron's scheduler says to it after a checkpoint of SFT's."""
    root = tmp_path_factory.mktemp("schedules")
    argv = command_line(root, SFT)
    attributes = validate(argv, "train_async.py")
    lines = {name: argv + more.split() for name, (more, _) in CHANGES.items()}
    questions = [{"saved": attributes, "now": attributes | changed(more), "steps": 512} for more, _ in CHANGES.values()]
    (root / "questions.json").write_text(json.dumps(questions))
    said = run(ASK, ["schedules", str(root / "questions.json")])["said"]
    return {name: (parse_argv(line), answer) for (name, line), answer in zip(lines.items(), said, strict=True)}


def changed(flags: str) -> dict[str, Any]:
    """Attributes that a few flags set; that slime parses and validates them so is shown for the whole lines."""
    found = {name.replace("-", "_"): value for name, value in parse_argv(flags.split()).items()}
    if "weight_decay" in found:
        found |= {"start_weight_decay": found["weight_decay"], "end_weight_decay": found["weight_decay"]}
    return found


@pytest.mark.parametrize("name", CHANGES)
def test_megatron_goes_on_or_refuses_as_predicted(
    name: str, schedules: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    flags, answer = schedules[name]
    assert ("refused" not in answer) == CHANGES[name][1], answer
    more, notes = schedule.choose(answer["saved"], flags)
    assert bool(more) == ("refused" in answer), (more, notes)
    asked_for = "overridden" in name or "the checkpoint's" in name
    assert bool(schedule.changes(answer["saved"], flags)) == ("refused" in answer or asked_for)


def test_an_overridden_rate_stays_that_of_the_checkpoint_and_the_user_is_told(
    schedules: dict[str, tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    same, other = schedules["nothing"][1]["lr"], schedules["another rate, overridden"][1]["lr"]
    assert same == other > 0
    flags, answer = schedules["another rate, overridden"]
    assert any("keeps the checkpoint's --lr" in note for note in schedule.choose(answer["saved"], flags)[1])


@pytest.mark.parametrize(("flags", "script"), [(SFT, "train_async.py"), (RL, "train.py")], ids=["sft", "rl"])
def test_the_numbers_are_megatrons_for_a_command_line_that_slime_validated(
    flags: str, script: Any, tmp_path: Path
) -> None:
    argv = command_line(tmp_path, flags)
    attributes = validate(argv, script)
    (tmp_path / "questions.json").write_text(json.dumps([{"saved": attributes, "now": attributes, "steps": 0}]))
    (answer,) = run(ASK, ["schedules", str(tmp_path / "questions.json")])["said"]
    assert schedule.numbers(parse_argv(argv)) | {"num_steps": 0} == answer["saved"]
