"""Turn what a stage knows into a trainer's command line, environment and folder (DESIGN 5.2).

slime and its stand-in get the same flags; a `command` trainer gets the environment only. Building reads a restored
checkpoint and a model's argument file, and may make the view to load from (`restart`); starting the process is left to
the caller.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from plugins.errors import UserError
from plugins.slime import hooks
from plugins.slime.cross_checks import check_flags, fill_batches
from plugins.slime.defaults import Machine, owned, stage_defaults
from plugins.slime.flags import Value, model_args, parse_argv, render
from plugins.slime.restart import Restart, restart
from plugins.slime.tracking import tracking_env

HOME = Path(__file__).resolve().parents[2]
"""Folder that holds `plugins/`: what `python -m plugins...` and slime's imports of our code need on their path."""
_SHAPE = ("num-layers", "num-attention-heads", "num-query-groups", "num-experts", "multi-latent-attention")


@dataclass(frozen=True)
class TrainerSpec:
    """All that decides a trainer's start.

    save_dir: where checkpoints appear; load_dir: None on a cold start, else the restored checkpoint's folder, which
    is the save dir; init_dir: Hugging Face folder of weights to start from; ref_dir: the same in Megatron's
    format where slime cannot load that folder; rollout_dir: trajectories and the progress file. num_rollout is the
    absolute total (slime.md 2.4), num_epoch counts over data_rows; one of the two is given.
    args: slime flags without their dashes, they win over our defaults; keys: the recipe's key of a flag, for messages;
    command: the argv of kind `command`. eval_data: name and file of each evaluation set.
    model: name of a `scripts/models/<model>.sh` of slime; shape: flags of that file that checks need, where it is not
    at hand; megatron_dir: where slime's image keeps Megatron-LM; python:
    what runs slime there.
    machine: the GPUs of the stage; nvlink: whether they are joined by NVLink, None where nobody looked.
    asynchronous: RL generates ahead (train_async.py). tracking: flags of W&B and TensorBoard (`tracking_flags`);
    network: variables of a trainer on several nodes (`multi_node_env`).
    """

    kind: Literal["slime", "tinyslime", "command"]
    stage: Literal["sft", "rl"]
    run_id: str
    attempt: int
    save_dir: Path
    rollout_dir: Path
    load_dir: Path | None = None
    init_dir: Path | None = None
    ref_dir: Path | None = None
    data: Path | None = None
    env_url: str | None = None
    save_interval: int = 1
    num_rollout: int | None = None
    num_epoch: int | None = None
    data_rows: int | None = None
    eval_data: Mapping[str, Path] = field(default_factory=dict)
    args: Mapping[str, Value] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    slime_dir: Path | None = None
    seed: int | None = None
    model: str | None = None
    shape: Mapping[str, Value] = field(default_factory=dict)
    megatron_dir: Path = Path("/root/Megatron-LM")
    python: str = "python3"
    machine: Machine = field(default_factory=Machine)
    nvlink: bool | None = None
    asynchronous: bool = False
    tracking: Mapping[str, Value] = field(default_factory=dict)
    network: Mapping[str, str] = field(default_factory=dict)

    @property
    def script(self) -> str:
        """slime's script for this stage; train_async.py draws a batch ahead."""
        return "train_async.py" if self.stage == "sft" or self.asynchronous else "train.py"


@dataclass(frozen=True)
class Launch:
    """How to start the trainer.

    env: additions only, no secrets. expected_last: last rollout id, None if unknown. architecture: the model's own
    arguments as slime's script gave them, part of argv. load_dir: the folder to go on from, None on a cold start: the
    save dir or a view of it. notes: what a resume changes, for the stage's log.
    """

    argv: list[str]
    env: dict[str, str]
    cwd: Path
    expected_last: int | None
    architecture: list[str] = field(default_factory=list)
    load_dir: Path | None = None
    notes: tuple[str, ...] = ()


def build(spec: TrainerSpec) -> Launch:
    """Build argv, environment and folder of the stage's trainer.

    Raises UserError for a flag that is ours, a length or batch sizes that do not add up, a missing command or
    weights, a checkpoint that these flags cannot go on from; TornCheckpoint when slime would not go on from load_dir.
    """
    if spec.kind == "command":
        if not spec.command:
            raise UserError("trainer kind `command` needs a command: the argv list to run")
        last = None if spec.num_rollout is None else spec.num_rollout - 1
        env = environment(spec)
        return Launch(list(spec.command), env, spec.slime_dir or HOME, last, load_dir=spec.load_dir)
    slime_dir = spec.slime_dir or HOME / "slime"
    architecture = model_args(slime_dir, spec.model) if spec.model and spec.kind == "slime" else []
    flags = trainer_flags(spec, architecture)
    last = int(str(flags["num-rollout"])) - 1
    resumed = _resume(spec, flags)
    load_dir, notes = (resumed.load_dir, resumed.notes) if resumed else (None, ())
    flags |= resumed.flags if resumed else {}
    env = environment(replace(spec, load_dir=load_dir))
    if spec.kind == "tinyslime":
        module = f"plugins.tinyslime.{Path(spec.script).stem}"
        return Launch([sys.executable, "-m", module, *render(flags)], env, HOME, last, load_dir=load_dir, notes=notes)
    argv = [spec.python, spec.script, *architecture, *render(flags)]
    return Launch(argv, env, slime_dir, last, architecture, load_dir, notes)


