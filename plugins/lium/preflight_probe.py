"""The part of the preflight that runs on the pod: it measures, prints one JSON object and judges nothing.

Sent over SSH to whatever python3 the pod has (3.8 or newer), so it uses the standard library only and imports nothing
of ours. Nothing here may hang: a hung GPU or disk leaves a process that not even SIGKILL ends, so every slow look runs
in a thread or a child that is left behind when its time is over.

    stdin   {"source": this file, "download_url": ..., "api_url": ...}     read by LAUNCH
    stdout  {"<probe>": {"text": what was found} or {"problem": why nothing was}, ...}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

NOT_FOUND = "not found"
ALL_S, COMMAND_S, WRITE_S, DOWNLOAD_S, CONNECT_S = 45.0, 30.0, 8.0, 6.0, 10.0
WRITE_BYTES, WRITE_STEP_BYTES, WRITE_PART_OF_FREE = 256_000_000, 16_000_000, 0.1
DOWNLOAD_BYTES, DOWNLOAD_STREAMS, BLOCK_BYTES = 1_000_000_000, 4, 1 << 18
SHM = "/dev/shm"  # noqa: S108 - the kernel's name for shared memory
DIGEST_FILE, DIGEST_NAME = "/etc/trainstack/image-digest", "TRAINSTACK_IMAGE_DIGEST"

LAUNCH = "import json, sys; ask = json.load(sys.stdin); scope = {}; exec(ask['source'], scope); scope['main'](ask)"


class Problem(ValueError):
    """Why a probe found nothing, in words for the table."""


def main(ask: dict[str, Any]) -> None:
    """Run every probe at the same time, print what was found, and end without waiting for what hangs."""
    if ask.get("only") == "write":
        print(write_speed())
        return
    every = probes(ask)
    found: dict[str, dict[str, str]] = {}
    threads = [threading.Thread(target=_answer, args=(found, *item), daemon=True) for item in every.items()]
    for thread in threads:
        thread.start()
    _join(threads, ALL_S)
    late = {"problem": f"no answer within {ALL_S:.0f} s"}
    sys.stdout.write(json.dumps({name: found.get(name, late) for name in every}))
    sys.stdout.flush()
    os._exit(0)


def probes(ask: dict[str, Any]) -> dict[str, Callable[[], str]]:
    """The probes by name; those that were not asked for are left out."""
    fields = "name,memory.total,memory.free,driver_version"
    every: dict[str, Callable[[], str]] = {
        "gpus": lambda: output(["nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader,nounits"]),
        "cuda": lambda: output(["nvidia-smi"]),
        "disk": free_space,
        "write": lambda: output([sys.executable, "-I", "-c", LAUNCH], json.dumps({**ask, "only": "write"})),
        "shm": shared_memory,
        "digest": image_digest,
    }
    if ask.get("download_url"):
        every["download"] = lambda: download_speed(ask["download_url"])
    if ask.get("api_url"):
        every["api"] = lambda: health(ask["api_url"].rstrip("/") + "/health")
    return every


def _join(threads: list[threading.Thread], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _answer(found: dict[str, dict[str, str]], name: str, probe: Callable[[], str]) -> None:
    try:
        found[name] = {"text": probe()}
    except Problem as problem:
        found[name] = {"problem": str(problem)}
    except Exception as error:  # one probe that fails must not take the others with it
        found[name] = {"problem": f"{type(error).__name__}: {error}"}


def output(argv: list[str], stdin: str = "", limit_s: float = COMMAND_S) -> str:
    """What a command prints, errors included."""
    pipe, joined = subprocess.PIPE, subprocess.STDOUT
    try:
        child = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=joined, encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise Problem(NOT_FOUND) from None
    try:
        text, _ = child.communicate(stdin, timeout=limit_s)
    except subprocess.TimeoutExpired:
        child.kill()
        raise Problem(f"no answer within {limit_s:.0f} s") from None
    if child.returncode != 0:
        raise Problem(f"status {child.returncode}: {text.strip()}")
    return text


def free_space() -> str:
    """Free bytes and path of the folder training writes to, one line each for $HOME and /root."""
    lines = []
    for path in dict.fromkeys([str(Path.home()), "/root"]):
        if Path(path).is_dir():
            space = os.statvfs(path)
            lines.append(f"{space.f_bavail * space.f_frsize} {path}")
    return "\n".join(lines)


def write_speed() -> str:
    """Bytes written to the home's disk and the seconds that took."""
    home = Path.home()
    space = os.statvfs(home)
    most = write_limit(space.f_bavail * space.f_frsize)
    step = os.urandom(min(WRITE_STEP_BYTES, most))  # zeros would measure a file system that compresses
    if not step:
        return f"the disk of {home} is full"
    written, started = 0, time.monotonic()
    # The file has no name from the start: whatever ends this process, nothing stays behind.
    with tempfile.TemporaryFile(dir=home, buffering=0) as file:
        while written + len(step) <= most and time.monotonic() - started < WRITE_S:
            written += file.write(step)
            os.fsync(file.fileno())
    return f"{written} {time.monotonic() - started:.6f}"


