"""Run inside slime's environment: makes slime's own code write its log lines and call our hooks, with made-up figures.

    python -m tests.slime_real.speak <folder>

What the code says goes to standard output and error as in a run; `<folder>/progress.jsonl` is the hooks' file. Modules
that need CUDA stand in as empty ones: none of what is called here uses them.
"""

import importlib
import importlib.util
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

MISSING = (
    "sglang.srt.constants",
    "sglang.srt.server_args",
    "slime.backends.megatron_utils.kernels.fp8_kernel",
    "slime.backends.sglang_utils.sglang_engine",
    "slime.backends.sglang_utils.external",
    "pylatexenc",
    "pylatexenc.latex2text",
)


SETTINGS: dict[str, Any] = {
    "custom_rollout_log_function_path": "plugins.slime.hooks.custom_rollout_log",
    "custom_eval_rollout_log_function_path": "plugins.slime.hooks.custom_eval_rollout_log",
    "loss_type": "policy_loss",
    "advantage_estimator": "grpo",
    "use_distributed_optimizer": True,
    "rollout_top_p": 1.0,
    "rollout_num_gpus": 4,
    **dict.fromkeys(("rollout_batch_size", "n_samples_per_prompt", "n_samples_per_eval_prompt"), 2),
    **dict.fromkeys(("global_batch_size", "num_steps_per_rollout"), 2),
    **dict.fromkeys(("reward_key", "load_debug_rollout_data", "sglang_speculative_algorithm"), None),
    **dict.fromkeys(("log_reward_category", "ci_save_grad_norm", "ci_load_grad_norm"), None),
    **dict.fromkeys(("use_wandb", "use_tensorboard", "wandb_always_use_train_step", "log_passrate"), False),
    **dict.fromkeys(("overlap_param_gather", "overlap_grad_reduce", "reset_optimizer_states", "manual_gc"), False),
    **dict.fromkeys(("enable_mtp_training", "ci_test"), False),
}
"""What of slime's arguments the code looks at that is called here."""


def stand_in() -> None:
    """Empty modules for what this machine cannot have."""
    latex = importlib.util.find_spec("pylatexenc") is not None
    for name in MISSING:
        if not (latex and name.startswith("pylatexenc")):
            sys.modules[name] = mock.MagicMock(name=name)
    importlib.import_module("without_gpu")  # of `stubs`: what Megatron asks of a GPU


def samples() -> list[Any]:
    """Two prompts with two answers each; one is cut off, one was removed."""
    from slime.utils.types import Sample

    text = "Timer train start\n[2026-11-22 20:13:27] model.py:1 - step 999: {'train/loss': 0.0}\n" * 3
    made = []
    for index, status in enumerate(("COMPLETED", "TRUNCATED", "COMPLETED", "ABORTED")):
        sample = Sample(index=index, group_index=index // 2, prompt=text, response=text, response_length=3)
        sample.tokens, sample.loss_mask, sample.reward = [1, 2, 3, 4], [1, 1, 1], float(status == "COMPLETED")
        sample.status, sample.remove_sample = Sample.Status[status], status == "ABORTED"
        made.append(sample)
    return made


def say_rollout(args: Namespace) -> None:
    """The RolloutManager's two functions, with our hooks in them."""
    from slime.ray import rollout

    rollout._log_rollout_data(3, args, samples(), {"rollout/zero_std/count_0": 1}, 12.5)
    found = samples()
    data = {"aime": {"rewards": [sample.reward for sample in found], "truncated": [False] * 4, "samples": found}}
    rollout._log_eval_rollout_data(3, args, data, None)


def say_sample(args: Namespace) -> None:
    """How samples get into the log (slime/rollout/sglang_rollout.py:418)."""
    import logging

    sample = samples()[0]
    shown = [str(sample.prompt) + sample.response]
    logging.getLogger("sglang_rollout").info(f"First rollout sample: {shown}, reward: {sample.reward}")


def say_steps(args: Namespace) -> None:
    """Megatron's side: two steps of one rollout through slime's own training loop."""
    from slime.backends.megatron_utils import model

    good = {"loss": 0.5, "kl_loss": 0.01, "train_rollout_logprob_abs_diff": 0.02}
    steps = iter([(good, 1.5), ({"loss": 0.25}, float("nan"))])

    def one_step(*_args: object, microbatch_pbar: Any, **_more: object) -> tuple[dict[str, float], float]:
        microbatch_pbar.update(4)
        return next(steps)

    alone = {
        "get_data_parallel_rank": 0,
        "get_tensor_model_parallel_rank": 0,
        "get_pipeline_model_parallel_rank": 0,
        "get_pipeline_model_parallel_world_size": 1,
    }
    with mock.patch.multiple(
        model,
        get_args=lambda: args,
        mpu=mock.MagicMock(**{f"{name}.return_value": value for name, value in alone.items()}),
        get_model_config=lambda _module: SimpleNamespace(),
        _disable_tqdm_for_non_main_rank=lambda: False,
        train_one_step=one_step,
    ):
        scheduler = SimpleNamespace(get_lr=lambda _group: 1e-6)
        optimizer = SimpleNamespace(param_groups=[{}], scale_loss=None)
        model.train(3, [mock.MagicMock(role="actor")], optimizer, scheduler, [], [4, 4], [2, 2])


def say_trainer(args: Namespace) -> None:
    """Timers, and the trainer's own line about the rollout's time."""
    from slime.utils.timer import Timer, timer
    from slime.utils.train_metric_utils import log_perf_data_raw

    Timer().seq_lens = [10, 20]
    Timer().start("train_wait")
    Timer().end("train_wait")
    with timer("train"), timer("actor_train"):
        pass
    for name in ("save_model", "update_weights"):
        with timer(name):
            pass
    Timer().timers |= {"actor_train": 4.0, "train": 5.0, "train_wait": 12.5, "save_model": 2.0}
    log_perf_data_raw(3, args, True, lambda seq_lens: float(sum(seq_lens)))


def say_reduced(args: Namespace) -> None:
    """The trainer's `rollout` line (slime/backends/megatron_utils/data.py:193)."""
    import torch
    from slime.backends.megatron_utils import data

    figures = {"raw_reward": 0.5, "response_lengths": torch.tensor(96.5).item(), "truncated": 0.25, "rewards": 0.0}
    with mock.patch.multiple(data, mpu=mock.MagicMock(), gather_and_reduce_log_dict=lambda *_a, **_k: figures):
        data.gather_log_data("rollout", args, 3, {})


def wait_for_gpus(_args: Namespace) -> None:
    """A placement group that comes at the third look."""
    from slime.ray import placement_group as module

    looks = iter([[], [], ["ready"]])
    ray = mock.MagicMock()
    ray.wait.side_effect = lambda *_a, **_k: (next(looks), [])
    ray.cluster_resources.return_value, ray.available_resources.return_value = {"GPU": 4.0}, {}
    ray.get.return_value = [("10.0.0.7", 0)] * 8
    group = mock.MagicMock()
    with mock.patch.multiple(module, ray=ray, placement_group=group, InfoActor=mock.MagicMock()):
        module._create_placement_group(8)


def main(folder: Path) -> None:
    """Say everything, in the order of a run."""
    stand_in()
    import torch.distributed
    from slime.utils.logging_utils import configure_logger

    configure_logger()
    store = torch.distributed.FileStore(str(folder / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    args = Namespace(**SETTINGS)
    for say in (wait_for_gpus, say_sample, say_rollout, say_reduced, say_steps, say_trainer):
        print(f"--- {say.__name__}", flush=True)
        say(args)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
