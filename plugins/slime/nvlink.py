"""Whether the GPUs of this machine are joined by NVLink: NCCL's NVLS is for those only (slime's run scripts)."""

import re
import subprocess

_LINK = re.compile(r"\bNV[0-9]+\b")


def has_nvlink() -> bool | None:
    """Ask nvidia-smi; None when it cannot tell, and NCCL then decides itself."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "topo", "-m"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return _LINK.search(said) is not None
