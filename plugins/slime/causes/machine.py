"""Deaths of the machine: its GPUs, its links, its memory and disk."""

from plugins.slime.causes.cause import ERROR, Cause

# torch/csrc OutOfMemoryError; torch.AcceleratorError is a RuntimeError before torch 2.8
_CUDA_OOM = (
    rf"{ERROR}(?:CUDA out of memory|CUDA error: out of memory|CUDA error: CUBLAS_STATUS_ALLOC_FAILED)"
    r"|torch\.(?:cuda\.)?OutOfMemoryError"
)
_ENGINE = r"sglang|SGLangEngine"
_LOADING = r"in load_checkpoint|load_hf|hf_to_megatron|\.init\(\)|in initialize_model_and_optimizer|from_pretrained"
_SAVING = r"save_checkpoint|save_model|hf_checkpoint_saver|in save\b|save_model start"
# Ray: exceptions.OutOfMemoryError; raylet's two messages; worker exit type of common.proto
_HOST_OOM = (
    r"ray\.exceptions\.OutOfMemoryError|\d+ worker\(s\) were killed due to the node running low on memory"
    rf"|{ERROR}(?:Task|Actor|The actor|\d+ task\(s\)) .{{0,80}}killed due to the node running low on memory"
    r"|\d+ Workers \(tasks / actors\) killed due to memory pressure \(OOM\)"
    r"|.{0,120}Worker exit type: NODE_OUT_OF_MEMORY"
    r"|MemoryError\b|OSError: \[Errno 12\]"
    rf"|{ERROR}.{{0,200}}DefaultCPUAllocator: (?:can't|not enough)"
)
_MORE_RAM = "Rent a host with more memory: pod.min_ram_gb"
MACHINE: tuple[Cause, ...] = (
    Cause(
        "gpu-fault",
        rf"(?:\[[\d. ]+\] )?NVRM: Xid|{ERROR}.{{0,160}}GPU has fallen off the bus"
        rf"|{ERROR}(?:CUDA error: )?(?:uncorrectable ECC error|uncorrectable NVLink error|hardware stack error)"
        rf"|{ERROR}(?:Unable to determine the device handle for GPU|Failed to initialize NVML)",
        "A GPU of the pod failed (ECC, Xid or the bus)",
        "Nothing in the recipe: the next attempt goes to another host",
        "pod",
        rank=0,
    ),
    Cause(
        "cuda-start",  # torch/csrc c10/cuda/CUDAFunctions.cpp, torch/cuda/__init__.py
        rf"{ERROR}(?:CUDA driver initialization failed|CUDA unknown error|No CUDA GPUs are available"
        r"|Found no NVIDIA driver on your system|CUDA error: (?:system not yet initialized"
        r"|CUDA-capable device\(s\) is/are busy or unavailable|no CUDA-capable device is detected"
        r"|initialization error|system has unsupported display driver))",
        "CUDA does not start on the pod",
        "Nothing in the recipe: the next attempt goes to another host; pod.min_cuda and pod.min_driver rule out old "
        "drivers",
        "pod",
    ),
    Cause(
        "driver-too-old",  # torch/cuda/__init__.py; cudaErrorInsufficientDriver
        rf"{ERROR}(?:The NVIDIA driver on your system is too old"
        r"|CUDA error: (?:CUDA driver version is insufficient|the provided PTX was compiled with an unsupported))",
        "The host's NVIDIA driver is too old for the image",
        "Set pod.min_cuda or pod.min_driver to what pod.image needs",
        "pod",
    ),
    Cause(
        "shared-memory-full",  # NCCL src/misc/shmutils.cc; torch DataLoader
        r"[\w.-]+:\d+:\d+ \[\d+\] .{0,60}NCCL WARN Error while creating shared memory segment"
        rf"|{ERROR}.{{0,200}}/dev/shm.{{0,120}}No space left on device"
        rf"|{ERROR}.{{0,200}}insufficient shared memory \(shm\)",
        "The pod's shared memory (/dev/shm) is full or too small",
        "Set pod.preflight.min_shm_gb, so that such a host is passed over",
        "pod",
        rank=0,
    ),
    Cause(
        "nccl-nvls",  # NCCL src/transport/nvls.cc
        r"[\w.-]+:\d+:\d+ \[\d+\] (?:\S*/)?nvls\.cc:\d+ NCCL WARN|.{0,80}NVLS multicast support is not available",
        "NCCL's NVLink multicast (NVLS) does not work on this host",
        'Set env.NCCL_NVLS_ENABLE: "0"',
        rank=0,
    ),
    Cause(
        "nccl-system-error",  # NCCL src/misc/utils.cc via torch's NCCLUtils.hpp
        rf"{ERROR}(?:NCCL error(?: in)?: .{{0,200}})?unhandled (?:system|cuda) error|nccl(?:System"
        rf"|UnhandledCuda)Error: ",
        "NCCL could not use the pod's GPUs or network",
        'Another host is tried; if it comes again, env.NCCL_DEBUG: INFO names the part, env.NCCL_NVLS_ENABLE: "0" or '
        'env.NCCL_P2P_DISABLE: "1" may go round it',
        "pod",
    ),
)
"""Another host may do."""

