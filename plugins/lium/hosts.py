"""The hosts of the marketplace as plain frozen values, read off the SDK's listing.

The listing is written by many hosts and several versions of a server: any figure may be missing, a string or nonsense.
Here a figure is a sound number or None, so that whoever chooses (`offers.py`) never takes silence for an answer.
"""

import math
from dataclasses import dataclass
from typing import Any

BYTES_PER_GB = 1_000_000_000
LONGEST_TEXT = 100
GPU_TYPE_UNKNOWN = "Unknown"  # the SDK's word for a host that names no GPU


@dataclass(frozen=True)
class Host:
    """One listed host. USD per GPU-hour, sizes in GB (10^9 bytes), VRAM per GPU, speeds in Mbit/s; None: not said.

    `gpu` is the full name and `gpu_type` the SDK's short one. `gpu_count` is the whole host, `free_gpus` what can be
    rented now. `reliability` is Lium's score from 0 to 100, `verified_at` the API's ISO 8601 time.
    """

    executor_id: str
    huid: str
    gpu: str
    gpu_type: str
    gpu_count: int
    free_gpus: int
    whole_host_only: bool
    price_per_gpu_hour: float | None
    tier: str | None = None
    country: str | None = None
    city: str | None = None
    download_mbps: float | None = None
    upload_mbps: float | None = None
    disk_gb: float | None = None
    ram_gb: float | None = None
    vram_gb: float | None = None
    cuda: float | None = None
    driver: str | None = None
    ports: int | None = None
    nvlink: bool | None = None
    reliability: float | None = None
    frequent_failures: bool | None = None
    verified_at: str | None = None
    power_limited: bool | None = None


@dataclass(frozen=True)
class Fabric:
    """A fast network between hosts that can be rented together. `hosts`: those whose GPUs are all free now."""

    id: str
    kind: str
    node_count: int
    hosts: tuple[Host, ...]


def fabric_from_offer(offer: Any) -> Fabric:
    """Read the SDK's `ClusterOffer`."""
    hosts = tuple(host_from_info(node) for node in _list(_get(offer, "nodes")))
    kind = _text(_get(offer, "fabric_type")) or "unknown"
    return Fabric(_text(_get(offer, "fabric_id")) or "", kind, _count(_get(offer, "node_count")) or len(hosts), hosts)


def host_from_info(info: Any) -> Host:
    """Read the SDK's `ExecutorInfo`. Never raises: what is missing or nonsense becomes None, a count becomes 0.

    A price of 0 is how the SDK shows a price that was not sent, so it is None as well.
    """
    specs, location = _mapping(_get(info, "specs")), _mapping(_get(info, "location"))
    gpu = _mapping(specs.get("gpu"))
    cards = [_mapping(card) for card in _list(gpu.get("details"))]
    whole = _count(_get(info, "gpu_count")) or 0
    free = _count(_get(info, "available_gpu_count"))
    executor_id = _text(_get(info, "id")) or ""
    name = _text(_get(info, "machine_name")) or next((_text(card.get("name")) for card in cards), None)
    memory = [size for card in cards if (size := _size(card.get("capacity"))) is not None]
    return Host(
        executor_id=executor_id,
        huid=_text(_get(info, "huid")) or executor_id,
        gpu=name or "",
        gpu_type=_text(_get(info, "gpu_type")) or GPU_TYPE_UNKNOWN,
        gpu_count=whole,
        free_gpus=whole if free is None else min(free, whole),
        whole_host_only=_get(info, "whole_host_only") is True,
        price_per_gpu_hour=_size(_get(info, "price_per_gpu")),
        tier=_lower(_text(_get(info, "tier"))),
        country=_country(location),
        city=_text(location.get("city")),
        download_mbps=_size(_get(info, "effective_download_speed_mbps")),
        upload_mbps=_size(_get(info, "effective_upload_speed_mbps")),
        disk_gb=_gb(_mapping(specs.get("hard_disk")).get("free"), 1024),
        ram_gb=_gb(_mapping(specs.get("ram")).get("total"), 1024),
        vram_gb=_gb(min(memory), 1024**2) if memory else None,
        cuda=_size(_get(info, "max_cuda_version")),
        driver=_text(gpu.get("driver")),
        ports=_count(_get(info, "available_port_count")),
        nvlink=_truth(_get(info, "nvlink")),
        reliability=_figure(_get(info, "reliability_score")),
        frequent_failures=_truth(_get(info, "frequent_rent_failures")),
        verified_at=_text(_get(info, "last_verified_at")),
        power_limited=_truth(_get(info, "gpu_power_limited")),
    )


def _get(info: Any, name: str) -> Any:
    return getattr(info, name, None)


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    """Text that may be shown: hosts name themselves, and control characters would write on a person's terminal."""
    if not isinstance(value, str):
        return None
    return "".join(char for char in value if char.isprintable()).strip()[:LONGEST_TEXT] or None


def _lower(text: str | None) -> str | None:
    return text.lower() if text else None


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _figure(value: Any) -> float | None:
    """A finite number from 0 on; some servers send numbers as strings."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _size(value: Any) -> float | None:
    """A figure of which 0 makes no sense: it stands for 'not measured'."""
    return _figure(value) or None


def _count(value: Any) -> int | None:
    number = _figure(value)
    return None if number is None else int(number)


def _gb(value: Any, unit_bytes: int) -> float | None:
    number = _size(value)
    return None if number is None else number * unit_bytes / BYTES_PER_GB


def _country(location: dict[Any, Any]) -> str | None:
    """The two-letter code; some rows carry it in place of the country's name."""
    for key in ("country_code", "country"):
        code = _text(location.get(key))
        if code and len(code) == 2 and code.isascii() and code.isalpha():
            return code.upper()
    return None
