"""Hooks that run inside the trainer and say what each rollout and each evaluation gave: safer than reading a log full
of samples.

slime calls them in its RolloutManager process (`--custom-rollout-log-function-path` and
`--custom-eval-rollout-log-function-path` name them; slime v0.3.1 slime/ray/rollout.py:1261-1298). Standard library
only; `plugins.slime.progress` reads what is written here.
"""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
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
    `reward/removed`, `reward/truncated` (counts), `perf/rollout_time` (seconds), and where the data stood
    (`data_position`). Always returns False: slime's own logging goes on. Never raises: an exception here would end the
    training.
    """

    def values() -> dict[str, float]:
        flat = list(_flatten(samples))
        return _values(args, flat, rollout_time) | data_position(rollout_id, args, flat)

    _tell("rollout", rollout_id, values)
    return False


def custom_eval_rollout_log(
    rollout_id: int, args: Any, data: dict[str, dict[str, Any]], extra_metrics: dict[str, Any] | None
) -> bool:
    """Append one line of kind `eval` with, for each data set, `eval/<name>` (mean reward over the samples that count),
    `eval/<name>-truncated_ratio` and `eval/<name>-removed` (a count).

    data: by data set `rewards`, `truncated` and, where the rollout function gives them, `samples`. Returns False and
    never raises, as `custom_rollout_log`.
    """

    def values() -> dict[str, float]:
        return {key: value for name, found in data.items() for key, value in _eval_values(args, name, found).items()}

    _tell("eval", rollout_id, values)
    return False


def _tell(kind: str, rollout_id: int, values: Callable[[], dict[str, float]]) -> None:
    path = os.environ.get(PROGRESS_FILE)
    if not path:
        return
    try:
        record = {"kind": kind, "number": int(rollout_id), "values": values(), "time": time.time()}
        append_line(Path(path), json.dumps(record, allow_nan=False))
    except Exception as error:  # whatever it is, the training is worth more than this line
        logger.warning("no %s line for rollout %s: %s: %s", kind, rollout_id, type(error).__name__, error)


def _eval_values(args: Any, name: str, found: dict[str, Any]) -> dict[str, float]:
    rewards, truncated = list(found.get("rewards") or ()), list(found.get("truncated") or ())
    samples = list(_flatten(found.get("samples") or ()))
    fits = len(samples) == len(rewards)
    removed = [fits and bool(getattr(samples[place], "remove_sample", False)) for place in range(len(rewards))]
    counted = [
        number
        for reward, out in zip(rewards, removed, strict=True)
        if not out and (number := _number(reward, args)) is not None
    ]
    values: dict[str, float] = {f"eval/{name}-removed": sum(removed)}
    if counted:
        values[f"eval/{name}"] = sum(counted) / len(counted)
    if truncated:
        values[f"eval/{name}-truncated_ratio"] = sum(map(bool, truncated)) / len(truncated)
    return values


def data_position(rollout_id: int, args: Any, samples: list[Any]) -> dict[str, float]:
    """Which part of the data a rollout took, so that a resume can be compared with the cursor that was saved.

    `data/first_index`, `data/last_index`, `data/first_group`, `data/last_group`: smallest and largest `index` and
    `group_index` of the samples that came fresh from the data source. slime numbers both over the whole life of the
    stage and saves the next numbers (slime/rollout/data_source.py:88-136), so the first rollout after a resume starts
    at the saved `sample_index` and `sample_group_index`.
    `data/fresh`, `data/requeued`: how many samples were fresh, and how many had been drawn before: those that an
    earlier rollout began (`start_rollout_id`, slime/rollout/sglang_rollout.py:362-364) or that are not beyond what
    earlier rollouts reported. One that was aborted before it had a token and never reported counts as fresh.
    `data/exact`: 1.0 when everything drawn is in the batch, so that the first one *must* be where the cursor stood;
    0.0 when filters, over-sampling or code of the user's may have dropped it.
    Empty when no sample has an index. Leaves the highest index on `args`, which live as long as the RolloutManager.
    """
    indices: list[tuple[int, int | None]] = []
    requeued, unknown, reported = 0, 0, _whole(getattr(args, _REPORTED, None))
    for sample in samples:
        index = _whole(getattr(sample, "index", None))
        if index is None:
            unknown += 1
            continue
        begun = _whole((getattr(sample, "metadata", None) or {}).get("start_rollout_id"))
        if (begun is not None and begun < rollout_id) or (reported is not None and index <= reported):
            requeued += 1
        else:
            indices.append((index, _whole(getattr(sample, "group_index", None))))
    if not indices and not requeued:
        return {}
    values: dict[str, float] = {"data/fresh": len(indices), "data/requeued": requeued}
    if indices:
        numbers, groups = [index for index, _ in indices], [group for _, group in indices if group is not None]
        values |= {"data/first_index": min(numbers), "data/last_index": max(numbers)}
        if len(groups) == len(numbers):
            values |= {"data/first_group": min(groups), "data/last_group": max(groups)}
        with contextlib.suppress(AttributeError):  # arguments of some other trainer, which take no attribute
            setattr(args, _REPORTED, max(numbers))
    return values | {"data/exact": float(not unknown and _takes_all_it_draws(args))}


_REPORTED = "trainstack_last_index"


def _whole(number: Any) -> int | None:
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _takes_all_it_draws(args: Any) -> bool:
    """slime's own two rollout functions drop nothing unless asked to (sglang_rollout.py:394-437, sft_rollout.py)."""
    batch = getattr(args, "rollout_batch_size", None)
    return (
        getattr(args, "rollout_function_path", _PLAIN[0]) in _PLAIN
        and getattr(args, "over_sampling_batch_size", None) in (None, batch)
        and not getattr(args, "dynamic_sampling_filter_path", None)
        and not getattr(args, "load_debug_rollout_data", None)
        and getattr(args, "data_source_path", _SOURCES[0]) in _SOURCES
    )


_PLAIN = ("slime.rollout.sglang_rollout.generate_rollout", "slime.rollout.sft_rollout.generate_rollout")
_SOURCES = ("slime.rollout.data_source.RolloutDataSourceWithBuffer", "slime.rollout.data_source.RolloutDataSource")


def _values(args: Any, flat: list[Any], rollout_time: float) -> dict[str, float]:
    values: dict[str, float] = {}
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
    return _number(metadata.get("raw_reward", getattr(sample, "reward", None)), args)


def _number(reward: Any, args: Any) -> float | None:
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


def append_line(path: Path, line: str) -> None:
    """Append a line in one write, and make the file and its folders when they are missing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, line.encode() + b"\n")  # one write: a reader never sees half a line of a live writer
    finally:
        os.close(descriptor)