MEMORY: tuple[Cause, ...] = (
    Cause(
        "engine-no-room",  # SGLang srt/model_executor: MemoryPoolConfig
        rf"{ERROR}Not enough memory\. Please try to increase --mem-fraction-static",
        "An SGLang engine has no room for its cache beside the weights",
        "Raise engine.mem_fraction, or give an engine more GPUs: engine.gpus_per_engine",
    ),
    Cause(
        "cuda-out-of-memory-engine",
        _CUDA_OOM,
        "An SGLang engine ran out of GPU memory",
        "Lower engine.mem_fraction or engine.concurrency, or give an engine more GPUs: engine.gpus_per_engine",
        within=_ENGINE,
    ),
    Cause(
        "engine-illegal-access",  # qa.md 11
        rf"{ERROR}.{{0,80}}an illegal memory access was encountered",
        "An SGLang engine touched memory it does not have, which mostly is want of GPU memory",
        "Lower engine.mem_fraction",
        within=_ENGINE,
    ),
    Cause(
        "cuda-out-of-memory-loading",
        _CUDA_OOM,
        "The GPUs ran out of memory while the model was loaded",
        "Spread the model over more GPUs (parallelism.tensor, .pipeline, .expert with pod.gpu_count), or rent larger "
        "ones (pod.gpu); with parallelism.colocate lower engine.mem_fraction",
        within=_LOADING,
    ),
    Cause(
        "cuda-out-of-memory-training",  # qa.md 3
        _CUDA_OOM,
        "The GPUs ran out of memory in training",
        "Lower parallelism.max_tokens_per_gpu (down to rollout.max_response_len / parallelism.context), set "
        "parallelism.recompute: full, raise parallelism.context or .tensor; with parallelism.colocate lower "
        "engine.mem_fraction",
    ),
    Cause(
        "host-out-of-memory-saving",
        _HOST_OOM,
        "The host ran out of memory while a checkpoint was saved",
        f"{_MORE_RAM}. Last resort: extra_args no-save-optim: true (a resume then starts with a new optimizer)",
        within=_SAVING,
    ),
    Cause(
        "host-out-of-memory",
        _HOST_OOM,
        "The host ran out of memory and a process of the trainer was killed",
        f"{_MORE_RAM}; a smaller rollout.batch_size or engine.concurrency needs less",
    ),
    Cause(
        "disk-full",
        rf"OSError: \[Errno 28\]|{ERROR}.{{0,300}}No space left on device|{ERROR}.{{0,200}}Disk quota exceeded",
        "The pod's disk is full",
        "Set pod.min_disk_gb higher, checkpoint.keep lower; debug dumps (extra_args save-debug-*, dump-details) grow "
        "without end",
    ),
)
"""The recipe asks for more than there is."""
