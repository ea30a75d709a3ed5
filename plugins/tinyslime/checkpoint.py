"""Checkpoints in slime's layout, written in slime's order: folder, tracker, the line that says so, export, data cursor.

    iter_0000019/  common.pt (arguments, schedule, RNG)  __0_0.distcp + .metadata (weights, optimizer)  metadata.json
    latest_checkpointed_iteration.txt   rollout/global_dataset_state_dict_19.pt   and what --save-hf names

With `--async-save`, `.metadata`, metadata.json and the tracker come at the next save or after the last rollout, as
slime's do (actor.py:579-587); export and cursor come at once. The data files are not written in the background here.
What is complete, and where files stand, is said by `plugins.slime.layout`. Resume goes by slime's rules (slime.md
2.4) but fails with a reason where slime or Megatron fail with a trace.
"""

from __future__ import annotations

import json
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult

from plugins.errors import StoreError, TornCheckpoint, UserError
from plugins.slime import layout
from plugins.slime.progress import format_loaded, format_saved, format_scheduled, format_skipped
from plugins.tinyslime import log
from plugins.tinyslime.data import DataSource
from plugins.tinyslime.export import write_folder
from plugins.tinyslime.faults import Faults
from plugins.tinyslime.model import TinyLlama
from plugins.tinyslime.step import Schedule

_METADATA = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class Training:
    """Everything of a run that a checkpoint must hold; `finish_save` ends an asynchronous save that was begun."""

    args: Namespace
    model: TinyLlama
    optimizer: torch.optim.AdamW
    schedule: Schedule
    source: DataSource
    faults: Faults = field(default_factory=Faults)
    finish_save: Callable[[], None] | None = None