def write_limit(free_bytes: int) -> int:
    """How many bytes may be written to measure."""
    return min(WRITE_BYTES, int(free_bytes * WRITE_PART_OF_FREE))


def shared_memory() -> str:
    """Size of shared memory in bytes."""
    if not Path(SHM).is_dir():
        raise Problem(f"there is no {SHM}")
    space = os.statvfs(SHM)
    return str(space.f_blocks * space.f_frsize)


def image_digest(environ: str = "/proc/1/environ", file: str = DIGEST_FILE) -> str:
    """The digest the image was started with, or nothing."""
    try:
        for entry in Path(environ).read_bytes().split(b"\0"):
            name, _, value = entry.partition(b"=")
            if name.decode(errors="replace") == DIGEST_NAME:
                return value.decode(errors="replace")
    except OSError:
        pass  # another user's pid 1
    try:
        return Path(file).read_text().strip()
    except OSError:
        return ""


def download_speed(url: str) -> str:
    """Bytes got over a few streams, and the seconds from the first answer to the last byte.

    One stream alone would measure the distance to the server as much as the line.
    """
    marks: list[tuple[float, int]] = []  # when a block came, and all bytes until then
    errors: list[Exception] = []
    lock = threading.Lock()

    def more(size: int) -> bool:
        with lock:
            marks.append((time.monotonic(), (marks[-1][1] if marks else 0) + size))
            return marks[-1][0] - marks[0][0] < DOWNLOAD_S and marks[-1][1] < DOWNLOAD_BYTES

    def pull() -> None:
        try:
            with open_url(url) as answer:
                size = 0
                while more(size):
                    size = len(answer.read1(BLOCK_BYTES))
                    if size == 0:
                        return
        except (OSError, ValueError, HTTPException) as error:
            errors.append(error)

    streams = [threading.Thread(target=pull, daemon=True) for _ in range(DOWNLOAD_STREAMS)]
    for stream in streams:
        stream.start()
    _join(streams, CONNECT_S + DOWNLOAD_S)
    with lock:
        if not marks:
            raise Problem(reason(errors[0]) if errors else "no answer")
        return f"{marks[-1][1]} {marks[-1][0] - marks[0][0]:.6f}"


def health(url: str) -> str:
    """The status that a GET is answered with, and the beginning of what came."""
    try:
        with open_url(url) as answer:
            return f"{answer.status} {answer.read(100).decode(errors='replace')}"
    except urllib.error.HTTPError as error:
        return str(error.code)
    except (OSError, ValueError, HTTPException) as error:
        raise Problem(reason(error)) from None


def open_url(url: str) -> Any:
    """GET a page. Raises Problem for an address that is not http(s)."""
    if not url.startswith(("http://", "https://")):
        raise Problem("the address is not http(s)")
    request = urllib.request.Request(url, headers={"User-Agent": "trainstack-preflight"})  # noqa: S310
    return urllib.request.urlopen(request, timeout=CONNECT_S)  # noqa: S310


def reason(error: Exception) -> str:
    """What went wrong, without the address: it may be a signed one."""
    cause = getattr(error, "reason", None) or error
    return f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else str(cause) or type(error).__name__
