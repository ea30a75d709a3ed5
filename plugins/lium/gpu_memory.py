"""Memory of GPU models as their makers name it, for sums that are made before a host is looked at."""

from collections.abc import Iterable

from plugins.lium.gpu_names import same_gpu

GIGABYTES = {
    "B300": 288,
    "B200": 180,
    "H200": 141,
    "H100": 80,
    "H800": 80,
    "H20": 96,
    "A100 40GB": 40,
    "A100": 80,
    "A800": 80,
    "L40S": 48,
    "L40": 48,
    "A40": 48,
    "L4": 24,
    "RTX PRO 6000": 96,
    "RTX 6000 Ada": 48,
    "RTX A6000": 48,
    "RTX 5090": 32,
    "RTX 4090": 24,
    "RTX 3090": 24,
}


def least_memory_gb(names: Iterable[str]) -> float | None:
    """GB of the smallest of these GPUs; None when one of them is not known."""
    sizes = [next((gb for model, gb in GIGABYTES.items() if same_gpu(model, name)), None) for name in names]
    return float(min(size for size in sizes if size is not None)) if sizes and None not in sizes else None
