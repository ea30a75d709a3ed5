"""The folder that slime's `--load` names: what slime would do with one, and one in which the data cursor is put right.

slime never fails for want of a checkpoint, it starts from `--ref-load` and says nothing (slime.md 2.4), so a folder is
judged by slime's own rules before a trainer is started (`load_decision`). And slime's train_async.py draws batch N+1
before it saves N, so that its cursor counts a batch that was never trained. A sealed checkpoint is never changed, so
the cursor is put back in a copy, beside links to everything else:

    <stage>/save/                                    what the trainer writes, sealed and hashed
    <stage>/load/  latest_checkpointed_iteration.txt
                   iter_0000019 -> ../save/iter_0000019
                   rollout/global_dataset_state_dict_19.pt      put back by one batch
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plugins.errors import StoreError
from plugins.slime import layout
from plugins.slime.cursor import NotPlain, put_back, read_cursor, write_moved
from plugins.slime.whole import read_json, unreadable

Outcome = Literal["cold", "weights", "resume", "release", "error"]


@dataclass(frozen=True)
class LoadDecision:
    """What slime does with `--load FOLDER`.

    cold: nothing is there for it, `--ref-load` is taken, no optimizer, rollout 0, no word said; weights: the same with
    the folder's own Hugging Face weights, for models that slime can read so; resume: goes on after `iteration`;
    release: a converted model, of which rollout 0 and the first evaluation are skipped; error: slime or Megatron end
    (some with exit code 0).
    reason: one sentence for a person.
    """

    outcome: Outcome
    reason: str
    iteration: int | None = None


def load_decision(folder: Path | None, ckpt_step: int | None = None) -> LoadDecision:
    """What slime would do with a folder given as `--load`, by its own rules; reads a few names and one line.

    Sources: slime v0.3.1 slime/utils/arguments.py:1758-1782 and backends/megatron_utils/checkpoint.py:95-125;
    Megatron-LM 1dcf0daf megatron/training/checkpointing.py:291-311 (tracker), :1134-1157 (format), :1180-1225.
    ckpt_step: `--ckpt-step`; 0 counts as not given, and without a tracker it is not looked at.
    Whether the iteration's files are whole is `layout.check_complete`'s matter.
    Raises StoreError when the disk refuses.
    """
    if folder is None:
        return LoadDecision("cold", "no folder is given: slime starts from --ref-load")
    try:
        return _decide(folder, ckpt_step)
    except OSError as error:
        raise unreadable(folder, error) from error


def _decide(folder: Path, ckpt_step: int | None) -> LoadDecision:
    tracker = folder / layout.TRACKER
    if not tracker.exists():
        if (folder / "config.json").exists():
            return LoadDecision("weights", f"{folder} holds Hugging Face weights: slime starts from them, at rollout 0")
        return LoadDecision("cold", f"{folder} has no tracker file: slime would start from --ref-load and say nothing")
    if not tracker.is_file():
        return LoadDecision("error", f"{tracker} is no file")
    text = tracker.read_bytes().decode(errors="replace").strip()
    named = _number(text)
    if named is None and text != "release":
        return LoadDecision("error", f"{tracker} names no iteration but {text[:40]!r}: Megatron ends with exit code 0")
    if named is not None and named < 0:
        return LoadDecision("error", f"{tracker} names iteration {named}: Megatron refuses it")
    iteration = ckpt_step or named or 0
    release = named is None
    place = folder / "release" if release else layout.iteration_dir(folder, iteration)
    if not place.is_dir():
        return LoadDecision("error", f"{place}: is missing, though {'--ckpt-step' if ckpt_step else tracker} names it")
    if wrong := _format_error(place):
        return LoadDecision("error", wrong)
    if release:
        return LoadDecision(
            "release", f"{folder} is a converted model: slime would skip rollout 0; give it as --ref-load"
        )
    return LoadDecision("resume", f"slime goes on after iteration {iteration} of {folder}", iteration)


def _number(text: str) -> int | None:
    """As Megatron reads it, which takes whatever Python's `int` takes."""
    try:
        return int(text)
    except ValueError:
        return None


def _format_error(place: Path) -> str:
    """Megatron tells the format by metadata.json; without it, it refuses or takes another format for this one."""
    try:
        if "sharded_backend" in read_json(place / "metadata.json"):
            return ""
    except StoreError:
        pass
    return f"{place}: has no metadata.json that names a format: Megatron refuses it or takes it for another one"


def prepare(
    save_dir: Path,
    view_dir: Path,
    iteration: int,
    *,
    rows: int | None,
    prompts_per_rollout: int,
    samples_per_prompt: int,
) -> Path:
    """Make the folder to give as `--load`: the iteration of `save_dir` with its data cursor put back by one batch.

    rows: of the data, None where slime leaves out some of them. What stood at `view_dir` before is replaced. Returns
    `view_dir`.
    Raises NotPlain when the cursor cannot be put back (nothing is made then), TornCheckpoint for a damaged cursor,
    StoreError when the disk refuses.
    """
    state = layout.dataset_state_file(save_dir, iteration)
    cursor = put_back(read_cursor(state), prompts_per_rollout, samples_per_prompt, rows)
    copy = layout.dataset_state_file(view_dir, iteration)
    try:
        remove(view_dir)
        copy.parent.mkdir(parents=True)
        write_moved(state, copy, cursor)
        source = layout.iteration_dir(save_dir, iteration)
        layout.iteration_dir(view_dir, iteration).symlink_to(
            os.path.relpath(source, view_dir), target_is_directory=True
        )
    except NotPlain:
        remove(view_dir)
        raise
    except OSError as error:
        raise StoreError(f"{view_dir}: cannot be made ({error.strerror}): check space and rights there") from error
    layout.write_tracker(view_dir, iteration)
    return view_dir


def remove(view_dir: Path) -> None:
    """Take away the view of an earlier attempt; the checkpoints it links to stay. Raises OSError."""
    if view_dir.is_symlink() or view_dir.is_file():
        view_dir.unlink()
    elif view_dir.exists():
        shutil.rmtree(view_dir)
