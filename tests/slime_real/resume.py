"""What slime and Megatron themselves make of a checkpoint: asked in their own code, one question after the other.

    python resume.py loads <questions.json> <arguments of train.py>      what `--load` leads to
    python resume.py schedules <questions.json>                          whether a schedule is taken up
    python resume.py writes <save dir> <iteration>                       a checkpoint by Megatron's own writer

cwd: slime's folder; environment: see __init__.py. The last line of standard output is JSON.
"""

import contextlib
import copy
import importlib.machinery
import json
import multiprocessing
import os
import sys
import tempfile
import types
from argparse import Namespace
from pathlib import Path


def loads(questions, argv):
    """Each question: {"load": path or null, "ckpt_step": number or null}; where slime then starts, or why it ends."""
    import slime.utils.arguments as arguments
    from slime.backends.megatron_utils import checkpoint as slime_checkpoint

    given = []

    def keep(args):
        given.append(copy.deepcopy(args))
        raise Stop

    validate, arguments.slime_validate_args = arguments.slime_validate_args, keep
    sys.argv = ["train.py", *argv]
    with contextlib.suppress(Stop):
        arguments.parse_args()
    return [_load(validate, slime_checkpoint, copy.deepcopy(given[0]), **question) for question in questions]


class Stop(Exception):
    """Parsing is over, validation has not begun."""


def _load(validate, slime_checkpoint, args, load, ckpt_step):
    """As the driver validates, then as an actor loads: checkpoint.py `load_checkpoint`, Megatron's base state, and
    actor.py:89-114 for the rollout that comes first.
    """
    from megatron.training import checkpointing

    args.load, args.ckpt_step, args.start_rollout_id = load, ckpt_step, None
    try:
        validate(args)
        megatron = slime_checkpoint._is_megatron_checkpoint(args.load)
        answer = {"from": "given" if args.load == load else "ref", "fresh": bool(args.finetune), "start": None}
        iteration = 0
        if megatron:
            state, _, release, _ = checkpointing._load_base_checkpoint(args.load, args, rank0=True)
            if state is None:
                return {"error": "nothing is loaded"}
            iteration = 0 if release or args.finetune else state["iteration"]
            answer["release"] = release
        answer["start"] = args.start_rollout_id if args.start_rollout_id is not None else iteration + 1
        return answer
    except BaseException as error:  # SystemExit, and torch's CheckpointException is no Exception
        code = error.code if isinstance(error, SystemExit) else 1
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[:1]}", "exit_code": code or 0}


def schedules(questions):
    """Each question: {"saved": args, "now": args}; whether Megatron goes on, and the rate it then trains with."""
    import torch
    from slime.backends.megatron_utils.model import get_optimizer_param_scheduler

    def made(args):
        group = {"max_lr": args["lr"], "min_lr": args["min_lr"], "params": [torch.nn.Parameter(torch.ones(1))]}
        optimizer = torch.optim.Adam(
            [group]
        )  # with what Megatron puts into its groups (core/optimizer/__init__.py:205-220)
        return get_optimizer_param_scheduler(Namespace(**args), optimizer), optimizer

    answers = []
    for question in questions:
        before, their = made(question["saved"])
        before.step(question["steps"])
        try:
            after, ours = made(question["now"])
            ours.load_state_dict(their.state_dict())  # first, as Megatron does (checkpointing.py:1785-1818)
            after.load_state_dict(before.state_dict())
            answers.append(
                {"numbers": after.state_dict(), "lr": ours.param_groups[0]["lr"], "saved": before.state_dict()}
            )
        except AssertionError as error:
            answers.append({"refused": str(error), "saved": before.state_dict()})
    return answers


def writes(save_dir, iteration):
    """A checkpoint of some tensors on the CPU, in the order and by the code of Megatron's and slime's save."""
    import torch
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
    from megatron.training.checkpointing import get_checkpoint_name, get_checkpoint_tracker_filename

    torch.cuda.synchronize, torch.cuda.current_device = lambda *_: None, lambda: "cpu"
    store = torch.distributed.FileStore(tempfile.mktemp(), 1)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    folder = Path(get_checkpoint_name(save_dir, iteration, return_base_dir=True))
    folder.mkdir(parents=True)
    tensors = {name: ShardedTensor.from_rank_offsets(name, torch.randn(64, 33)) for name in ("decoder.w", "output.w")}
    state = {
        "args": Namespace(rollout_batch_size=4, n_samples_per_prompt=1, num_rollout=9, tensor_model_parallel_size=2),
        "iteration": iteration,
        "checkpoint_version": 3.0,
        "model": tensors,
        "opt_param_scheduler": {"max_lr": 1e-5, "num_steps": 16},
        "rng_state": ShardedObject("rng_state", [torch.get_rng_state()], (1,), (0,)),
    }
    metadata = {"distrib_optim_sharding_type": "dp_reshardable", "chained_optim_avoid_prefix": True}
    dist_checkpointing.save(state, str(folder), content_metadata=metadata)
    Path(get_checkpoint_tracker_filename(save_dir)).write_text(str(iteration))
    _data_source(save_dir).save(iteration)
    loaded = dist_checkpointing.load({"model": copy.deepcopy(tensors)}, str(folder))
    return {"files": sorted(path.name for path in folder.iterdir()), "loads": sorted(loaded["model"])}


def _data_source(save_dir):
    from slime.rollout.data_source import RolloutDataSource

    args = Namespace(rollout_global_dataset=True, prompt_data=None, save=save_dir, n_samples_per_prompt=1)
    source = RolloutDataSource(args)
    source.get_samples(20)
    source.sample_offset = 20
    return source


def main(question, *rest):
    answer = os.dup(1)
    os.dup2(2, 1)
    import sglang.srt.server_args  # noqa: F401 - what a GPU machine has, before Megatron is imported

    memory = types.SimpleNamespace(memory_info=lambda: types.SimpleNamespace(rss=0))
    psutil = types.ModuleType("psutil")
    psutil.__spec__, psutil.Process = importlib.machinery.ModuleSpec("psutil", None), lambda *_: memory
    sys.modules["psutil"] = psutil  # for the figures in Megatron's and slime's logs
    if question == "writes":
        said = writes(rest[0], int(rest[1]))
    else:
        questions = json.loads(Path(rest[0]).read_text())
        said = loads(questions, rest[1:]) if question == "loads" else schedules(questions)
    sys.stdout.flush()
    os.write(answer, (json.dumps({"said": said}) + "\n").encode())
    for child in multiprocessing.active_children():
        child.kill()  # Megatron's queue of results, which would hold our standard output open
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
