"""Turn what a stage knows into a trainer's command line, environment and folder (DESIGN 5.2).

slime and its stand-in get the same flags; a `command` trainer gets the environment only. Building is pure but for
reading the tracker of a restored checkpoint and a model's argument file; starting the process is left to the caller.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from plugins.errors import TornCheckpoint, UserError
from plugins.slime import hooks
from plugins.slime.flags import Value, model_args, render
from plugins.slime.layout import read_tracker

HOME = Path(__file__).resolve().parents[2]
"""Folder that holds `plugins/`: what `python -m plugins...` and slime's imports of our code need on their path."""

OWNED = {
    "save": "checkpoints go to the stage's own save dir",
    "load": "a resume is found from the checkpoint store",
    "start-rollout-id": "it follows from the restored checkpoint",
    "save-hf": "the export goes into the stage's own save dir",
    "save-interval": "set the recipe's `save_interval`",
    "num-rollout": "set the recipe's `num_rollout`",
    "num-epoch": "set the recipe's `num_epoch`",
    "prompt-data": "set the recipe's `data`",
    "seed": "set the recipe's `seed`",
    "custom-rollout-log-function-path": "progress is read from it",
    "wandb-key": "Ray's job listing would show it; give WANDB_API_KEY among the recipe's secrets",
}
"""Flags that the launcher sets itself, and what to do instead of setting them."""

_COMMON: dict[str, Value] = {
    "rollout-shuffle": True,
    "optimizer": "adam",
    "weight-decay": 0.1,
    "adam-beta1": 0.9,
    "use-dynamic-batch-size": True,
    "max-tokens-per-gpu": 9216,
    "attention-dropout": 0.0,  # Megatron's own default is 0.1
    "hidden-dropout": 0.0,
    "accumulate-allreduce-grads-in-fp32": True,
    "attention-softmax-in-fp32": True,
    "actor-num-nodes": 1,
    "actor-num-gpus-per-node": 1,
}
_SFT: dict[str, Value] = {
    "debug-train-only": True,  # no SGLang engines
    "rollout-function-path": "slime.rollout.sft_rollout.generate_rollout",
    "loss-type": "sft_loss",
    "calculate-per-token-loss": True,
    "disable-compute-advantages-and-returns": True,
    "input-key": "messages",
    "rollout-batch-size": 128,
    "lr": 1e-5,
    "min-lr": 1e-6,
    "lr-decay-style": "cosine",
    "lr-warmup-fraction": 0.1,
    "adam-beta2": 0.95,
}
_RL: dict[str, Value] = {
    "colocate": True,
    "custom-generate-function-path": "plugins.http_env.adapter.generate",
    "input-key": "prompt",
    "label-key": "label",
    "rollout-batch-size": 32,
    "n-samples-per-prompt": 8,
    "rollout-max-response-len": 8192,
    "rollout-temperature": 1.0,
    "advantage-estimator": "grpo",
    "eps-clip": 0.2,
    "eps-clip-high": 0.28,
    "entropy-coef": 0.0,
    "lr": 1e-6,
    "lr-decay-style": "constant",
    "adam-beta2": 0.98,
}


@dataclass(frozen=True)
class TrainerSpec:
    """All that decides a trainer's start.

    save_dir: where checkpoints appear; load_dir: None on a cold start, else the restored checkpoint's folder, which
    is the save dir; init_dir: Hugging Face folder of weights to start from; rollout_dir: trajectories and the
    progress file. num_rollout is the absolute total (slime.md 2.4), num_epoch counts over data_rows; one of the two
    is given.
    args: slime flags without their dashes, they win over our defaults; command: the argv of kind `command`.
    model: name of a `scripts/models/<model>.sh` of slime; megatron_dir: where slime's image keeps Megatron-LM.
    """

    kind: Literal["slime", "tinyslime", "command"]
    stage: Literal["sft", "rl"]
    run_id: str
    attempt: int
    save_dir: Path
    rollout_dir: Path
    load_dir: Path | None = None
    init_dir: Path | None = None
    data: Path | None = None
    env_url: str | None = None
    save_interval: int = 1
    num_rollout: int | None = None
    num_epoch: int | None = None
    data_rows: int | None = None
    args: Mapping[str, Value] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    slime_dir: Path | None = None
    seed: int | None = None
    model: str | None = None
    megatron_dir: Path = Path("/root/Megatron-LM")


