"""Functions that a run names by path, and the line that slime writes about a rollout unless one of them takes over."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Any

from plugins.errors import UserError
from plugins.tinyslime import log
from plugins.tinyslime.sample import Sample


def load_function(path: str) -> Callable[..., Any]:
    """Import `package.module.name` as slime does; raises UserError naming what is missing."""
    module, _, name = path.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot import {path}: {error}") from error
    return found


def report_eval(args: Namespace, rollout_id: int, data: dict[str, dict[str, Any]], values: dict[str, float]) -> None:
    """Call `--custom-eval-rollout-log-function-path` with slime's arguments; write the `eval` line unless it says that
    it did the logging.
    """
    path = args.custom_eval_rollout_log_function_path
    if not (path and load_function(path)(rollout_id, args, data, {})):
        log.metrics("eval", rollout_id, values)


def report_rollout(args: Namespace, rollout_id: int, samples: Sequence[Sample], elapsed_s: float) -> None:
    """Call `--custom-rollout-log-function-path` with slime's arguments; write the rollout's own `perf` line unless it
    says that it did the logging.
    """
    path = args.custom_rollout_log_function_path
    if path and load_function(path)(rollout_id, args, samples, {}, elapsed_s):
        return
    lengths = [sample.response_length for sample in samples]
    values = {
        "rollout/response_len/mean": float(mean(lengths)),
        "rollout/response_len/median": float(median(lengths)),
        "rollout/response_len/max": max(lengths),
        "rollout/response_len/min": min(lengths),
        "rollout/truncated_ratio": mean(float(sample.status is Sample.Status.TRUNCATED) for sample in samples),
        "rollout/removed_ratio": mean(float(sample.remove_sample) for sample in samples),
        "perf/rollout_time": elapsed_s,
        "perf/tokens_per_gpu_per_sec": sum(lengths) / max(elapsed_s, 1e-9),
    }
    log.metrics("perf", rollout_id, values, from_rollout=True)
