"""Where a pod's files lie on the host, and what a path inside the pod means out here.

    <state>/pods/<pod id>/root  workspace  tmp  bin      private to the pod, removed with it
    <state>/volumes/<volume id>                          `/mnt` of the pod that has the volume

In namespace mode the pod sees them as /root, /workspace, /tmp, /mnt. In plain mode it sees the host's own tree, HOME is
`.../root` and TMPDIR a short folder under the host's /tmp, cleared at each end of the pod's processes (a Unix socket's
path may not be longer than 107 bytes, and Ray puts long names below TMPDIR). SFTP asks this module in both modes, so
`/root/x` means the pod's file in both.
"""

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from plugins.lium.emulator import nvidia_smi

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = "/opt-pod/bin"  # where namespace mode binds the pod's own tools (the fake nvidia-smi)
MARKER = "LIUM_POD_ID"  # in the environment of every process of a pod; `pod_process.sweep` looks for it
MAX_LINKS = 40  # as the kernel's own limit


@dataclass(frozen=True)
class PodFiles:
    """The host directories of one pod. `namespace` says whether the pod has a file tree of its own."""

    home: Path
    workspace: Path
    tmp: Path
    tools: Path
    rootfs: Path
    volume: Path
    shares: tuple[Path, ...]
    namespace: bool

    def private(self) -> dict[str, str]:
        """Path in the pod -> host directory behind it, as strings for `pod_init`."""
        pairs = {"/root": self.home, "/workspace": self.workspace, "/tmp": self.tmp, "/mnt": self.volume}  # noqa: S108
        return {inside: str(outside) for inside, outside in {**pairs, TOOLS: self.tools}.items()}

    def needed_shares(self) -> list[str]:
        """Shares that a private directory would hide; all others are visible as they are."""
        hidden = tuple(Path(inside) for inside in self.private())
        return [str(share) for share in self.shares if any(share.is_relative_to(top) for top in hidden)]

    def environment(self, pod_id: str, pod_name: str, extra: dict[str, str]) -> dict[str, str]:
        """The whole environment of a process in the pod; nothing of the emulator's own gets in."""
        home = "/root" if self.namespace else str(self.home)
        tools = TOOLS if self.namespace else str(self.tools)
        base = {
            "PATH": f"{Path(sys.prefix) / 'bin'}:{tools}:{SYSTEM_PATH}",
            "HOME": home,
            "USER": "root",
            "LOGNAME": "root",
            "SHELL": shell(),
            "LANG": "C.UTF-8",
            "POD_NAME": pod_name,
            MARKER: pod_id,
        }
        if not self.namespace:
            places = {"TMPDIR": self.tmp, "POD_WORKSPACE": self.workspace, "POD_VOLUME": self.volume}
            base |= {name: str(path) for name, path in places.items()}
        return base | extra

    def to_host(self, path: str) -> Path:
        """One path of the pod, without following links, as a host path."""
        if self.namespace:
            for share in self.needed_shares():
                if Path(path).is_relative_to(share):
                    return Path(path)
            if Path(path).is_relative_to("/proc"):
                return self.rootfs / "proc"  # the host's process list is not the pod's
        for inside, outside in self.private().items():
            if Path(path).is_relative_to(inside):
                return Path(outside) / Path(path).relative_to(inside)
        return Path(path)

    def resolve(self, path: str, *, follow_last: bool) -> Path:
        """A path of the pod as a host path, every link on the way read as the pod would read it."""
        done, links = "/", 0
        waiting = [part for part in os.path.normpath("/" + path).split("/") if part][::-1]
        while waiting:
            part = waiting.pop()
            if part == "..":
                done = str(Path(done).parent)
                continue
            here = os.path.join(done, part)  # noqa: PTH118 - text, not a path of this machine
            host = self.to_host(here)
            if host.is_symlink() and (waiting or follow_last):
                links += 1
                if links > MAX_LINKS:
                    raise OSError(40, "Too many levels of symbolic links", path)
                target = str(host.readlink())
                if target.startswith("/"):
                    done = "/"
                waiting += [piece for piece in target.split("/") if piece not in ("", ".")][::-1]
            else:
                done = here
        return self.to_host(done)

    def remove(self) -> None:
        """Delete what belongs to the pod alone; the volume stays."""
        for path in (self.home.parent, self.tmp):
            shutil.rmtree(path, ignore_errors=True)


def shell() -> str:
    """The shell of a pod's user: bash where the host has it."""
    return shutil.which("bash", path=SYSTEM_PATH) or "/bin/sh"


def lay_out(
    state_dir: Path,
    pod_id: str,
    volume_id: str | None,
    gpus: list[dict[str, object]],
    *,
    shares: tuple[Path, ...],
    namespace: bool,
) -> PodFiles:
    """Make the directories of a pod (keeping those of an earlier boot) and its fake `nvidia-smi`."""
    base = state_dir / "pods" / pod_id
    short = Path("/tmp") if os.access("/tmp", os.W_OK) else Path(tempfile.gettempdir())  # noqa: S108
    files = PodFiles(
        home=base / "root",
        workspace=base / "workspace",
        tmp=base / "tmp" if namespace else short / f"pod-{os.getuid()}-{pod_id[:8]}",
        tools=base / "bin",
        rootfs=base / "rootfs",
        volume=state_dir / "volumes" / volume_id if volume_id else base / "mnt",
        shares=shares,
        namespace=namespace,
    )
    for path in (files.home, files.workspace, files.tmp, files.tools, files.rootfs, files.volume):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.tmp.chmod(0o1777 if namespace else 0o700)
    _write_nvidia_smi(files, gpus)
    return files


def write_gpus(files: PodFiles, gpus: list[dict[str, object]]) -> None:
    """Let the pod's `nvidia-smi` answer these rows from now on."""
    part = files.tools / "gpus.json.part"
    part.write_text(json.dumps(gpus))
    part.replace(files.tools / "gpus.json")


def _write_nvidia_smi(files: PodFiles, gpus: list[dict[str, object]]) -> None:
    tools = TOOLS if files.namespace else str(files.tools)
    write_gpus(files, gpus)
    shutil.copyfile(Path(nvidia_smi.__file__), files.tools / "nvidia_smi.py")
    script = files.tools / "nvidia-smi"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{tools}/nvidia_smi.py" "$@"\n')
    script.chmod(0o755)