@dataclass(frozen=True)
class Launch:
    """How to start the trainer. env: additions only, no secrets. expected_last: last rollout id, None if unknown."""

    argv: list[str]
    env: dict[str, str]
    cwd: Path
    expected_last: int | None


def build(spec: TrainerSpec) -> Launch:
    """Build argv, environment and folder of the stage's trainer.

    Raises UserError for a flag that is ours, a length or batch sizes that do not add up, a missing command or
    weights; TornCheckpoint when load_dir has no usable tracker.
    """
    env = environment(spec)
    if spec.kind == "command":
        if not spec.command:
            raise UserError("trainer kind `command` needs a command: the argv list to run")
        last = None if spec.num_rollout is None else spec.num_rollout - 1
        return Launch(list(spec.command), env, spec.slime_dir or HOME, last)
    flags = trainer_flags(spec)
    last = int(str(flags["num-rollout"])) - 1
    if spec.kind == "tinyslime":
        return Launch([sys.executable, "-m", "plugins.tinyslime.train", *render(flags)], env, HOME, last)
    slime_dir = spec.slime_dir or HOME / "slime"
    architecture = model_args(slime_dir, spec.model) if spec.model else []
    script = "train_async.py" if spec.stage == "sft" else "train.py"
    return Launch(["python3", script, *architecture, *render(flags)], env, slime_dir, last)


def trainer_flags(spec: TrainerSpec) -> dict[str, Value]:
    """The flags of a slime or tinyslime stage: ours, under the user's, under those that the launcher owns."""
    for name in spec.args:
        if (reason := OWNED.get(name)) is not None:
            raise UserError(f"trainer flag --{name} cannot be set in `args`: {reason}")
    if spec.data is None:
        raise UserError(f"stage {spec.stage} has no data: set the recipe's `data` to a .jsonl or .parquet file")
    if spec.save_interval < 1:
        raise UserError(f"`save_interval` must be at least 1, not {spec.save_interval}")
    flags: dict[str, Value] = {**_COMMON, **(_SFT if spec.stage == "sft" else _RL), **_weights(spec), **spec.args}
    if "rollout-num-gpus" in spec.args and "colocate" not in spec.args:
        flags["colocate"] = None  # GPUs of their own for the engines
    _check_batches(flags, spec.stage)
    flags["num-rollout"] = _total_rollouts(spec, _count(flags, "rollout-batch-size"))
    flags["prompt-data"] = str(spec.data)
    flags["save"] = str(spec.save_dir)
    flags["save-interval"] = spec.save_interval
    flags["save-hf"] = f"{spec.save_dir}/hf/{{rollout_id}}"
    flags["custom-rollout-log-function-path"] = f"{hooks.__name__}.{hooks.custom_rollout_log.__name__}"
    if spec.seed is not None:
        flags["seed"] = spec.seed
        flags.setdefault("rollout-seed", spec.seed)
    return flags | _resume(spec)


