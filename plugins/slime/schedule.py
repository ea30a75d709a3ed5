"""The learning-rate schedule across a resume: what Megatron would compare, worked out before it compares.

Megatron keeps the schedule's numbers in the checkpoint and refuses to go on when the command line gives others ("class
input value ... do not match", Megatron-LM 1dcf0daf megatron/core/optimizer_param_scheduler.py:285-306), and most of
them follow from the number of rollouts and the batch sizes. So a finished run with a larger `num_rollout` would die at
its start, after minutes of waiting, unless `--override-opt_param-scheduler` is there: it is needed exactly when a
number differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plugins.slime.flags import Value

OVERRIDE = "override-opt_param-scheduler"
OVERRIDES = (OVERRIDE, "override-opt-param-scheduler")
USES_SAVED = ("use-checkpoint-opt_param-scheduler", "use-checkpoint-opt-param-scheduler")
_CHANGES_ARGS = ("custom-config-path", "megatron-config-path")
"""Files that change arguments after parsing, so that flags alone do not say what the schedule is."""
_STAYS = ("max_lr", "min_lr")

Number = int | float | str | None


@dataclass(frozen=True)
class Change:
    """One number of the schedule that is not the checkpoint's."""

    name: str
    saved: Any
    now: Number

    def __str__(self) -> str:
        return f"{self.name} {self.saved} -> {self.now}"


def numbers(flags: Mapping[str, Value]) -> dict[str, Number]:
    """Megatron's numbers for a command line, under the names it saves them by; steps count samples.

    As slime works them out (slime/backends/megatron_utils/model.py:203-215), with the defaults of slime and Megatron
    (megatron/training/training_config.py:120-180, arguments.py:866-873). flags: num-rollout and the batch sizes are
    among them, as the launcher fills them in.
    """
    batch = _whole(flags, "global-batch-size", 1)
    rollouts = _whole(flags, "num-rollout", 0)
    drawn = rollouts * _whole(flags, "rollout-batch-size", 1) * _whole(flags, "n-samples-per-prompt", 1)
    iterations = drawn // batch
    decay = _whole(flags, "lr-decay-iters", iterations) * batch
    fraction, weight_decay = _real(flags, "lr-warmup-fraction", None), _real(flags, "weight-decay", 0.01)
    style = flags.get("weight-decay-incr-style") or "constant"
    constant = style == "constant"
    return {
        "max_lr": _real(flags, "lr", 1e-6),
        "min_lr": _real(flags, "min-lr", 0.0),
        "lr_warmup_steps": _whole(flags, "lr-warmup-iters", 0) * batch if fraction is None else fraction * decay,
        "lr_decay_steps": decay,
        "lr_decay_style": str(flags.get("lr-decay-style") or "linear"),
        "start_wd": weight_decay if constant else _real(flags, "start-weight-decay", None),
        "end_wd": weight_decay if constant else _real(flags, "end-weight-decay", None),
        "wd_incr_steps": iterations * batch,
        "wd_incr_style": str(style),
    }


def changes(saved: Mapping[str, Any], flags: Mapping[str, Value]) -> list[Change]:
    """What Megatron would refuse: numbers that the checkpoint has and that differ now."""
    return [
        Change(name, saved[name], now) for name, now in numbers(flags).items() if name in saved and saved[name] != now
    ]


def choose(saved: Mapping[str, Any] | None, flags: Mapping[str, Value]) -> tuple[dict[str, Value], list[str]]:
    """Flags to add so that Megatron goes on, and what to tell the user about the schedule.

    saved: the checkpoint's numbers, None where they are not known. What the user chose about it stays. The overriding
    flag changes nothing where nothing differs, so it is given whenever that is not certain.
    """
    found = changes(saved, flags) if saved is not None else []
    said = ", ".join(map(str, found))
    if any(flags.get(name) for name in USES_SAVED):
        return {}, [f"learning-rate schedule: the checkpoint's is used, as asked ({said} is not)"] if found else []
    certain = saved is not None and not any(flags.get(name) for name in _CHANGES_ARGS)
    notes = [f"learning-rate schedule: {said}"] if found else []
    notes += [_stays(change) for change in found if change.name in _STAYS]
    if not certain:
        notes.append("learning-rate schedule: the checkpoint's cannot be compared, the command line's is taken")
    given = any(flags.get(name) for name in OVERRIDES)
    return {OVERRIDE: True} if (found or not certain) and not given else {}, notes


def _stays(change: Change) -> str:
    """The rate itself is read from the optimizer's parameter groups, which the checkpoint brings along
    (optimizer_param_scheduler.py:200-212, distrib_optimizer.py:760-770).
    """
    flag = "lr" if change.name == "max_lr" else "min-lr"
    return (
        f"WARNING Megatron keeps the checkpoint's --{flag} {change.saved}, which comes with the optimizer. To train "
        "with another one, start a new run from this checkpoint's weights"
    )


def _real(flags: Mapping[str, Value], name: str, default: float | None) -> float | None:
    value = flags.get(name)
    return default if value is None or isinstance(value, bool) else float(str(value))


def _whole(flags: Mapping[str, Value], name: str, default: int) -> int:
    value = flags.get(name)
    return default if value is None or isinstance(value, bool) else int(str(value))
