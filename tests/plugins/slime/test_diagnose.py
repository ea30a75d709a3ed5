"""What a trainer died of: told from the words of slime, Megatron, torch, Ray and the Hub, never from a sample's."""

import re
from datetime import datetime

import pytest

from plugins.slime.causes import CAUSES
from plugins.slime.diagnose import diagnose
from plugins.slime.progress import format_line

TRAINER = "\x1b[36m(MegatronTrainRayActor pid=1234)\x1b[0m "
ROLLOUTS = "(RolloutManager pid=77) "
ENGINE = "(SGLangEngine pid=99, ip=10.0.0.7) "
STAMP = "[2026-11-22 20:13:27] "


def traceback(error: str, *frames: str, prefix: str = "", rank: str = "") -> list[str]:
    shown = frames or ("train.py",)
    lines = ["Traceback (most recent call last):", *(f'  File "/root/{frame}", line 5, in f' for frame in shown)]
    return [f"{prefix}{rank}{line}" for line in [*lines, "    work()", *error.split("\n")]]


def driver(error: str, *frames: str, actor: str = "MegatronTrainRayActor.train()") -> list[str]:
    """How the driver reports an actor's exception: its own frames, then the actor's."""
    kind = error.partition(":")[0].rpartition(".")[2]
    head = f"ray.exceptions.RayTaskError({kind}): ray::{actor} (pid=1234, ip=10.0.0.7, actor_id=4fe1, repr=<x>)"
    actors = [f'  File "/root/slime/{frame}", line 9, in g' for frame in frames]
    return [*traceback(head), *actors, "    work()", *error.split("\n")]


OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB."
NCCL = (
    "torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, "
    "unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.3\n"
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error."
)
HEADS = "AssertionError: world size (6) is not divisible by total_model_size (total_model_size=4)"
NAN = (
    "RuntimeError: Rank 0, node p, device 0, iteration 4: Unexpected result nan (message='found NaN in local grad norm "
    "for bucket #0 in backward pass before data-parallel communication collective')"
)
DIED = (
    "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.\n"
    "\tclass_name: MegatronTrainRayActor\n\tactor_id: 4fe1\n\tpid: 1234\n"
)