def environment(spec: TrainerSpec) -> dict[str, str]:
    """Variables of DESIGN 5.2 under their new and old names, and for slime those of its own scripts."""
    load_dir = str(spec.load_dir) if spec.load_dir else ""
    env = {
        "TRAINSTACK_RUN_ID": spec.run_id,
        "TRAINSTACK_STAGE": spec.stage,
        "TRAINSTACK_ATTEMPT": str(spec.attempt),
        "TRAINSTACK_SAVE_DIR": str(spec.save_dir),
        "TRAINSTACK_LOAD_DIR": load_dir,
        "TRAINSTACK_INIT_DIR": str(spec.init_dir) if spec.init_dir else "",
        "TRAINSTACK_ROLLOUT_DIR": str(spec.rollout_dir),
        hooks.PROGRESS_FILE: str(spec.rollout_dir / f"progress-a{spec.attempt}.jsonl"),
        "RELAY_RUN_ROOT": str(spec.save_dir.parent),
        "RELAY_OUTPUT_DIR": str(spec.save_dir),
        "RELAY_RESUME_FROM": load_dir,
        "RELAY_ROLLOUT_TRAJECTORY_ROOT": str(spec.rollout_dir),
        "RELAY_ROLLOUT_TRAJECTORY_PATTERN": "rollout_{rollout_id:08d}.pt",
        "PYTHONUNBUFFERED": "1",
    }
    if spec.env_url:
        env["TRAINSTACK_ENV_URL"] = spec.env_url
    if spec.kind == "slime":
        slime_dir = spec.slime_dir or HOME / "slime"
        env |= {
            "PYTHONPATH": f"{spec.megatron_dir}:{HOME}:{slime_dir}",  # Megatron first: it has a `tasks` package too
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "no_proxy": "127.0.0.1,localhost",
        }
        if spec.stage == "sft":  # RL offloads with torch_memory_saver, which excludes expandable segments
            env["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return env


def _weights(spec: TrainerSpec) -> dict[str, Value]:
    if spec.init_dir is not None:
        return {"hf-checkpoint": str(spec.init_dir), "ref-load": str(spec.init_dir)}
    if spec.kind == "slime" and "hf-checkpoint" not in spec.args:
        raise UserError("slime needs weights to start from: give `init`, or `hf-checkpoint` and `ref-load` in `args`")
    return {}


def _resume(spec: TrainerSpec) -> dict[str, Value]:
    """`--load` only after a restore: without a tracker slime would start from zero in silence (slime.md 2.4)."""
    if spec.load_dir is None:
        return {}
    if spec.load_dir.resolve() != spec.save_dir.resolve():
        raise UserError(f"{spec.load_dir}: to go on from a checkpoint, restore it into the save dir {spec.save_dir}")
    iteration = read_tracker(spec.save_dir)
    if iteration is None:
        raise TornCheckpoint(f"{spec.save_dir}: no tracker file, so there is nothing to resume from; restore it again")
    return {"load": str(spec.save_dir), "start-rollout-id": iteration + 1}


def _total_rollouts(spec: TrainerSpec, batch: int) -> int:
    """slime's own sum (slime/ray/rollout.py:488-490), done here so that the last iteration is known from the start."""
    if (spec.num_rollout is None) == (spec.num_epoch is None):
        raise UserError(f"stage {spec.stage}: set exactly one of `num_rollout` and `num_epoch`")
    if spec.num_rollout is not None:
        total = spec.num_rollout
    elif spec.data_rows is None:
        raise UserError(f"stage {spec.stage}: `num_epoch` needs the number of data rows; check the data file first")
    else:
        total = spec.data_rows // batch * (spec.num_epoch or 0)
    if total < 1:
        said = f"{spec.data_rows} rows in batches of {batch}" if spec.num_rollout is None else f"num_rollout {total}"
        raise UserError(f"stage {spec.stage}: nothing to train on: {said}; give more data or smaller batches")
    return total


def _check_batches(flags: dict[str, Value], stage: str) -> None:
    """rollout_batch_size * n_samples_per_prompt == global_batch_size * num_steps_per_rollout; fills in the last two."""
    batch, samples = _count(flags, "rollout-batch-size"), _count(flags, "n-samples-per-prompt")
    if stage == "sft" and samples != 1:
        raise UserError(f"--n-samples-per-prompt must be 1 for SFT, not {samples}")
    steps = _count(flags, "num-steps-per-rollout")
    given = flags.get("global-batch-size") is not None
    size = _count(flags, "global-batch-size") if given else batch * samples // steps
    if given and flags.get("num-steps-per-rollout") is None:
        steps = max(1, batch * samples // size)
    if size * steps != batch * samples:
        raise UserError(
            f"batch sizes do not add up: rollout-batch-size {batch} * n-samples-per-prompt {samples} = "
            f"{batch * samples}, but global-batch-size {size} * num-steps-per-rollout {steps} = {size * steps}; "
            "change one of the four in `args`"
        )
    flags["global-batch-size"], flags["num-steps-per-rollout"] = size, steps


def _count(flags: Mapping[str, Value], name: str) -> int:
    value = flags.get(name)
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"trainer flag --{name} must be a whole number from 1 on, not {value!r}")
    return value
