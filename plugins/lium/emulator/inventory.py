"""The machines that can be rented, and which of them fits a request.

A default fleet, or the one in a JSON file (`--inventory`: a list of objects with the fields of `Machine`). A machine's
GPUs can be split when `min_gpu_count` says so; `null` means whole host only. The selection rule is that of Lium's
rent-by-spec: the cheapest per GPU that meets every constraint, ties by download speed, reliability, id.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from plugins.lium.emulator.capacity import check_changes
from plugins.lium.emulator.machine import Machine

PRICE_TOLERANCE = 1e-9  # a ceiling copied from a listing must still admit the machine it was copied from


class NothingFits(Exception):
    """No machine meets the request; the text names the constraint that left none (the API answers 409 with it)."""


def choose(machines: list[Machine], free: Mapping[str, int], spec: Mapping[str, Any]) -> list[Machine]:
    """Machines that fit a rent-by-spec body, best first. Raises NothingFits naming the constraint."""
    count = int(spec.get("gpu_count") or 1)
    left = machines
    for name, allows, offer in _constraints(spec, free):
        kept = [machine for machine in left if allows(machine)]
        if not kept:
            best = max((offer(machine) for machine in left), default="nothing", key=str)
            raise NothingFits(
                f"{name}={spec[name]}: none of the {len(left)} node(s) matching the earlier constraints satisfies it; "
                f"on offer is {best}"
            )
        left = kept
    fitting = [machine for machine in left if count in machine.rentable(free[machine.id])]
    if not fitting:
        counts = sorted({number for machine in left for number in machine.rentable(free[machine.id])})
        raise NothingFits(
            f"gpu_count={count}: none of the {len(left)} node(s) matching the earlier constraints has them free; "
            f"rentable GPU counts: {', '.join(map(str, counts)) or 'none now'}"
        )
    return sorted(fitting, key=lambda m: (m.price_per_gpu, -m.download_mbps, -m.reliability, m.id))


def _constraints(
    spec: Mapping[str, Any], free: Mapping[str, int]
) -> list[tuple[str, Callable[[Machine], bool], Callable[[Machine], Any]]]:
    def floor(name: str, figure: Callable[[Machine], float]) -> tuple[str, Any, Any]:
        return name, lambda m: figure(m) >= float(spec[name]), figure

    rules: list[tuple[str, Any, Any]] = [
        ("gpu_type", lambda m: same_gpu(str(spec["gpu_type"]), m.gpu), lambda m: m.gpu),
        floor("min_vram_gb", lambda m: m.vram_mib / 1024),
        floor("min_cpus", lambda m: m.cpus),
        floor("min_ram_gb", lambda m: m.ram_gb),
        floor("min_disk_gb", lambda m: m.disk_gb),
        floor("min_download_mbps", lambda m: m.download_mbps),
        floor("min_ports", lambda m: m.ports),
        ("country", lambda m: m.country == str(spec["country"]).upper(), lambda m: m.country),
        (
            "docker_in_docker",
            lambda m: m.docker_in_docker or not spec["docker_in_docker"],
            lambda m: m.docker_in_docker,
        ),
        (
            "max_price_per_gpu_hour",
            lambda m: m.price_per_gpu <= float(spec["max_price_per_gpu_hour"]) + PRICE_TOLERANCE,
            lambda m: m.price_per_gpu,
        ),
    ]
    return [rule for rule in rules if spec.get(rule[0]) is not None]


def same_gpu(asked: str, full_name: str) -> bool:
    """Whether "H200", "RTX4090", "4090" or "NVIDIA H200" names this GPU."""
    if asked.strip().lower() == full_name.lower():
        return True
    short, model = _SHORT.fullmatch(asked.strip()), _MODEL.search(full_name)
    return short is not None and model is not None and _plain(short[1]) == _plain(model[0])


_MODEL = re.compile(r"(?:PRO\s*)?\b\d{4}D?\b|\b[HBLA]\d{2,4}S?\b", re.IGNORECASE)
_SHORT = re.compile(r"(?:NVIDIA\s*)?(?:GeForce\s*)?(?:RTX\s*)?((?:PRO\s*)?\d{4}D?|[HBLA]\d{2,4}S?)", re.IGNORECASE)


def _plain(text: str) -> str:
    return "".join(text.split()).upper()


def _fixed_id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.emulator.trainstack"))


def _node(name: str, price: float, fabric: str) -> Machine:
    return Machine(
        _fixed_id(name), "NVIDIA B200", price, 8, 183_359, min_gpu_count=None, nvlink=True, power_w=1000, fabric=fabric
    )


DEFAULT_FLEET = [
    Machine(_fixed_id("h200-a"), "NVIDIA H200", 2.49, 8, 143_771, nvlink=True, ram_gb=2048, disk_gb=14_000),
    Machine(
        _fixed_id("h200-b"), "NVIDIA H200", 1.89, 8, 143_771, tier="spot", nvlink=True, country="CA", city="Toronto"
    ),
    Machine(_fixed_id("h100-a"), "NVIDIA H100 80GB HBM3", 1.99, 8, 81_559, nvlink=True, docker_in_docker=True),
    Machine(
        _fixed_id("h100-b"), "NVIDIA H100 80GB HBM3", 1.79, 8, 81_559, min_gpu_count=None, nvlink=True, country="FI"
    ),
    Machine(_fixed_id("a100-a"), "NVIDIA A100-SXM4-80GB", 0.99, 4, 81_920, nvlink=True, driver="570.172.08", cuda=12.8),
    *(_node(f"b200-a{number}", 3.49, "fabric-a") for number in (1, 2)),
    *(_node(f"b200-b{number}", 3.79, "fabric-b") for number in (1, 2)),
    Machine(_fixed_id("4090-a"), "NVIDIA GeForce RTX 4090", 0.35, 1, 24_564, cpus=16, ram_gb=64, power_w=450),
    Machine(
        _fixed_id("4090-b"), "NVIDIA GeForce RTX 4090", 0.29, 2, 24_564, tier="spot", cpus=32, ram_gb=128, power_w=450
    ),
]


def load(path: Path | None) -> list[Machine]:
    """The fleet of a JSON file, or the default one; a missing `id` is made from the place in the list.

    Raises UserError for a file that is not an inventory.
    """
    if path is None:
        return DEFAULT_FLEET
    try:
        rows = json.loads(path.read_text())
        machines = [Machine(**{"id": _fixed_id(f"{path.name}-{number}")} | row) for number, row in enumerate(rows)]
        for machine in machines:
            check_changes(machine)
        return machines
    except (OSError, ValueError, TypeError, UserError) as error:
        known = ", ".join(item.name for item in fields(Machine))
        raise UserError(f"{path} is not an inventory ({error}); it is a JSON list of objects with: {known}") from error