def trainer_flags(spec: TrainerSpec, architecture: Sequence[str] = ()) -> dict[str, Value]:
    """The flags of a slime or tinyslime stage: ours, under the recipe's, under those that the launcher owns.

    architecture: the model's own arguments, which come before all of them.
    """
    for name in spec.args:
        if (reason := owned(name)) is not None:
            raise UserError(f"{spec.keys.get(name, f'extra_args.{name}')}: --{name} cannot be set: {reason}")
    if twice := sorted(spec.tracking.keys() & spec.args.keys()):
        raise UserError(f"extra_args.{twice[0]}: set twice: the recipe's `tracking` sets it too")
    if spec.data is None:
        raise UserError(f"stage {spec.stage} has no data: set the recipe's `data` to a .jsonl or .parquet file")
    if spec.save_interval < 1:
        raise UserError(f"`save_interval` must be at least 1, not {spec.save_interval}")
    shape = {**spec.shape, **parse_argv(architecture)} | {
        name: value for name, value in spec.args.items() if name in _SHAPE
    }
    flags = (
        stage_defaults(spec.stage, spec.args, spec.machine, environment=spec.env_url is not None)
        | _weights(spec)
        | dict(spec.args)
    )
    if not shape.get("multi-latent-attention"):
        flags.setdefault("attention-backend", "flash")  # slime's scripts set it for all models but those with MLA
    fill_batches(flags, spec.stage, spec.keys)
    batch = _count(flags, "rollout-batch-size")
    if spec.data_rows is not None and spec.num_epoch is None and spec.data_rows < batch:
        key = spec.keys.get("rollout-batch-size", "extra_args.rollout-batch-size")
        raise UserError(
            f"{key}: {batch} prompts are more than the data's {spec.data_rows} rows; slime would take fewer"
        )
    flags["num-rollout"] = _total_rollouts(spec, batch)
    flags["prompt-data"] = str(spec.data)
    if spec.eval_data:
        flags["eval-prompt-data"] = [word for name, path in spec.eval_data.items() for word in (name, str(path))]
    gpus = spec.machine if spec.kind == "slime" else None
    check_flags(
        flags,
        spec.stage,
        gpus,
        shape,
        spec.keys,
        asynchronous=spec.script == "train_async.py",
        environment=spec.env_url is not None,
    )
    flags |= spec.tracking
    flags["save"] = str(spec.save_dir)
    flags["save-interval"] = spec.save_interval
    flags["save-hf"] = f"{spec.save_dir}/hf/{{rollout_id}}"
    flags["custom-rollout-log-function-path"] = f"{hooks.__name__}.{hooks.custom_rollout_log.__name__}"
    flags["custom-eval-rollout-log-function-path"] = f"{hooks.__name__}.{hooks.custom_eval_rollout_log.__name__}"
    if spec.seed is not None:
        flags["seed"] = spec.seed
        flags.setdefault("rollout-seed", spec.seed)
    return flags


def environment(spec: TrainerSpec) -> dict[str, str]:
    """Variables of DESIGN 5.2 under their new and old names, and for slime those of its own scripts."""
    load_dir = str(spec.load_dir) if spec.load_dir else ""
    env = {
        "TRAINSTACK_RUN_ID": spec.run_id,
        "TRAINSTACK_STAGE": spec.stage,
        "TRAINSTACK_ATTEMPT": str(spec.attempt),
        "TRAINSTACK_SAVE_DIR": str(spec.save_dir),
        "TRAINSTACK_SAVE_INTERVAL": str(spec.save_interval),
        "TRAINSTACK_LOAD_DIR": load_dir,
        "TRAINSTACK_INIT_DIR": str(spec.init_dir) if spec.init_dir else "",
        "TRAINSTACK_ROLLOUT_DIR": str(spec.rollout_dir),
        hooks.PROGRESS_FILE: str(spec.rollout_dir / f"progress-a{spec.attempt}.jsonl"),
        "RELAY_TRAIN_MODE": spec.stage,
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
        if spec.machine.nodes == 1:
            env["SLIME_HOST_IP"] = "127.0.0.1"  # else router and engines listen on the machine's outer address
        if spec.nvlink is not None:
            env["NCCL_NVLS_ENABLE"] = str(int(spec.nvlink))
        if spec.tracking:
            folder = spec.save_dir.parent if spec.tracking.get("use-tensorboard") else None
            env |= tracking_env(spec.run_id, spec.stage, folder)
        if spec.stage == "sft":  # RL offloads with torch_memory_saver, which excludes expandable segments
            env["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return {**env, **spec.network}


def _weights(spec: TrainerSpec) -> dict[str, Value]:
    if spec.init_dir is not None:
        return {"hf-checkpoint": str(spec.init_dir), "ref-load": str(spec.ref_dir or spec.init_dir)}
    if spec.kind == "slime" and "hf-checkpoint" not in spec.args:
        raise UserError("model.hf_checkpoint: missing; slime needs weights to start from (or rl.init)")
    return {}


def _resume(spec: TrainerSpec, flags: Mapping[str, Value]) -> Restart | None:
    """`--load` only after a restore: without a tracker slime would start from zero in silence (slime.md 2.4)."""
    if spec.load_dir is None:
        return None
    if spec.load_dir.resolve() != spec.save_dir.resolve():
        raise UserError(f"{spec.load_dir}: to go on from a checkpoint, restore it into the save dir {spec.save_dir}")
    return restart(spec.save_dir, spec.save_dir.parent / "load", flags, script=spec.script, rows=spec.data_rows)


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


def _count(flags: Mapping[str, Value], name: str) -> int:
    value = flags.get(name)
    return value if isinstance(value, int) else 1
