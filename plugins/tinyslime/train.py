"""`python -m plugins.tinyslime.train <slime's flags>`: SFT or GRPO on a CPU, for machines on which slime cannot run.

This module stands for slime's train.py, `train_async` for the script of that name, which draws a batch ahead.
This is a stand-in: a real, tiny training that takes slime's flags, prints its log lines, and writes, resumes and
exports its checkpoints. Runs with the same flags give the same bits on one machine, cut and resumed or not. Exit
codes: 0 done, 2 the user must change something, 1 anything else; a signal ends it at once.

Environment, for tests and demonstrations: see `faults`.
"""

from __future__ import annotations

import signal
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from plugins.errors import TrainstackError, UserError
from plugins.slime import layout
from plugins.tinyslime import checkpoint, export, flags, log, nodes
from plugins.tinyslime.checkpoint import Training
from plugins.tinyslime.config import ModelConfig
from plugins.tinyslime.data import Drawn, batches_of
from plugins.tinyslime.faults import Faults
from plugins.tinyslime.grpo import GrpoStage
from plugins.tinyslime.model import TinyLlama
from plugins.tinyslime.rollout import Rollouts
from plugins.tinyslime.sft import SftStage
from plugins.tinyslime.step import Schedule, make_optimizer, train_step
from plugins.tinyslime.tokenizer import ByteTokenizer

THREADS = 1
"""Fixed, because another number of threads adds up in another order and gives other bits. One also suits a shared
machine.
"""


def main(argv: Sequence[str] | None = None, *, ahead: bool = False) -> int:
    """Run with `argv` (default: the process's) and give the exit code. ahead: in the order of train_async.py."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever started us may have had it ignored
    try:
        train(flags.parse(sys.argv[1:] if argv is None else argv), ahead=ahead)
    except TrainstackError as error:
        print(f"tinyslime: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("tinyslime: interrupted", file=sys.stderr, flush=True)
        return 130
    return 0


def train(args: Namespace, *, ahead: bool = False) -> None:
    """The whole run: start weights, resume, rollouts, steps, saves."""
    if ahead and getattr(args, "colocate", False):
        raise UserError("train_async cannot run with --colocate, as slime's cannot (train_async.py:11)")
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # costs time, unread
    torch.manual_seed(args.seed)
    faults = Faults.from_env()
    if faults.ignore_load:
        args.load = None
    _tell_no_effect(args)
    _prepare_save_dir(args)
    model = _start_model(args)
    tokenizer = ByteTokenizer()
    stage: SftStage | GrpoStage
    if flags.is_sft(args):
        stage = SftStage(args, tokenizer, model)
    else:
        reference = _reference(args, model.config)
        stage = GrpoStage(args, model, reference, Rollouts(args, tokenizer, model))
    try:
        with nodes.held(args) as held:
            _loop(args, model, stage, faults, held, ahead=ahead)
    finally:
        stage.close()


def _loop(
    args: Namespace, model: TinyLlama, stage: SftStage | GrpoStage, faults: Faults, held: nodes.Held, *, ahead: bool
) -> None:
    per_epoch = len(stage.source) // args.rollout_batch_size if args.num_rollout is None else None
    num_rollout = args.num_rollout if per_epoch is None else per_epoch * args.num_epoch
    if num_rollout < 1:
        raise UserError(
            f"nothing to train: {len(stage.source)} rows make no --rollout-batch-size {args.rollout_batch_size}"
        )
    args.num_rollout = num_rollout  # as slime does, so that a checkpoint says it
    training = Training(args, model, make_optimizer(model, args), Schedule(args, num_rollout), stage.source, faults)
    start = _resume(training)
    if start >= num_rollout:
        log.say(f"nothing to do: the last of {num_rollout} rollouts is done")
    stage.update_weights()
    save_s: float | None = None
    following = stage.generate(start) if ahead else None  # also when nothing is left to do, as slime does
    for rollout_id in range(start, num_rollout):
        if not ahead and _eval_due(args, rollout_id, before=True) and isinstance(stage, GrpoStage):
            stage.evaluate(rollout_id)
        began = time.monotonic()
        batch = following or stage.generate(rollout_id)
        if ahead and rollout_id + 1 < num_rollout:
            following = stage.generate(rollout_id + 1)
        held.meet(rollout_id)
        _one_rollout(training, stage, rollout_id, batch, began, save_s)
        time.sleep(faults.step_delay_s)
        last = rollout_id == num_rollout - 1
        due = last or any((rollout_id + 1) % every == 0 for every in (args.save_interval, per_epoch) if every)
        save_s = None
        if args.save and due:
            began = time.monotonic()
            checkpoint.save(training, rollout_id, last=last)
            save_s = time.monotonic() - began
        stage.update_weights()
        if _eval_due(args, rollout_id, before=False) and isinstance(stage, GrpoStage):
            stage.evaluate(rollout_id)


def _one_rollout(
    training: Training,
    stage: SftStage | GrpoStage,
    rollout_id: int,
    batch: Drawn,
    began: float,
    save_s: float | None,
) -> None:
    """Train on a rollout, and say so in slime's lines; the save before it too, as slime does one later."""
    args = training.args
    log.metrics("rollout", rollout_id, stage.take(batch))
    training.faults.crash_if_due(rollout_id)
    rolled = time.monotonic()
    for step in range(args.num_steps_per_rollout):
        rows = range(step * args.global_batch_size, (step + 1) * args.global_batch_size)
        batches = batches_of(args, [stage.tokens[row] for row in rows], [stage.masks[row] for row in rows])
        values = train_step(
            training.model, training.optimizer, training.schedule, batches, stage.loss_function(rows), args
        )
        number = rollout_id * args.num_steps_per_rollout + step
        log.metrics("step", number, values | {"train/step": number})
    training.faults.log_batch(rollout_id, batch.prompts)
    train_s = time.monotonic() - rolled
    tokens = sum(map(len, stage.tokens))
    perf = {"train_wait_time": rolled - began, "actor_train_time": train_s, "actor_train_tok_per_s": tokens / train_s}
    if save_s is not None:
        perf["save_model_time"] = save_s
    values = {f"perf/{name}": value for name, value in perf.items()}
    log.metrics("perf", rollout_id, values | {"perf/step_time": time.monotonic() - began})


