"""What a model needs of a GPU's memory, as far as its shape tells: a lower bound, to refuse what cannot fit.

Megatron keeps on each GPU its part of the weights in bf16 (2 bytes a parameter), of the gradients in fp32 (4, because
the launcher accumulates in fp32) and of the optimizer: an fp32 copy and Adam's two moments (12), spread over the data
parallel replicas (slime sets --use-distributed-optimizer). Activations, the logits of a micro batch, CUDA itself and
NCCL's buffers come on top and are estimated with a fixed part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plugins.slime.defaults import Machine
from plugins.slime.flags import Value

GB = 1e9
WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 2, 4, 12
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


def parameters(shape: Mapping[str, Value]) -> float | None:
    """Number of parameters of a model from its architecture flags (slime's MODEL_ARGS); None when they do not say.

    Right to some percent for dense decoders with grouped attention; experts are counted in every layer.
    """
    layers, hidden, vocabulary = (_size(shape, name) for name in ("num-layers", "hidden-size", "vocab-size"))
    if not layers or not hidden or not vocabulary:
        return None
    heads = _size(shape, "num-attention-heads") or 1
    head_dim = _size(shape, "kv-channels") or hidden / heads
    groups = (_size(shape, "num-query-groups") if shape.get("group-query-attention") else None) or heads
    attention = 2 * hidden * heads * head_dim + 2 * hidden * groups * head_dim
    wide = 3 if shape.get("swiglu") else 2
    feed = wide * hidden * (_size(shape, "ffn-hidden-size") or 4 * hidden)
    experts = _size(shape, "num-experts")
    if experts:
        feed = wide * hidden * (_size(shape, "moe-ffn-hidden-size") or 0) * experts
        feed += wide * hidden * (_size(shape, "moe-shared-expert-intermediate-size") or 0)
    tables = 2 if shape.get("untie-embeddings-and-output-weights") else 1
    return layers * (attention + feed) + tables * vocabulary * hidden


def need(count: float, flags: Mapping[str, Value], machine: Machine) -> Need:
    """What a training GPU must hold of a model with so many parameters. Experts are taken as spread evenly."""
    split = max(_flag(flags, "tensor-model-parallel-size"), _flag(flags, "expert-model-parallel-size"))
    part = count / (split * _flag(flags, "pipeline-model-parallel-size"))
    training = _flag(flags, "actor-num-nodes", machine.nodes) * _flag(
        flags, "actor-num-gpus-per-node", machine.gpus_per_node
    )
    shards = max(1.0, training / (split * _flag(flags, "pipeline-model-parallel-size")))
    return Need(count, part * WEIGHT_BYTES / GB, part * GRADIENT_BYTES / GB, part * OPTIMIZER_BYTES / shards / GB)


def fits(wanted: Need, gpu_gb: float) -> bool | None:
    """Whether it fits into a GPU of `gpu_gb`: False when it cannot, None when it is tight."""
    if wanted.total_gb >= gpu_gb:
        return False
    return True if wanted.total_gb <= HEADROOM * gpu_gb else None


def _size(shape: Mapping[str, Value], name: str) -> float | None:
    value: Any = shape.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _flag(flags: Mapping[str, Value], name: str, default: float = 1) -> float:
    return _size(flags, name) or default
