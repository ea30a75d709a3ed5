"""The rows of a preflight: what the pod said, held to the limits.

Pure: the asking is `preflight.py`'s. A pod is a stranger's machine, so nothing it says is trusted to have a form: text
that cannot be read is itself a failing row, and only printable characters of it are shown.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from plugins.lium.gpu_names import same_gpu
from plugins.lium.preflight_probe import NOT_FOUND

SHOWN = 160  # characters of what a pod says that get into a row
SMALL_DOWNLOAD_BYTES = 1_000_000
REACHED = ("200 true", "401")  # 401: the gateway answers, and this look carries no token


@dataclass(frozen=True)
class Limits:
    """What a pod must show; None is shown and not judged.

    gpu: acceptable models, short or full. min_gpu_memory_free: part (0..1) of each GPU's memory. Sizes in GB (10^9
    bytes), write speed in MB/s, download speed in Mbit/s. api_url: the Prefect API as the pod reaches it.
    image_digest: `sha256:...`, or a reference that ends with it.
    """

    gpu: tuple[str, ...]
    gpu_count: int
    min_gpu_memory_free: float | None = None
    min_driver: str | None = None
    min_cuda: float | None = None
    min_disk_gb: float | None = None
    checkpoint_gb: float | None = None
    checkpoints: int = 2
    min_disk_write_mb_s: float | None = None
    min_download_mbps: float | None = None
    download_url: str | None = None
    max_clock_skew_s: float | None = None
    min_shm_gb: float | None = None
    api_url: str | None = None
    image_digest: str | None = None


@dataclass(frozen=True)
class Check:
    """One row: what was found and the limit it was held to ("" when it was not judged)."""

    name: str
    found: str
    limit: str
    ok: bool
    note: str = ""

    def row(self) -> dict[str, str]:
        """The row of a table artifact."""
        verdict = "FAILED" if not self.ok else "ok" if self.limit else "not judged"
        found = f"{self.found} ({self.note})" if self.note else self.found
        return {"check": self.name, "found": found, "limit": self.limit, "verdict": verdict}


@dataclass(frozen=True)
class Said:
    """What the pod answered to one probe: a text, or the problem that kept it from answering."""

    text: str = ""
    problem: str | None = None


@dataclass(frozen=True)
class ClockReading:
    """What the pod's `date` said, and our clock (epoch seconds) before and after asking."""

    said: Said
    before: float
    after: float


Found = tuple[str, bool] | tuple[str, bool, str]
"""What was found, whether it meets the limit, and perhaps a note."""


def rows(said: dict[str, Said], clock: ClockReading, limits: Limits) -> list[Check]:
    """All twelve rows, always in the same order."""
    return [
        *_gpu_rows(said, limits),
        _cuda(said, limits),
        _disk_space(said, limits),
        _disk_write(said, limits),
        _download(said, limits),
        _clock(clock, limits),
        _shared_memory(said, limits),
        _api(said, limits),
        _image(said, limits),
    ]


def shown(text: str) -> str:
    """A stranger's text for a table: one line, printable, not too long."""
    plain = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return plain if len(plain) <= SHOWN else plain[: SHOWN - 3] + "..."


def _judge(name: str, said: Said, limit: str, read: Callable[[str], Found]) -> Check:
    if said.problem is not None:
        return Check(name, shown(said.problem), limit, ok=not limit and said.problem != NOT_FOUND)
    try:
        found, well, *note = read(said.text)
    except (ValueError, OverflowError):
        return Check(name, shown(said.text) or "nothing", limit, ok=not limit, note="this cannot be read")
    return Check(name, shown(found), limit, well or not limit, *note)


def _at_least(limit: float | None, unit: str) -> str:
    return "" if limit is None else f"at least {limit:g} {unit}".rstrip()


def _gpu_rows(said: dict[str, Said], limits: Limits) -> list[Check]:
    gpus = said["gpus"]

    def kind(text: str) -> Found:
        names = [gpu[0] for gpu in _gpus(text)]
        counted = ", ".join(f"{name} x{names.count(name)}" for name in dict.fromkeys(names))
        return counted, all(any(same_gpu(asked, name) for asked in limits.gpu) for name in names)

    def count(text: str) -> Found:
        number = len(_gpus(text))
        return str(number), number == limits.gpu_count

    def memory(text: str) -> Found:
        parts = [float(free) / float(total) if float(total) > 0 else 0.0 for _, total, free, _ in _gpus(text)]
        least = min(parts)
        return f"{least:.0%} of GPU {parts.index(least)}", least >= (limits.min_gpu_memory_free or 0)

    def driver(text: str) -> Found:
        oldest = min((gpu[3] for gpu in _gpus(text)), key=_version)
        return oldest, _version(oldest) >= _version(limits.min_driver or "0")

    part = limits.min_gpu_memory_free
    return [
        _judge("GPU type", gpus, " or ".join(limits.gpu), kind),
        _judge("GPU count", gpus, str(limits.gpu_count), count),
        _judge("GPU memory free", gpus, "" if part is None else f"at least {part:.0%} of each", memory),
        _judge("driver", gpus, f"at least {limits.min_driver}" if limits.min_driver else "", driver),
    ]


