"""What a trainer needs on its command line to go on from a checkpoint as if it had never stopped.

    --load               the save dir, or a view of it with the data cursor put right (`load_view`)
    --start-rollout-id   one more than the iteration
    --override-opt_param-scheduler   where the learning-rate schedule is another one now (`schedule`)
    --no-load-optim                  where the checkpoint has no optimizer

What slime or Megatron would do wrong in silence, or refuse only after minutes of starting, is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.errors import StoreError, TornCheckpoint, UserError
from plugins.slime import layout, load_view, schedule
from plugins.slime.cursor import Cursor, NotPlain, prompts_never_trained, read_cursor
from plugins.slime.flags import Value
from plugins.slime.saved import Saved, read_saved

ASYNC = "train_async.py"
_SIZES = {
    "tensor-model-parallel-size": "parallelism.tensor",
    "pipeline-model-parallel-size": "parallelism.pipeline",
    "expert-model-parallel-size": "parallelism.expert",
    "expert-tensor-parallel-size": "parallelism.expert_tensor",
}
_PLAIN_ROLLOUTS = ("slime.rollout.sglang_rollout.generate_rollout", "slime.rollout.sft_rollout.generate_rollout")
_PLAIN_SOURCES = (
    "slime.rollout.data_source.RolloutDataSourceWithBuffer",
    "slime.rollout.data_source.RolloutDataSource",
)
_DRAWS_OTHERWISE = (
    "dynamic_sampling_filter_path",
    "partial_rollout",
    "load_debug_rollout_data",
    "rollout_all_samples_process_path",
    "disable_rollout_global_dataset",
)
_LEAVES_ROWS_OUT = ("rollout-max-prompt-len", "rollout-max-context-len")


@dataclass(frozen=True)
class Restart:
    """load_dir: what `--load` names; flags: to add to the command line, without dashes; notes: for the stage's log."""

    load_dir: Path
    flags: dict[str, Value]
    notes: tuple[str, ...] = ()


def restart(
    save_dir: Path, view_dir: Path, flags: Mapping[str, Value], *, script: str, rows: int | None = None
) -> Restart:
    """Work out how to go on from the checkpoint that the tracker of `save_dir` names; makes `view_dir` where needed.

    flags: the whole command line but for these; script: slime's script for the stage; rows: of the data, if known.
    Raises TornCheckpoint when slime would not go on from `save_dir`, UserError when this command line cannot,
    StoreError when the disk refuses.
    """
    decision = load_view.load_decision(save_dir)
    if decision.iteration is None:
        raise TornCheckpoint(f"{decision.reason}; there is nothing to resume from: restore the checkpoint again")
    iteration = decision.iteration
    saved = read_saved(layout.iteration_dir(save_dir, iteration))
    optimizer, notes = _optimizer(saved, flags)
    if not (optimizer or flags.get("no-load-optim")):
        _check_shape(saved, flags, iteration)
        more, said = schedule.choose(saved.schedule, flags)
        optimizer, notes = optimizer | more, notes + said
    load_dir, said = _data(save_dir, view_dir, iteration, saved, flags, script, rows)
    added: dict[str, Value] = {"load": str(load_dir), "start-rollout-id": iteration + 1}
    return Restart(load_dir, added | optimizer, (*notes, *said))


def _optimizer(saved: Saved, flags: Mapping[str, Value]) -> tuple[dict[str, Value], list[str]]:
    """A checkpoint without its optimizer ends Megatron with a KeyError unless told (checkpointing.py:1785-1824)."""
    if saved.has_optimizer is not False:
        return {}, []
    note = "WARNING the checkpoint was saved without its optimizer: moments and learning-rate schedule start anew"
    return {} if flags.get("no-load-optim") else {"no-load-optim": True}, [note]


def _check_shape(saved: Saved, flags: Mapping[str, Value], iteration: int) -> None:
    """Megatron refuses another TP or PP for an optimizer that is not reshardable (checkpointing.py:1594-1601), and
    does not notice another EP (slime.md 2.4).
    """
    if saved.reshardable is not False or not saved.args:
        return
    before, now = _sizes({name.replace("_", "-"): value for name, value in saved.args.items()}), _sizes(flags)
    changed = [f"{_SIZES[name]} {before[name]} -> {now[name]}" for name in _SIZES if before[name] != now[name]]
    if changed:
        raise UserError(
            f"{', '.join(changed)}: the optimizer of iteration {iteration} was saved for one shape only and cannot be "
            "read with another. Give the old sizes back; for a run that is to change them later, set "
            "`checkpoint.reshardable: true` from its start"
        )