def _resume(training: Training) -> int:
    """Load what `--load` holds; gives the first rollout to do. Without a tracker there the run starts cold, as
    slime's does, which then takes `--ref-load` for `--load` and looks for a data cursor there (arguments.py:1817-1838).
    """
    args = training.args
    iteration = checkpoint.resume(training) if args.load else None
    if args.start_rollout_id is not None:
        start = int(args.start_rollout_id)
    else:
        start = 0 if iteration is None else iteration + 1
    if folder := args.ref_load if iteration is None else args.load:
        checkpoint.load_cursor(training, Path(folder), start - 1)
    return start


def _start_model(args: Namespace) -> TinyLlama:
    """The model with its start weights: `--load` or `--ref-load` or `--hf-checkpoint`, the first that holds some,
    else random.
    """
    resumes = args.load is not None and layout.read_tracker(Path(args.load)) is not None
    load = [args.load] if args.load and not resumes and (Path(args.load) / "config.json").is_file() else []
    named = [Path(folder) for folder in (*load, args.ref_load, args.hf_checkpoint) if folder]
    for folder in named:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of weights")
    described = next((folder for folder in named if (folder / "config.json").is_file()), None)
    model = TinyLlama(ModelConfig.from_args(args, export.read_config(described) if described else None))
    if resumes:
        return model
    if named:
        _read_weights(named[0], model)
        log.say(f"start weights from {named[0]}")
    else:
        log.say(f"start weights random, from --seed {args.seed}")
    return model


def _reference(args: Namespace, config: ModelConfig) -> TinyLlama | None:
    """The fixed model that `--use-kl-loss` keeps near: always `--ref-load`, on a resume too."""
    if not args.use_kl_loss:
        return None
    reference = TinyLlama(config)
    _read_weights(Path(args.ref_load), reference)
    return reference


def _read_weights(folder: Path, model: TinyLlama) -> None:
    if (folder / "config.json").is_file():
        export.read_weights(model, folder)
    else:
        checkpoint.read_model(folder, model)


def _prepare_save_dir(args: Namespace) -> None:
    """Find out before training that nothing could be saved."""
    if args.save:
        try:
            Path(args.save).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--save {args.save}: cannot be made: {error.strerror}") from error


def _eval_due(args: Namespace, rollout_id: int, *, before: bool) -> bool:
    """slime evaluates before rollout 0 and after every `--eval-interval` rollouts."""
    if args.eval_interval is None:
        return False
    return rollout_id == 0 and not args.skip_eval_before_train if before else (rollout_id + 1) % args.eval_interval == 0


def _tell_no_effect(args: Namespace) -> None:
    given = [name for name in flags.NO_EFFECT if hasattr(args, name.replace("-", "_"))]
    if given:
        log.say(f"tinyslime is a stand-in on the CPU: no effect of --{', --'.join(given)}")


if __name__ == "__main__":
    sys.exit(main())