def _gpus(text: str) -> list[list[str]]:
    gpus = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    if not gpus or any(len(gpu) != 4 for gpu in gpus):
        raise ValueError("expected lines of name, memory.total, memory.free, driver_version")
    return gpus


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _cuda(said: dict[str, Said], limits: Limits) -> Check:
    def read(text: str) -> Found:
        match = re.search(r"CUDA(?: \w+)? Version\s*:\s*(\d{1,4}(?:\.\d{1,4})*)", text)
        if match is None:
            raise ValueError("no CUDA version")
        return match[1], _version(match[1]) >= _version(str(limits.min_cuda or 0))

    return _judge("CUDA", said["cuda"], _at_least(limits.min_cuda, ""), read)


def _disk_space(said: dict[str, Said], limits: Limits) -> Check:
    room = limits.checkpoints * limits.checkpoint_gb if limits.checkpoint_gb else None
    needed = max((size for size in (limits.min_disk_gb, room) if size is not None), default=None)

    def read(text: str) -> Found:
        spaces = [(int(free) / 1e9, path) for free, path in (line.split(" ", 1) for line in text.splitlines())]
        least, path = min(spaces)
        return f"{least:.1f} GB in {path}", least >= (needed or 0)

    for_them = room is not None and needed == room
    why = f" ({limits.checkpoints} checkpoints of {limits.checkpoint_gb:.3g} GB)" if for_them else ""
    return _judge("disk space", said["disk"], _at_least(needed, "GB") + why, read)


def _disk_write(said: dict[str, Said], limits: Limits) -> Check:
    def read(text: str) -> Found:
        size, seconds = _amount(text)
        speed = size / seconds / 1e6
        return f"{speed:.0f} MB/s", speed >= (limits.min_disk_write_mb_s or 0), f"{size / 1e6:.0f} MB written"

    return _judge("disk write", said["write"], _at_least(limits.min_disk_write_mb_s, "MB/s"), read)


def _download(said: dict[str, Said], limits: Limits) -> Check:
    if not limits.download_url:
        return Check("download", "not measured: there is no download_url", "", ok=True)

    def read(text: str) -> Found:
        size, seconds = _amount(text)
        speed = size * 8 / seconds / 1e6
        small = "; too little to measure, name a larger file" if size < SMALL_DOWNLOAD_BYTES else ""
        return f"{speed:.0f} Mbit/s", speed >= (limits.min_download_mbps or 0), f"{size / 1e6:.1f} MB read{small}"

    return _judge("download", said["download"], _at_least(limits.min_download_mbps, "Mbit/s"), read)


def _amount(text: str) -> tuple[int, float]:
    size, seconds = text.split()
    return int(size), max(float(seconds), 0.001)


def _clock(clock: ClockReading, limits: Limits) -> Check:
    """The pod read its clock somewhere within the round trip: only what is surely off counts."""

    def read(text: str) -> Found:
        match = re.match(r"(\d{1,12})(?:\.(\d{1,9}))?", text)
        if match is None:
            raise ValueError("no epoch seconds")
        whole_seconds_only = match[2] is None  # a date without %N
        pod = int(match[1]) + (0.5 if whole_seconds_only else float(f"0.{match[2]}"))
        unsure = (clock.after - clock.before) / 2 + (0.5 if whole_seconds_only else 0.0)
        skew = pod - (clock.before + clock.after) / 2
        return f"{skew:+.2f} s", abs(skew) - unsure <= (limits.max_clock_skew_s or 0), f"+/- {unsure:.2f} s"

    limit = "" if limits.max_clock_skew_s is None else f"at most {limits.max_clock_skew_s:g} s off"
    return _judge("clock", clock.said, limit, read)


def _shared_memory(said: dict[str, Said], limits: Limits) -> Check:
    def read(text: str) -> Found:
        size = int(text) / 1e9
        return f"{size:.2f} GB", size >= (limits.min_shm_gb or 0)

    return _judge("shared memory", said["shm"], _at_least(limits.min_shm_gb, "GB"), read)


def _api(said: dict[str, Said], limits: Limits) -> Check:
    if not limits.api_url:
        return Check("Prefect API", "not asked: there is no api_url", "", ok=True)

    def read(text: str) -> Found:
        return f"HTTP {text}", text.strip() in REACHED  # a wrong address may answer 200 too, with a page

    return _judge("Prefect API", said["api"], "reachable from the pod", read)


def _image(said: dict[str, Said], limits: Limits) -> Check:
    wanted = (limits.image_digest or "").rpartition("@")[2]
    if said["digest"] == Said(""):
        return Check("image", "the pod does not say", "", ok=True, note=f"expected {wanted}" if wanted else "")
    return _judge("image", said["digest"], wanted, lambda text: (text, text.strip().rpartition("@")[2] == wanted))