class _LateWriter(FileSystemWriter):
    """Writes the data at once and `.metadata` when told, as Megatron's finalize functions do."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._late = metadata, results

    def write_metadata(self) -> None:
        super().finish(*self._late)


def save(training: Training, iteration: int, *, last: bool = False) -> None:
    """Write one checkpoint; raises StoreError (the tracker then still names the one before).

    last: nothing is saved after it, so an asynchronous save is finished too.
    """
    args, save_dir = training.args, Path(training.args.save)
    _finish_save(training)
    training.finish_save = _write_data(training, iteration)
    if args.async_save:
        log.bare(format_scheduled(iteration, save_dir))
    if last or not args.async_save:
        _finish_save(training)
    if args.save_hf:
        target = Path(args.save_hf.format(rollout_id=iteration))
        write_folder(training.model, target)
        log.say(f"Successfully saved HuggingFace model to {target}", file="hf_checkpoint_saver.py")
    state = layout.dataset_state_file(save_dir, iteration)
    with _storing(state):
        state.parent.mkdir(parents=True, exist_ok=True)
        torch.save(training.source.state_dict(), state)


def _finish_save(training: Training) -> None:
    if finish := training.finish_save:
        training.finish_save = None
        finish()


def _write_data(training: Training, iteration: int) -> Callable[[], None]:
    """Write common.pt and the data files; gives what makes a checkpoint of them."""
    args, save_dir = training.args, Path(training.args.save)
    folder = layout.iteration_dir(save_dir, iteration)
    with _storing(folder):
        if folder.exists() and any(folder.iterdir()):
            log.say(f"Overwriting old incomplete / corrupted checkpoint {folder}", file="checkpointing.py")
        folder.mkdir(parents=True, exist_ok=True)
        common = {
            "args": Namespace(**{name: value for name, value in vars(args).items() if _is_plain(value)}),
            "iteration": iteration,
            "checkpoint_version": 3.0,
            "model_config": asdict(training.model.config),
            "content_metadata": {"distrib_optim_sharding_type": _sharding(args)},
            "rng_state": torch.get_rng_state(),
        }
        if not args.no_save_optim:
            common["opt_param_scheduler"] = training.schedule.state_dict()
            common["param_groups"] = [training.schedule.group]
        torch.save(common, folder / "common.pt")
        tensors = _tensors(training.model, None if args.no_save_optim else training.optimizer)
        writer = _LateWriter(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
        state_dict_saver.save(tensors, storage_writer=writer, no_dist=True)

    def finish() -> None:
        with _storing(folder):
            writer.write_metadata()
            (folder / "metadata.json").write_text(json.dumps(_METADATA), encoding="utf-8")
        layout.write_tracker(save_dir, iteration)
        log.bare(format_saved(iteration, save_dir, now=datetime.now()))

    return finish


def resume(training: Training) -> int | None:
    """Take up the checkpoint that the tracker of `--load` names; gives its iteration, or None when there is no tracker.

    Raises TornCheckpoint for a checkpoint that is not whole, UserError for one that does not fit the flags.
    """
    load_dir = Path(training.args.load)
    if (iteration := layout.read_tracker(load_dir)) is None:
        return None
    optimizer = None if training.args.no_load_optim else training.optimizer
    common = _read_iteration(load_dir, iteration, training.model, optimizer, skip=training.faults.skip_tensor)
    if not training.args.no_load_optim:
        training.schedule.load_state_dict(common["opt_param_scheduler"], common["param_groups"][0])
    torch.set_rng_state(common["rng_state"])
    log.bare(format_loaded(iteration, load_dir, now=datetime.now()))
    return iteration


def load_cursor(training: Training, load_dir: Path, iteration: int) -> None:
    """Put the data cursor where it stood after `iteration`. Like slime, start the data anew when its file is
    missing, with slime's words for it (slime/rollout/data_source.py:145-151).
    """
    state = layout.dataset_state_file(load_dir, iteration)
    if training.faults.lose_dataset_state:
        return
    if not state.exists():
        log.say(f"Checkpoint {state} does not exist.", file="data_source.py")
        return
    log.say(f"load metadata from {state}", file="data_source.py")
    with _reading(state):
        training.source.load_state_dict(torch.load(state, weights_only=True))


def read_model(load_dir: Path, model: TinyLlama) -> None:
    """Weights alone, from the checkpoint that the tracker of `load_dir` names (a `--ref-load` of an earlier stage)."""
    iteration = layout.read_tracker(load_dir)
    if iteration is None:
        raise UserError(f"{load_dir} holds neither config.json nor {layout.TRACKER}: it is no folder of weights")
    _read_iteration(load_dir, iteration, model, None)
    log.bare(format_loaded(0, load_dir, now=datetime.now()))  # Megatron's number for weights without their optimizer


def _read_iteration(
    load_dir: Path, iteration: int, model: TinyLlama, optimizer: torch.optim.AdamW | None, *, skip: str | None = None
) -> dict[str, Any]:
    folder = layout.iteration_dir(load_dir, iteration)
    log.bare(f" loading distributed checkpoint from {load_dir} at iteration {iteration}")
    layout.check_complete(load_dir, iteration, kind="slime", dataset_state=False)
    with _reading(folder):
        with torch.serialization.safe_globals([Namespace]):
            common: dict[str, Any] = torch.load(folder / "common.pt", weights_only=True)
        if common["iteration"] != iteration:
            raise TornCheckpoint(f"{folder}/common.pt is of iteration {common['iteration']}: the folder was mixed up")
        if common["model_config"] != asdict(model.config):
            raise UserError(
                f"{folder} holds a model of other sizes than the flags ask for: {common['model_config']}, not "
                f"{asdict(model.config)}"
            )
        reader = FileSystemReader(folder)
        names = reader.read_metadata().state_dict_metadata
        if optimizer and not any(name.startswith("optimizer.") for name in names):
            raise UserError(
                f"{folder} has no optimizer state (it was saved with --no-save-optim): add --no-load-optim to go on "
                "without"
            )
        tensors = _tensors(model, optimizer, fresh=True)
        if skip and tensors.pop(skip, None) is not None:
            log.bare(format_skipped(skip))
        state_dict_loader.load(tensors, storage_reader=reader, no_dist=True)
    if optimizer:
        for name, parameter in model.named_parameters():
            optimizer.state[parameter] = {kind: tensors[f"optimizer.state.{kind}.{name}"] for kind in _MOMENTS}
    return common


def _tensors(model: TinyLlama, optimizer: torch.optim.AdamW | None, *, fresh: bool = False) -> dict[str, Tensor]:
    """Flat state: the model's own tensors, and the optimizer's (`fresh`: new ones to read into)."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters() if optimizer else ():
        assert optimizer is not None
        empty = {
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
            "step": torch.zeros(()),
        }
        state = empty if fresh else empty | optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.state.{kind}.{name}": state[kind].detach() for kind in _MOMENTS}
    return tensors


def _sharding(args: Namespace) -> str:
    return "fully_reshardable" if getattr(args, "dist_ckpt_optim_fully_reshardable", False) else "dp_reshardable"


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool | list | dict)


@contextmanager
def _storing(path: Path) -> Iterator[None]:
    """What torch raises when a disk is full or refuses (OSError, RuntimeError, or a BaseException of its own) is a
    StoreError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, RuntimeError, CheckpointException) as error:
        raise StoreError(f"cannot write {path}: {_reason(error)}: check space and rights there") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever reading raises means that the file is damaged, unless it is one of our own errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (StoreError, UserError):
        raise
    except (Exception, CheckpointException) as error:
        raise TornCheckpoint(f"{path} cannot be loaded: {_reason(error)}: restore a whole checkpoint there") from error


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    while isinstance(error.__cause__ or error.__context__, OSError):
        error = error.__cause__ or error.__context__ or error
    return (str(error).splitlines() or [type(error).__name__])[0]
