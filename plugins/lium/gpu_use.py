"""How busy a pod's GPUs are, read from `nvidia-smi`: over SSH, or on the pod itself.

For the progress artifact, `trainstack ps` and the watch for idle pods (`idle.py`). A figure that nvidia-smi does not
give is None here, never 0: unknown is not idle.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from plugins.errors import ControlPlaneError
from plugins.lium.tunnel import PodConnection

NOT_THERE = 66  # the exit status for "this pod has no nvidia-smi"
ANSWER_S = 30.0

_FIELDS = "index,name,utilization.gpu,memory.used,memory.total"
_ASK = f"""
command -v nvidia-smi >/dev/null || exit {NOT_THERE}
exec timeout -k 2 20 nvidia-smi --query-gpu={_FIELDS} --format=csv,noheader,nounits 2>&1
"""


@dataclass(frozen=True)
class GpuUse:
    """One GPU at one moment: use in percent, memory in MiB; None where nvidia-smi does not say."""

    index: int
    name: str
    percent: float | None
    memory_used_mib: int | None
    memory_total_mib: int | None


def gpu_use(connection: PodConnection) -> list[GpuUse]:
    """The GPUs of the pod and their use now; [] on a pod without nvidia-smi.

    ControlPlaneError: no answer over SSH, or one that is no reading.
    """
    done = connection.run(["sh", "-c", _ASK], timeout_s=ANSWER_S)
    if done.rc == NOT_THERE:
        return []
    text = done.stdout.decode(errors="replace")
    with contextlib.suppress(ValueError):
        if done.rc == 0 and (gpus := parse(text)):
            return gpus
    shown = " ".join(text.split())[:200] or "nothing"
    raise ControlPlaneError(f"nvidia-smi on pod {connection.row.name} gave status {done.rc} and no reading: {shown}")


def gpu_use_here() -> list[GpuUse]:
    """The GPUs of the machine this runs on; [] without nvidia-smi, or when it does not answer in time."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    argv = [program, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL)
        return parse(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def parse(text: str) -> list[GpuUse]:
    """Read the lines `index, name, utilization.gpu, memory.used, memory.total`. ValueError: a line that is none."""
    return [_gpu(line) for line in text.splitlines() if line.strip()]


def mean_percent(gpus: Sequence[GpuUse]) -> float | None:
    """Mean use of all GPUs in percent; None when there are none or the use of one is not known."""
    known = [gpu.percent for gpu in gpus if gpu.percent is not None]
    return sum(known) / len(known) if known and len(known) == len(gpus) else None


def _gpu(line: str) -> GpuUse:
    index, name, percent, used, total = (cell.strip() for cell in line.split(","))
    return GpuUse(int(index), name, _figure(percent), _whole(used), _whole(total))


def _figure(cell: str) -> float | None:
    """A number, or None for `[N/A]`, `[Not Supported]` and the like."""
    return None if cell.startswith("[") or cell == "N/A" else float(cell)


def _whole(cell: str) -> int | None:
    figure = _figure(cell)
    return None if figure is None else int(figure)
