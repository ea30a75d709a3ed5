"""Deaths that follow from something else, which may stand elsewhere in the log or nowhere."""

from plugins.slime.causes.cause import Cause

_TORCH_LOG = r"\[[EFWI]\d* ?[\d:.]+ (?:\d+ )?"

FOLLOWS: tuple[Cause, ...] = (
    Cause(
        "placement-group",  # slime ray/placement_group.py:64; Ray exceptions.py
        r"Waiting for placement group of (?P<which>\d+ GPUs \(elapsed \d+s\): \S+ GPUs registered with Ray, \S+ "
        r"available)"
        r"|ray\.exceptions\.(?:Actor|Task)(?:PlacementGroupRemoved|UnschedulableError)",
        "Ray has not the GPUs or CPUs that slime wants ({which})",
        "parallelism.gpus plus parallelism.rollout_gpus may be no more than pod.gpu_count, and pod.ray_cpus has to "
        "be GPUs + 2 at least; extra_args num-gpus-per-node is what a node has",
        rank=2,
    ),
    Cause(
        "engine-start",  # slime backends/sglang_utils/sglang_engine.py:_wait_server_healthy
        r"Exception: Server process terminated unexpectedly|.{0,120}Scheduler hit an exception",
        "An SGLang engine died while it started",
        "Its own error stands further up or in Ray's worker logs; most often engine.mem_fraction or "
        "engine.gpus_per_engine do not suit the model",
        rank=2,
    ),
    Cause(
        "nccl-timeout",  # torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp
        rf"{_TORCH_LOG}ProcessGroupNCCL\.cpp:\d+\] .{{0,60}}(?:Watchdog caught collective operation timeout"
        rf"|Some NCCL operations have failed or timed out)"
        r"|torch\.distributed\.Dist(?:Backend|Network|Store)Error: .{0,240}time(?:d ?)?out|ncclRemoteError: ",
        "GPUs waited for each other until NCCL's time was up: one of them hung, or its process had died",
        "Look for an earlier error; a step that takes longer than this needs extra_args distributed-timeout-minutes; "
        "env.NCCL_DEBUG: INFO tells where it hangs",
        "unknown",
        rank=2,
    ),
    Cause(
        "actor-died",  # Ray exceptions.py ActorDiedError; gcs: "Worker exit type: SYSTEM_ERROR"
        r"ray\.exceptions\.(?:ActorDiedError|ActorUnavailableError|WorkerCrashedError|LocalRayletDiedError"
        r"|NodeDiedError)"
        r"|Fatal Python error: |\*\*\* SIG\w+ received|Segmentation fault",
        "A process of the trainer died without a word",
        "The kernel's OOM killer does so: a host with more memory is pod.min_ram_gb; a crash in native code "
        "needs another pod.image",
        "unknown",
        rank=3,
    ),
)