def _sizes(flags: Mapping[str, Any]) -> dict[str, int]:
    sizes = {name: int(str(flags.get(name) or 1)) for name in _SIZES}
    if not flags.get("expert-tensor-parallel-size"):
        sizes["expert-tensor-parallel-size"] = sizes["tensor-model-parallel-size"]  # Megatron's own default
    return sizes


def _data(
    save_dir: Path,
    view_dir: Path,
    iteration: int,
    saved: Saved,
    flags: Mapping[str, Value],
    script: str,
    rows: int | None,
) -> tuple[Path, list[str]]:
    """The folder with the right data cursor, and what is lost where it cannot be put right."""
    try:
        load_view.remove(view_dir)
    except OSError as error:
        raise StoreError(f"{view_dir}: cannot be removed ({error.strerror}): check rights there") from error
    told = saved.args or {name.replace("-", "_"): value for name, value in flags.items()}
    batch, samples = int(told.get("rollout_batch_size") or 1), int(told.get("n_samples_per_prompt") or 1)
    state = layout.dataset_state_file(save_dir, iteration)
    if not state.exists():
        return save_dir, []
    try:
        cursor = read_cursor(state)
    except TornCheckpoint as error:
        return save_dir, [f"WARNING the data cursor cannot be compared: {error}"]
    lost = prompts_never_trained(cursor, iteration, batch)
    if not _drawn_ahead(cursor, iteration, told, batch, script):
        return save_dir, _lost(lost, iteration, "")
    reason = _not_plain(told, batch)
    if not saved.args and flags.get("custom-config-path"):
        reason = reason or "--custom-config-path may change what is drawn"
    if reason:
        return save_dir, _lost(max(lost, batch), iteration, reason)
    if any(flags.get(name) for name in _LEAVES_ROWS_OUT):
        rows = None
    try:
        load_view.prepare(
            save_dir, view_dir, iteration, rows=rows, prompts_per_rollout=batch, samples_per_prompt=samples
        )
    except NotPlain as error:
        return save_dir, _lost(max(lost, batch), iteration, str(error))
    back = read_cursor(layout.dataset_state_file(view_dir, iteration))
    note = f"the data goes on at {back}: {batch} prompts had been drawn ahead and are drawn again"
    return view_dir, [note, *_lost(prompts_never_trained(back, iteration, batch), iteration, "")]


def _drawn_ahead(cursor: Cursor, iteration: int, told: Mapping[str, Any], batch: int, script: str) -> bool:
    """Whether the cursor counts a batch that was drawn ahead: train_async.py draws batch N+1 before it saves N, except
    after the last rollout of its command line (train_async.py:39-43). A cursor that counts exactly what was trained
    is right, whatever wrote it.
    """
    if script != ASYNC or told.get("colocate") or cursor.sample_group_index == (iteration + 1) * batch:
        return False
    total = told.get("num_rollout")
    return not isinstance(total, int) or iteration + 1 < total


def _not_plain(told: Mapping[str, Any], batch: int) -> str:
    """Why a draw may have taken more or less than a batch from the data; empty when it cannot have."""
    if told.get("rollout_function_path", _PLAIN_ROLLOUTS[0]) not in _PLAIN_ROLLOUTS:
        return "a rollout function of your own draws"
    if told.get("data_source_path", _PLAIN_SOURCES[0]) not in _PLAIN_SOURCES:
        return "a data source of your own draws"
    if told.get("over_sampling_batch_size") not in (None, batch):
        return "over-sampling draws more than it trains on"
    if told.get("rollout_global_dataset") is False:
        return "slime keeps no cursor"
    found = next((name for name in _DRAWS_OTHERWISE if told.get(name)), "")
    return f"--{found.replace('_', '-')} changes what is drawn" if found else ""


def _lost(prompts: int, iteration: int, reason: str) -> list[str]:
    if not prompts:
        return []
    why = f"; the cursor cannot be put back: {reason}" if reason else ""
    return [f"WARNING {prompts} prompts were drawn and never trained before iteration {iteration}{why}"]
