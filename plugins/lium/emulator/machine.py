"""One machine of the marketplace: what it lists, what it really has, and what goes wrong with it.

    listing (`row`)            what a renter reads and pays for
    `really_*`                 what a pod on it shows, where that is not what was listed
    `boot_*`, `reclaim*`,      how its pods fare; `pods.py` and `patrol.py` carry it out
    `network_lost_after_s`

The fields are those of an inventory file. Which machine fits a request is `inventory.py`'s question.
"""

import math
import uuid
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
KIB_PER_GB = 1_000_000_000 / 1024
RECLAIMS = ("vanish", "broken", "silent")
# What the real tool says for these; other GPUs show the last one's.
COMPUTE_CAP = {"H200": "9.0", "H100": "9.0", "A100": "8.0", "4090": "8.9", "L40": "8.9"}


@dataclass(frozen=True)
class Machine:
    """One host. Prices in USD per GPU and hour, sizes in GB, VRAM in MiB per GPU, speeds in Mbit/s, times in seconds.

    `boot_delay_s` None: the emulator's own. `boot_fail`: every boot ends CREATION_FAILED. `reclaim_after_s`: a pod is
    taken back that long after it first ran; `reclaims_per_hour`: at random times, that often on average; both for spot
    machines only, in the way `reclaim_how` says (see `Pods.reclaim`). `network_lost_after_s`: from then on the pod is
    not reached over SSH. `cached_images`: "name" or "name:tag" of the images on its disk; None: all. `changes`: what is
    said of its capacity and when, as `{"after_s": 60, "offline": true}`, counted from the start of the emulator.
    `fabric`: name of the fast network that it shares with the machines of the same name; those can be one cluster.
    """

    id: str
    gpu: str
    price_per_gpu: float
    gpu_count: int
    vram_mib: int
    min_gpu_count: int | None = 1
    tier: str = "secure"
    country: str = "US"
    city: str = "Dallas"
    cpus: int = 128
    ram_gb: float = 1024.0
    disk_gb: float = 4000.0
    download_mbps: float = 5000.0
    upload_mbps: float = 4000.0
    nvlink: bool = False
    docker_in_docker: bool = False
    ports: int = 20
    power_w: int = 700
    driver: str = "580.95.05"
    cuda: float = 13.0
    reliability: float = 99.0
    boot_delay_s: float | None = None
    boot_fail: bool = False
    really_gpu: str | None = None
    really_gpu_count: int | None = None
    really_vram_mib: int | None = None
    reclaim_after_s: float | None = None
    reclaims_per_hour: float | None = None
    reclaim_how: str = "vanish"
    network_lost_after_s: float | None = None
    cached_images: list[str] | None = None
    changes: tuple[dict[str, Any], ...] = ()
    fabric: str | None = None
    fabric_type: str = "infiniband"
    link_rate: str = "400 Gb/sec (4X NDR)"

    def __post_init__(self) -> None:
        """Raises ValueError for what contradicts itself."""
        if self.tier != "spot" and (self.reclaim_after_s is not None or self.reclaims_per_hour is not None):
            raise ValueError(f"reclaim_after_s and reclaims_per_hour need tier spot, not {self.tier}")
        if self.reclaim_how not in RECLAIMS:
            raise ValueError(f"reclaim_how is {self.reclaim_how!r}, not one of {', '.join(RECLAIMS)}")
        for name in ("boot_delay_s", "reclaim_after_s", "reclaims_per_hour", "network_lost_after_s"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value!r}, not a number from 0")

    def row(self, free: int, verified_at: str) -> Row:
        """The executor row of lium.md 4.2; `free` GPUs are not rented now."""
        whole_only = self.min_gpu_count is None
        available = free if not whole_only or free == self.gpu_count else 0
        pairs = self.gpu_count * (self.gpu_count - 1) // 2
        return {
            "id": self.id,
            "machine_name": self.gpu,
            "price_per_gpu": self.price_per_gpu,
            "gpu_count": self.gpu_count,
            "available_gpu_count": available,
            "min_gpu_count_for_rental": self.min_gpu_count,
            "executor_ip_address": "127.0.0.1",
            "location": {"country": self.country, "country_code": self.country, "city": self.city},
            "status": "active",
            "tier": self.tier,
            "max_cuda_version": self.cuda,
            "effective_download_speed_mbps": self.download_mbps,
            "effective_upload_speed_mbps": self.upload_mbps,
            "nvlink": self.nvlink,
            "interconnect": {
                "nvlink": self.nvlink,
                "nvlink_links": 18 if self.nvlink else 0,
                "p2p": self.nvlink,
                "pcie_class": "SYS",
                "gpu_pairs": pairs,
                "nvlink_pairs": pairs if self.nvlink else 0,
            },
            "gpu_power_limited": False,
            "gpu_power_limit_w": self.power_w,
            "gpu_power_limit_default_w": self.power_w,
            "frequent_rent_failures": False,
            "last_verified_at": verified_at,
            "reliability_score": self.reliability,
            "specs": {
                "gpu": {
                    "count": self.gpu_count,
                    "driver": self.driver,
                    "details": [{"name": self.gpu, "capacity": self.vram_mib}] * self.gpu_count,
                },
                "cpu": {"count": self.cpus},
                "ram": {"total": int(self.ram_gb * KIB_PER_GB), "pod_reserve": 1048576},
                "hard_disk": {"total": int(self.disk_gb * KIB_PER_GB), "free": int(self.disk_gb * KIB_PER_GB)},
                "network": {"download_speed": self.download_mbps, "upload_speed": self.upload_mbps},
                "sysbox_runtime": self.docker_in_docker,
                "available_port_count": self.ports,
            },
        }

    def rentable(self, free: int) -> list[int]:
        """The GPU counts that can be rented now."""
        if self.min_gpu_count is None:
            return [self.gpu_count] if free == self.gpu_count else []
        return list(range(self.min_gpu_count, free + 1))

    def has_image(self, image: str) -> bool:
        """Whether `name:tag` is on the machine's disk already."""
        return self.cached_images is None or not {image, image.rpartition(":")[0]}.isdisjoint(self.cached_images)

    def reclaimed_after_s(self, pod_id: str) -> float | None:
        """How long after its first run a pod is taken back; None: never. The same for a pod whenever it is asked."""
        due = [] if self.reclaim_after_s is None else [self.reclaim_after_s]
        if self.reclaims_per_hour:
            # A pod id is random; its bits make the exponential waiting time that a constant rate means.
            part = (uuid.UUID(pod_id).int & 0xFFFF_FFFF) / 2**32
            due.append(-math.log(1 - part) / self.reclaims_per_hour * 3600)
        return min(due, default=None)

    def nvidia_smi(self, indices: list[int], utilization: int, memory_used_mib: int) -> list[dict[str, object]]:
        """The rows a fake `nvidia-smi` answers with in a pod that rented these GPUs: what is really there.

        `utilization` in percent. A name that begins with "_" is no field of the tool.
        """
        gpu, total = self.really_gpu or self.gpu, self.really_vram_mib or self.vram_mib
        there = indices if self.really_gpu_count is None else indices[: self.really_gpu_count]
        used = min(memory_used_mib, total)
        return [
            {
                "index": position,
                "name": gpu,
                "uuid": f"GPU-{uuid.uuid5(uuid.UUID(self.id), str(index))}",
                "pci.bus_id": f"00000000:{index + 1:02X}:00.0",
                "driver_version": self.driver,
                "memory.total": total,
                "memory.used": used,
                "memory.free": total - used,
                "utilization.gpu": utilization,
                "utilization.memory": utilization // 2,
                "temperature.gpu": 31 + utilization * 4 // 10,
                "power.draw": round(75 + (self.power_w - 75) * utilization / 100, 2),
                "power.limit": float(self.power_w),
                "clocks.sm": 345 + utilization * 16,
                "clocks.mem": 2619,
                "compute_cap": next((cap for model, cap in COMPUTE_CAP.items() if model in gpu), "8.9"),
                "pstate": "P0",
                "count": len(there),
                "_cuda": str(self.cuda),
            }
            for position, index in enumerate(there)
        ]
