"""Run inside slime's environment: makes slime, Megatron and transformers fail as in a run, each with a traceback.

    python -m tests.slime_real.fail <folder>

Before each traceback stands a line `=== <name>`: the name under which `plugins.slime.causes` knows the failure.
"""

import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from tests.slime_real.speak import samples, stand_in


def model_args_mismatch(_folder: Path) -> None:
    from slime.backends.megatron_utils.arguments import _hf_validate_args

    _hf_validate_args(Namespace(hidden_size=896, rotary_base=10000), SimpleNamespace(hidden_size=1024, rope_theta=1e6))


def batch_sizes(_folder: Path) -> None:
    from megatron.core.num_microbatches_calculator import ConstantNumMicroBatchesCalculator

    ConstantNumMicroBatchesCalculator(6, 4, 1, False, 0)


def parallel_sizes(_folder: Path) -> None:
    from megatron.core.utils import ensure_divisibility

    ensure_divisibility(14, 4)


def lr_schedule_changed(_folder: Path) -> None:
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    scheduler = OptimizerParamScheduler.__new__(OptimizerParamScheduler)
    scheduler.override_opt_param_scheduler = scheduler.use_checkpoint_opt_param_scheduler = False
    scheduler._check_and_set(640, 320, "total number of iterations")


def gradient_not_finite(_folder: Path) -> None:
    import torch
    from megatron.core.rerun_state_machine import RerunMode, RerunStateMachine

    message = (
        "found NaN in local grad norm for bucket #0 in backward pass before data-parallel communication collective"
    )
    with mock.patch("torch.cuda.current_device", return_value=0):
        machine = RerunStateMachine(mode=RerunMode.DISABLED)
        machine.validate_result(torch.tensor(float("nan")), torch.isnan, message=message, tolerance=0.001, fatal=True)


def tracker_torn(folder: Path) -> None:
    from megatron.training import checkpointing

    (folder / "tracker.txt").write_text("garbage")
    checkpointing.read_metadata(str(folder / "tracker.txt"))


def prompt_data_missing(folder: Path) -> None:
    from slime.utils.data import read_file

    list(read_file(str(folder / "nowhere.jsonl")))


def no_trainable_token(_folder: Path) -> None:
    from slime.ray.rollout import RolloutManager

    sample = samples()[0]
    sample.response_length, sample.loss_mask = 0, [0] * 12  # as SFT makes of such a row
    actor = SimpleNamespace(
        custom_convert_samples_to_train_data_func=None,
        _post_process_rewards=lambda rows: ([0.0], [0.0]),
        args=Namespace(),
    )
    RolloutManager.__ray_metadata__.modified_class._convert_samples_to_train_data(actor, [sample])


def gpus_per_node(_folder: Path) -> None:
    from slime.ray.rollout_validation import validate_server_group_gpu_indices

    counts = dict.fromkeys(
        ("num_gpus_per_engine", "num_gpus_per_engine_on_node", "rollout_num_gpus_per_engine", "rollout_num_gpus"), 8
    )
    validate_server_group_gpu_indices(
        worker_type="regular", gpu_offset=0, num_engines=1, num_available_gpus=4, **counts
    )


def model_unknown(folder: Path) -> None:
    from transformers import AutoConfig

    (folder / "config.json").write_text('{"model_type": "of-next-year"}')
    AutoConfig.from_pretrained(str(folder))


def hub_not_found(_folder: Path) -> None:
    from transformers import AutoConfig

    AutoConfig.from_pretrained("/root/weights/nowhere")


def hub_denied(_folder: Path) -> None:
    from huggingface_hub.utils import _http as hub

    http = getattr(hub, "httpx2", None) or hub.httpx
    request = http.Request("GET", "https://huggingface.co/api/models/a/b")
    hub.hf_raise_for_status(http.Response(401, request=request, headers={"X-Error-Code": "GatedRepo"}))


FAILURES: tuple[Callable[[Path], None], ...] = (
    model_args_mismatch,
    batch_sizes,
    parallel_sizes,
    lr_schedule_changed,
    gradient_not_finite,
    tracker_torn,
    prompt_data_missing,
    no_trainable_token,
    gpus_per_node,
    model_unknown,
    hub_not_found,
    hub_denied,
)


def main(folder: Path) -> None:
    """Fail in every way."""
    stand_in()
    for failure in FAILURES:
        own = folder / failure.__name__
        own.mkdir()
        print(f"=== {failure.__name__.replace('_', '-')}", flush=True)
        try:
            failure(own)
        except SystemExit:
            print("the process ends here", flush=True)
        except BaseException:
            traceback.print_exc(file=sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