CASES = [
    ("cuda-out-of-memory-training", driver(OOM, "slime/backends/megatron_utils/model.py"), "recipe"),
    ("cuda-out-of-memory-loading", driver(OOM, "megatron/core/x.py", actor="MegatronTrainRayActor.init()"), "recipe"),
    ("cuda-out-of-memory-engine", traceback(OOM, "sglang/srt/model_executor.py", prefix=ENGINE), "recipe"),
    ("cuda-out-of-memory-training", traceback(OOM, prefix=TRAINER, rank="[rank0]: "), "recipe"),
    (
        "engine-no-room",
        [
            f"{ENGINE}{STAMP[:-2]} TP0] Scheduler hit an exception: Traceback (most recent call last):",
            f'{ENGINE}  File "/sgl/sglang/srt/scheduler.py", line 3, in run',
            f"{ENGINE}RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
            *driver("Exception: Server process terminated unexpectedly.", actor="SGLangEngine.init()"),
        ],
        "recipe",
    ),
    ("engine-start", driver("Exception: Server process terminated unexpectedly."), "recipe"),
    (
        "engine-illegal-access",
        traceback("RuntimeError: CUDA error: an illegal memory access was encountered", "sglang/a.py", prefix=ENGINE),
        "recipe",
    ),
    (
        "host-out-of-memory",
        [
            *traceback(f"{DIED}The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"),
            "(raylet) 2 worker(s) were killed due to the node running low on memory. Memory on the node was 503GB",
        ],
        "recipe",
    ),
    ("host-out-of-memory", traceback("ray.exceptions.OutOfMemoryError: Task was killed due to the node..."), "recipe"),
    (
        "host-out-of-memory",
        traceback(f"{DIED}The actor is dead because its worker process has died. Worker exit type: NODE_OUT_OF_MEMORY"),
        "recipe",
    ),
    ("host-out-of-memory-saving", driver("MemoryError", "slime/save_checkpoint.py"), "recipe"),
    ("actor-died", traceback(f"{DIED}Worker exit type: SYSTEM_ERROR Worker exit detail: ... OOM killer"), "unknown"),
    ("nccl-system-error", traceback(NCCL), "pod"),
    (
        "nccl-timeout",
        [
            "[rank0]:[E1218 20:27:21.426415540 ProcessGroupNCCL.cpp:629] [Rank 0] Watchdog caught collective operation "
            "timeout: WorkNCCL(SeqNum=1, OpType=BROADCAST) ran for 600081 milliseconds before timing out.",
            *traceback(DIED),
        ],
        "unknown",
    ),
    (
        "nccl-nvls",
        ["p:17:44 [0] transport/nvls.cc:254 NCCL WARN Cuda failure 800 'operation not permitted'", *traceback(NCCL)],
        "recipe",
    ),
    (
        "shared-memory-full",
        [
            "p:17:44 [0] misc/shmutils.cc:72 NCCL WARN Error while creating shared memory segment /dev/shm/nccl-x",
            *traceback(NCCL),
        ],
        "pod",
    ),
    ("gpu-fault", traceback("RuntimeError: CUDA error: uncorrectable ECC error encountered"), "pod"),
    ("gpu-fault", ["[12.3] NVRM: Xid (PCI:0000:17:00): 79, GPU has fallen off the bus.", *traceback(DIED)], "pod"),
    (
        "cuda-start",
        traceback("RuntimeError: CUDA driver initialization failed, you might not have a CUDA gpu."),
        "pod",
    ),
    ("cuda-start", traceback("RuntimeError: No CUDA GPUs are available"), "pod"),
    ("port-in-use", traceback("OSError: [Errno 98] Address already in use"), "unknown"),
    (
        "placement-group",
        [
            f"{STAMP}placement_group.py:64 - Waiting for placement group of 8 GPUs (elapsed {s}s): 4 GPUs registered "
            "with Ray, 4 available."
            for s in (30, 60)
        ],
        "recipe",
    ),
    (
        "gpus-per-node",
        traceback("ValueError: Invalid rollout server group GPU placement: worker_type=regular, gpu_offset=0"),
        "recipe",
    ),
    (
        "model-args-mismatch",
        driver(
            "AssertionError: hf_validate_args failed: hidden_size in hf config 1024 is not equal to hidden_size 896, "
            "please check the config."
        ),
        "recipe",
    ),
    ("tokenizer", traceback("OSError: Can't load tokenizer for '/root/w'. If you were trying..."), "recipe"),
    ("model-unknown", traceback("ValueError: The checkpoint you are trying to load has model type `q9` but"), "recipe"),
    (
        "weights-do-not-fit",
        traceback("RuntimeError: Error(s) in loading state_dict for GPTModel:\n\tsize mismatch for embedding"),
        "recipe",
    ),
    ("parallel-sizes", traceback(HEADS), "recipe"),
    ("parallel-sizes", traceback("AssertionError: 14 is not divisible by 4"), "recipe"),
    (
        "batch-sizes",
        driver("AssertionError: num_rollouts (4) < global_batch_size (8); need at least one rollout per step."),
        "recipe",
    ),
    (
        "lr-schedule-changed",
        driver(
            "AssertionError: OptimizerParamScheduler: class input value 640 and checkpointvalue 320 for total number "
            "of iterations do not match"
        ),
        "recipe",
    ),
    (
        "parallel-sizes-changed",
        driver(
            "RuntimeError: (TP, PP) mismatch after resume ((2, 1) vs (1, 1) from checkpoint): not supported for "
            "DistributedOptimizer with sharding type dp_reshardable."
        ),
        "recipe",
    ),
    ("optimizer-not-saved", driver("KeyError: 'optimizer'"), "recipe"),
    ("tracker-torn", [f"{TRAINER}ERROR: Invalid metadata file /w/save/latest_x.txt. Exiting"], "unknown"),
    (
        "inductor-cache",
        traceback("json.decoder.JSONDecodeError: Expecting value: line 1", "torch/_inductor/codecache.py"),
        "recipe",
    ),
    ("gradient-not-finite", driver(NAN), "recipe"),
    ("no-trainable-token", driver("AssertionError: loss mask length 12 != response length 0"), "recipe"),
    ("loss-mask-length", driver("AssertionError: loss mask length 12 != response length 11"), "recipe"),
    ("disk-full", driver("OSError: [Errno 28] No space left on device: '/w/save/iter_0000009'"), "recipe"),
    ("prompt-data-missing", driver("FileNotFoundError: Prompt dataset path '/d/x.jsonl' does not exist."), "recipe"),
    ("file-missing", traceback("FileNotFoundError: [Errno 2] No such file or directory: '/root/w'"), "recipe"),
    ("no-permission", traceback("PermissionError: [Errno 13] Permission denied: '/x'"), "recipe"),
    ("hub-denied", traceback("OSError: You are trying to access a gated repo.\nMake sure to have access"), "recipe"),
    ("hub-denied", traceback("huggingface_hub.errors.HfHubHTTPError: 401 Client Error."), "recipe"),
    (
        "hub-not-found",
        traceback("OSError: a/b is not a local folder and is not a valid model identifier listed on"),
        "recipe",
    ),
    (
        "device-max-connections",
        traceback(
            "AssertionError: Using tensor model parallelism or context parallelism require setting the environment "
            "variable CUDA_DEVICE_MAX_CONNECTIONS to 1"
        ),
        "recipe",
    ),
    ("colocated-async", traceback("AssertionError: Colocation is not supported for async training."), "recipe"),
    ("module-missing", traceback("ModuleNotFoundError: No module named 'mine.reward'"), "recipe"),
]


