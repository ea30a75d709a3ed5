"""A fake `nvidia-smi` for emulated pods: it answers for the rented GPUs and nothing else.

Understands `-L`, `--query-gpu=a,b --format=csv[,noheader][,nounits]` and no option at all (the table, whose first lines
have the driver and CUDA versions); the rows come from `gpus.json` beside it. Copied into each pod, so it uses the
standard library only.
"""

import json
import sys
from pathlib import Path

UNITS = {
    "memory.total": "MiB",
    "memory.used": "MiB",
    "memory.free": "MiB",
    "utilization.gpu": "%",
    "utilization.memory": "%",
    "power.draw": "W",
    "power.limit": "W",
    "clocks.sm": "MHz",
    "clocks.mem": "MHz",
}
NO_DEVICES = 6


def answer(argv: list[str], gpus: list[dict[str, object]]) -> tuple[int, str]:
    """Exit status and output of `nvidia-smi *argv` on a host with these GPUs."""
    if not gpus:
        return NO_DEVICES, "No devices were found"
    if "-L" in argv or "--list-gpus" in argv:
        return 0, "\n".join(f"GPU {gpu['index']}: {gpu['name']} (UUID: {gpu['uuid']})" for gpu in gpus)
    fields = [arg.partition("=")[2].split(",") for arg in argv if arg.startswith("--query-gpu=")]
    if not fields:
        return 0, _table(gpus)
    form = "".join(arg for arg in argv if arg.startswith("--format=")).partition("=")[2].split(",")
    names = [field.strip() for field in fields[0]]
    unknown = [name for name in names if name not in gpus[0] or name.startswith("_")]
    if unknown:
        return 2, f'Field "{unknown[0]}" is not a valid field to query.'
    lines = [] if "noheader" in form else [", ".join(_header(name, form) for name in names)]
    for gpu in gpus:
        lines.append(", ".join(_cell(name, gpu[name], form) for name in names))
    return 0, "\n".join(lines)


def _table(gpus: list[dict[str, object]]) -> str:
    driver, cuda = gpus[0]["driver_version"], gpus[0]["_cuda"]
    line = "+" + "-" * 90 + "+"
    head = f"| NVIDIA-SMI {driver:<24} Driver Version: {driver:<16} CUDA Version: {cuda:<9} |"
    rows = [
        f"| {gpu['index']:>3}  {gpu['name']!s:<30} {gpu['memory.used']:>7}MiB / {gpu['memory.total']:>7}MiB "
        f"{gpu['utilization.gpu']:>7}%      Default |"
        for gpu in gpus
    ]
    return "\n".join([line, head, line, *rows, line])


def _header(name: str, form: list[str]) -> str:
    return f"{name} [{UNITS[name]}]" if name in UNITS and "nounits" not in form else name


def _cell(name: str, value: object, form: list[str]) -> str:
    return f"{value} {UNITS[name]}" if name in UNITS and "nounits" not in form else str(value)


if __name__ == "__main__":
    status, text = answer(sys.argv[1:], json.loads((Path(__file__).parent / "gpus.json").read_text()))
    sys.stdout.write(text + "\n")
    sys.exit(status)
