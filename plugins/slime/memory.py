"""What a model needs of a GPU's memory, as far as its shape tells: a lower bound, to refuse what cannot fit.

Megatron keeps on each GPU its part of the weights in bf16 (2 bytes a parameter), of the gradients in fp32 (4, because
the launcher accumulates in fp32) and of the optimizer: an fp32 copy and Adam's two moments (12), spread over the data
parallel replicas (slime sets --use-distributed-optimizer) or kept by the host (--optimizer-cpu-offload). Experts are
divided by other sizes than the rest, so they are counted apart. Activations, the logits of a micro batch, CUDA itself
and NCCL's buffers come on top and are estimated with a fixed part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from plugins.slime.defaults import Machine
from plugins.slime.flags import Value
from plugins.slime.model_size import Size, number

GB = 1e9
WEIGHT_BYTES, GRADIENT_BYTES = 2, 4
_STATES = ("main-params-dtype", "exp-avg-dtype", "exp-avg-sq-dtype")
"""The three parts of the optimizer, fp32 where --use-precision-aware-optimizer does not let these flags say less."""
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
_SHARDED = ("use-megatron-fsdp", "use-torch-fsdp2")
_FROZEN = ("only-train-params-name-list", "freeze-params-name-list")
HEADROOM = 0.8
"""Part of a GPU's memory that weights, gradients and optimizer may take before a warning: the rest is activations."""


@dataclass(frozen=True)
class Need:
    """Memory of one training GPU in GB (10^9 bytes), activations left out. parameters: of the whole model."""

    parameters: float
    weights_gb: float
    gradients_gb: float
    optimizer_gb: float

    @property
    def total_gb(self) -> float:
        """All three."""
        return self.weights_gb + self.gradients_gb + self.optimizer_gb

    def __str__(self) -> str:
        parts = f"weights {self.weights_gb:.0f}, gradients {self.gradients_gb:.0f}, optimizer {self.optimizer_gb:.0f}"
        return f"{self.total_gb:.0f} GB on each GPU that trains ({parts}), activations besides"


def need(size: Size, flags: Mapping[str, Value], machine: Machine) -> Need:
    """What a training GPU must hold of a model of this size; of layers that are spread unevenly the mean.

    Megatron-LM core/parallel_state.py: experts are divided by expert, expert tensor (the tensor size where not given)
    and pipeline parallel size, all else by tensor and pipeline; the optimizer of each part over its own replicas.
    Where it is not known which parameters are experts, all are taken as divided by the larger of the two.
    """
    tensor, pipeline = _flag(flags, "tensor-model-parallel-size"), _flag(flags, "pipeline-model-parallel-size")
    expert_split = _flag(flags, "expert-model-parallel-size") * _flag(flags, "expert-tensor-parallel-size", tensor)
    gpus = _flag(flags, "actor-num-nodes", machine.nodes) * _flag(
        flags, "actor-num-gpus-per-node", machine.gpus_per_node
    )
    if size.experts is None:
        parts = [(size.parameters, max(tensor, expert_split) * pipeline)]
    else:
        experts = min(size.experts, size.parameters)
        parts = [(size.parameters - experts, tensor * pipeline), (experts, expert_split * pipeline)]
    held = sum(count / split for count, split in parts)
    owned = sum(count / max(split, gpus) for count, split in parts)
    if any(flags.get(name) for name in _SHARDED):
        held = owned
    gradient, optimizer = _training_bytes(flags)
    weight = 1 if flags.get("fp8-param-gather") else WEIGHT_BYTES
    return Need(size.parameters, held * weight / GB, held * gradient / GB, owned * optimizer / GB)


def offloaded(flags: Mapping[str, Value]) -> float:
    """Part of the optimizer that the host's memory keeps, 0 to 1: --optimizer-cpu-offload, by default all of it."""
    if not flags.get("optimizer-cpu-offload"):
        return 0.0
    part = number(flags, "optimizer-offload-fraction")
    return 1.0 if part is None else min(1.0, max(0.0, part))


def _training_bytes(flags: Mapping[str, Value]) -> tuple[float, float]:
    """Bytes of gradient and of optimizer for each parameter on the GPU; of frozen parameters there are none."""
    if any(flags.get(name) for name in _FROZEN):
        return 0, 0  # how many parameters the patterns leave is not known
    short = flags.get("grad-reduce-in-bf16") or flags.get("main-grads-dtype") == "bf16"
    precise = flags.get("use-precision-aware-optimizer")
    states = sum(_BYTES.get(str(flags.get(name)), 4) if precise else 4 for name in _STATES)
    return WEIGHT_BYTES if short else GRADIENT_BYTES, states * (1 - offloaded(flags))


def fits(wanted: Need, gpu_gb: float) -> bool | None:
    """Whether it fits into a GPU of `gpu_gb`: False when it cannot, None when it is tight."""
    if wanted.total_gb >= gpu_gb:
        return False
    return True if wanted.total_gb <= HEADROOM * gpu_gb else None


def _flag(flags: Mapping[str, Value], name: str, default: float = 1) -> float:
    return number(flags, name) or default