@pytest.mark.parametrize(("name", "lines", "mend"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)])
def test_a_known_death_is_named_with_who_can_mend_it(name: str, lines: list[str], mend: str) -> None:
    noise = format_line("step", 5, {"train/loss": 0.5}, file="model.py", line=9, now=datetime(2030, 1, 1))
    found = diagnose([noise, *lines, "bye"])
    assert found is not None and (found.name, found.mend) == (name, mend), found
    assert found.what and "{" not in found.what and "None" not in found.what


def test_the_message_names_what_does_not_fit() -> None:
    found = diagnose(traceback(HEADS))
    assert found is not None and "world size (6) is not divisible" in found.what
    assert str(found).startswith("parallel-sizes: The parallel sizes do not fit") and "parallelism.tensor" in str(found)
    assert (bare := diagnose(traceback("ray.exceptions.ActorUnschedulableError: no"))) is not None
    assert bare.what == "Ray has not the GPUs or CPUs that slime wants"


FAKES = [
    *[f"{ROLLOUTS}{line}" for line in traceback("MemoryError")],
    f"{ROLLOUTS}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB",
]


def test_the_text_of_samples_is_no_evidence() -> None:
    shown = (
        f"{ROLLOUTS}{STAMP}sglang_rollout.py:418 - First rollout sample: ['torch.OutOfMemoryError: CUDA out of memory"
    )
    assert diagnose([shown, *FAKES[:5]]) is None
    inline = f"{STAMP}sglang_rollout.py:444 - Finish rollout: ['RuntimeError: No CUDA GPUs are available']"
    assert diagnose([ROLLOUTS + inline, inline]) is None
    assert diagnose(["He said: torch.OutOfMemoryError: CUDA out of memory", "'CUDA out of memory'"]) is None


def test_what_the_users_code_prints_counts_only_when_the_driver_has_no_exception_of_its_own() -> None:
    found = diagnose([*FAKES, *driver("ValueError: unknown to us")])
    assert found is None
    alone = diagnose(FAKES)
    assert alone is not None and alone.name == "host-out-of-memory"


def test_an_errors_reason_goes_before_what_follows_from_it() -> None:
    assert (found := diagnose([*traceback(OOM, prefix=TRAINER), *traceback(DIED)])) is not None
    assert found.name == "cuda-out-of-memory-training"
    assert (handled := diagnose([*traceback("FileNotFoundError: cache"), *driver(HEADS)])) is not None
    assert handled.name == "parallel-sizes"


