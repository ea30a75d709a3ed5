"""Hook that runs inside the trainer and says what each rollout gave: safer than reading a log full of samples.

slime calls it in its RolloutManager process (`--custom-rollout-log-function-path` names it; slime v0.3.1
slime/ray/rollout.py:1294). Standard library only; `plugins.slime.progress` reads what is written here.
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PROGRESS_FILE = "TRAINSTACK_PROGRESS_FILE"
"""Environment variable with the path of the JSONL file; without it the hook does nothing."""

logger = logging.getLogger(__name__)


def custom_rollout_log(
    rollout_id: int, args: Any, samples: Any, rollout_extra_metrics: dict[str, Any] | None, rollout_time: float
) -> bool:
    """Append one line `{"kind": "rollout", "number": N, "values": {...}, "time": unix seconds}`.

    Values: `reward/mean` over the samples that count (an environment failure is no reward), `reward/samples`,
    `reward/removed`, `reward/truncated` (counts), `perf/rollout_time` (seconds). Always returns False: slime's own
    logging goes on. Never raises: an exception here would end the training.
    """
    path = os.environ.get(PROGRESS_FILE)
    if path:
        try:
            record = {
                "kind": "rollout",
                "number": int(rollout_id),
                "values": _values(args, samples, rollout_time),
                "time": time.time(),
            }
            _append(path, json.dumps(record, allow_nan=False))
        except Exception as error:  # whatever it is, the training is worth more than this line
            logger.warning("no progress line for rollout %s: %s: %s", rollout_id, type(error).__name__, error)
    return False


def _values(args: Any, samples: Any, rollout_time: float) -> dict[str, float]:
    values: dict[str, float] = {}
    flat = list(_flatten(samples))
    if getattr(args, "loss_type", None) != "sft_loss":  # SFT samples carry a reward of 0 that means nothing
        counted = [sample for sample in flat if not getattr(sample, "remove_sample", False)]
        rewards = [reward for sample in counted if (reward := _reward(args, sample)) is not None]
        if rewards:
            values["reward/mean"] = sum(rewards) / len(rewards)
        values["reward/samples"] = len(rewards)
        values["reward/removed"] = len(flat) - len(counted)
        values["reward/truncated"] = sum(_status(sample) == "truncated" for sample in counted)
    if isinstance(rollout_time, int | float) and math.isfinite(rollout_time):
        values["perf/rollout_time"] = float(rollout_time)
    return values


def _flatten(samples: Any) -> Iterator[Any]:
    """Samples come as a list, or as lists in a list where one prompt fans out."""
    if isinstance(samples, Iterable) and not isinstance(samples, str | bytes | dict):
        for sample in samples:
            yield from _flatten(sample)
    else:
        yield samples


def _reward(args: Any, sample: Any) -> float | None:
    """The raw reward as slime logs it: metadata's `raw_reward` first, then the reward (a dict with --reward-key)."""
    metadata = getattr(sample, "metadata", None) or {}
    reward = metadata.get("raw_reward", getattr(sample, "reward", None))
    if isinstance(reward, dict):
        reward = reward.get(getattr(args, "reward_key", None))
    try:
        number = float(reward) if reward is not None else math.nan
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _status(sample: Any) -> str:
    status = getattr(sample, "status", None)
    return str(getattr(status, "value", status)).lower()


def _append(path: str, line: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, line.encode() + b"\n")  # one write: a reader never sees half a line of a live writer
    finally:
        os.close(descriptor)
