"""What the run that wrote a checkpoint had been told, from the checkpoint's `common.pt`: read without torch, running no
code of it.

    iter_0000019/common.pt   {args: Namespace, opt_param_scheduler: {...}, content_metadata: {...}, iteration: 19, ...}

`args` is slime's whole command line after validation (Megatron-LM 1dcf0daf megatron/training/checkpointing.py:881-960),
`opt_param_scheduler` the learning-rate schedule, absent with `--no-save-optim`; `content_metadata` says how the
optimizer is laid out (checkpointing.py:401-429). What follows from it for a resume is `restart`'s matter.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugins.errors import TornCheckpoint
from plugins.slime.whole import load_inert, reading, torch_pickle

_RESHARDABLE = ("fully_reshardable", "fully_sharded_model_space", "fsdp_dtensor")
"""Layouts that another TP and PP size can read (megatron/core/optimizer/distrib_optimizer.py:106-110)."""


@dataclass(frozen=True)
class Saved:
    """args: names as slime has them after parsing (`rollout_batch_size`), plain values only, empty where the file says
    nothing. schedule: Megatron's numbers, None where there are none. sharding: the optimizer's layout, None: not said.
    """

    args: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] | None = None
    sharding: str | None = None

    @property
    def has_optimizer(self) -> bool | None:
        """Whether the optimizer was saved; None where the file says nothing."""
        if "no_save_optim" in self.args:
            return not self.args["no_save_optim"]
        return True if self.schedule is not None else None

    @property
    def reshardable(self) -> bool | None:
        """Whether another tensor, pipeline or expert parallel size can read the optimizer; None: nothing is said."""
        if self.sharding is not None:
            return self.sharding in _RESHARDABLE
        return bool(self.args.get("dist_ckpt_optim_fully_reshardable")) if self.args else None


def read_saved(folder: Path) -> Saved:
    """Read `common.pt` of an iteration's folder; what cannot be understood is not known.

    Whether the file is whole is `layout.check_complete`'s matter; here a foreign or damaged one says nothing.
    Raises StoreError when the disk refuses.
    """
    path = folder / "common.pt"
    try:
        with reading(path, "common state"):
            state = load_inert(io.BytesIO(torch_pickle(path)))
    except TornCheckpoint:
        return Saved()
    if not isinstance(state, dict):
        return Saved()
    metadata, schedule = state.get("content_metadata"), state.get("opt_param_scheduler")
    sharding = metadata.get("distrib_optim_sharding_type") if isinstance(metadata, dict) else None
    return Saved(
        {name: value for name, value in getattr(state.get("args"), "__dict__", {}).items() if _plain(value)},
        schedule if isinstance(schedule, dict) else None,
        sharding if isinstance(sharding, str) else None,
    )


def _plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | list | tuple)