def test_a_wait_that_ended_is_not_what_it_died_of() -> None:
    waited = (
        f"{STAMP}placement_group.py:64 - Waiting for placement group of 8 GPUs (elapsed 30s): 4 GPUs registered with"
    )
    assert diagnose([f"{waited} Ray, 4 available.", f"{STAMP}placement_group.py:88 -   bundle    0, node"]) is None


@pytest.mark.parametrize(
    ("code", "name"), [(137, "killed"), (-9, "killed"), (139, "segmentation-fault"), (1, None), (None, None)]
)
def test_an_exit_code_alone_tells_of_a_kill(code: int | None, name: str | None) -> None:
    found = diagnose(["bye"], code)
    assert (found.name if found else None) == name


def test_a_command_is_not_told_of_keys_it_does_not_use() -> None:
    assert (found := diagnose(traceback(OOM), kind="command")) is not None and "parallelism" not in found.remedy
    assert (disk := diagnose(traceback("OSError: [Errno 28] No space left"), kind="command")) is not None
    assert (fault := diagnose(traceback(NCCL), kind="command")) is not None and fault.mend == "pod"
    assert disk.name == "disk-full"


def test_the_table_is_sound() -> None:
    names = [cause.name for cause in CAUSES]
    assert all(re.fullmatch(r"[a-z-]+", name) for name in names)
    assert len(set(names)) == len(names) and {cause.rank for cause in CAUSES} == {0, 1, 2, 3}
    for cause in CAUSES:
        assert "which" in re.compile(cause.words).groupindex or "{which}" not in cause.what
        assert re.compile(cause.words).match("") is None
        assert cause.mend != "recipe" or re.search(r"\b(?:[a-z]+\.[a-zA-Z_]+|secrets|extra_args|env)", cause.remedy)


XID = "NVRM: Xid (PCI:0000:17:00): 79, GPU has fallen off the bus"
MINE = traceback("ValueError: real bug")
FULL = traceback("OSError: [Errno 28] No space left on device: '/x'")


@pytest.mark.parametrize("line", [XID, f"[12.3] {XID}", "RuntimeError: No CUDA GPUs are available"])
def test_a_line_that_a_command_prints_does_not_beat_the_exception_it_dies_of(line: str) -> None:
    assert diagnose([line, *MINE], 1, "command") is None
    oom = diagnose([line, *traceback(OOM)], 1, "command")
    assert oom is not None and oom.name.startswith("cuda-out-of-memory")


def test_a_bare_line_counts_beside_an_exception_only_with_the_prefix_of_who_says_it() -> None:
    assert diagnose([XID, *MINE]) is None
    found = diagnose([f"[12.3] {XID}", *MINE])
    assert found is not None and found.name == "gpu-fault"


@pytest.mark.parametrize("kind", ["slime", "command"])
def test_an_exception_that_was_handled_is_not_the_death(kind: str) -> None:
    assert diagnose([*FULL, "went on", *MINE], 1, kind) is None
    link = "The above exception was the direct cause of the following exception:"
    raised_from = diagnose([*FULL, "", link, "", *MINE], 1, kind)
    assert raised_from is not None and raised_from.name == "disk-full"


def test_of_a_launcher_that_reports_a_death_the_death_before_it_is_told() -> None:
    report = traceback("torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ")
    ranks = [*traceback(OOM, rank="[rank0]: "), *traceback("RuntimeError: closed by peer", rank="[rank1]: ")]
    found = diagnose([*FULL, *ranks, *report], 1, "command")
    assert found is not None and found.name.startswith("cuda-out-of-memory")
    assert diagnose([*FULL, *traceback("ValueError: real bug", rank="[rank0]: "), *report], 1, "command") is None


def test_very_long_lines_are_read_in_part() -> None:
    long = ["a" * 90_000, "-" * 90_000, " " * 90_000, "(raylet" * 9000]
    assert diagnose([*long * 20, *FULL]) == diagnose(FULL)
