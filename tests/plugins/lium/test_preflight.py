"""The preflight of emulator pods: honest ones, lying ones, and ones that lack what it asks with."""

import contextlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from plugins.errors import ControlPlaneError
from plugins.lium import preflight_probe as probe
from plugins.lium.preflight import _RUN, NO_PYTHON, Check, Limits, failing, preflight
from plugins.lium.preflight_rows import ClockReading, Said, rows
from plugins.lium.tunnel import PodConnection
from tests.plugins.lium.rented import lie, rented_pod

NAMES = [
    "GPU type",
    "GPU count",
    "GPU memory free",
    "driver",
    "CUDA",
    "disk space",
    "disk write",
    "download",
    "clock",
    "shared memory",
    "Prefect API",
    "image",
]
DIGEST = "sha256:" + "ab" * 32
HONEST = """case "$*" in *--query-gpu=*)
  echo 'NVIDIA H200, 143771, 143000, 580.95.05'
  echo 'NVIDIA H200, 143771, 142000, 580.95.05' ;;
*) echo '| NVIDIA-SMI 580.95.05   Driver Version: 580.95.05   CUDA Version: 13.0 |' ;; esac"""


class Site(http.server.BaseHTTPRequestHandler):
    """What the pod may reach: a file to download, an API that is well, and some that are not."""

    pages = {  # noqa: RUF012
        "/file": (200, bytes(4_000_000)),
        "/small": (200, b"hello"),
        "/api/health": (200, b"true"),
        "/gateway/health": (401, b"who are you?"),
        "/page/health": (200, b"<html>"),
        "/broken/health": (502, b""),
    }

    def do_GET(self) -> None:
        status, body = self.pages.get(self.path.partition("?")[0], (404, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_address[1]}"
    made.shutdown()
    made.server_close()


@pytest.fixture
def pod(world, tmp_path: Path) -> Iterator[PodConnection]:
    settings = world.settings
    reach = (settings.base_url, settings.api_key, settings.ssh_key_path, tmp_path / "pins")
    environment = {"TRAINSTACK_IMAGE_DIGEST": DIGEST}
    with rented_pod(*reach, gpu="H200", count=2, environment=environment) as connection:
        lie(connection, HONEST)
        yield connection


def modest(site: str) -> Limits:
    """Limits that every working machine meets."""
    return Limits(
        gpu=("RTX4090", "H200"),
        gpu_count=2,
        min_gpu_memory_free=0.9,
        min_driver="570",
        min_cuda=12.8,
        min_disk_gb=0.001,
        min_disk_write_mb_s=0.001,
        min_download_mbps=0.001,
        download_url=f"{site}/file",
        max_clock_skew_s=60,
        min_shm_gb=0.001,
        api_url=f"{site}/api",
        image_digest=f"some/image@{DIGEST}",
    )


def nothing_listens() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}/api"


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def bad(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.ok]


def test_an_honest_pod_passes_and_every_figure_is_a_row(pod: PodConnection, site: str) -> None:
    before = pod.run("ls -lA ~").stdout
    checks = preflight(pod, modest(site), time.time)
    found = by_name(checks)
    assert [check.name for check in checks] == NAMES
    own_init = DIGEST.encode() in pod.run("cat /proc/1/environ").stdout
    assert found["image"].found == (DIGEST if own_init else "the pod does not say")
    assert failing(checks) is None, checks
    assert found["GPU type"].row() == {
        "check": "GPU type",
        "found": "NVIDIA H200 x2",
        "limit": "RTX4090 or H200",
        "verdict": "ok",
    }
    assert (found["GPU count"].found, found["GPU count"].limit) == ("2", "2")
    assert (found["GPU memory free"].found, found["GPU memory free"].limit) == ("99% of GPU 1", "at least 90% of each")
    assert (found["driver"].found, found["CUDA"].found) == ("580.95.05", "13.0")
    assert found["Prefect API"].found == "HTTP 200 true"
    assert pod.run("ls -lA ~").stdout == before


def test_each_limit_that_is_not_met_is_a_failing_row(pod: PodConnection, site: str) -> None:
    limits = Limits(
        gpu=("H100", "A100"),
        gpu_count=8,
        min_gpu_memory_free=1.0,
        min_driver="999",
        min_cuda=99.0,
        min_disk_gb=1e9,
        min_disk_write_mb_s=1e9,
        min_download_mbps=1e9,
        download_url=f"{site}/file",
        max_clock_skew_s=10,
        min_shm_gb=1e9,
        api_url=nothing_listens(),
        image_digest="sha256:" + "cd" * 32,
    )
    checks = preflight(pod, limits, lambda: time.time() + 100)
    found = by_name(checks)
    own_init = DIGEST.encode() in pod.run("cat /proc/1/environ").stdout
    assert bad(checks) == (NAMES if own_init else NAMES[:-1])
    assert all(check.row()["verdict"] == "FAILED" for check in checks[:-1])
    assert found["clock"].found.startswith("-")
    line = failing(checks)
    assert line is not None and "\n" not in line
    assert line.startswith("GPU type: NVIDIA H200 x2 (limit: H100 or A100); GPU count: 2 (limit: 8); GPU memory free: ")
    assert "refused" in found["Prefect API"].found


def test_without_limits_everything_is_shown_and_nothing_judged(pod: PodConnection) -> None:
    checks = preflight(pod, Limits(("H200",), 2), lambda: time.time() + 100_000)
    assert [check.name for check in checks] == NAMES
    assert failing(checks) is None
    assert [check.row()["verdict"] for check in checks] == ["ok", "ok"] + ["not judged"] * 10


def test_a_host_that_lies_about_its_gpus_is_found_out(pod: PodConnection) -> None:
    lie(pod, HONEST.replace("NVIDIA H200, 143771, 142000", "NVIDIA A10, 23028, 11514"))
    checks = preflight(pod, Limits(("H200",), 2, min_gpu_memory_free=0.9), time.time)
    assert failing(checks) == (
        "GPU type: NVIDIA H200 x1, NVIDIA A10 x1 (limit: H200); "
        "GPU memory free: 50% of GPU 1 (limit: at least 90% of each)"
    )


def test_a_pod_without_nvidia_smi_fails_its_rows_and_no_others(pod: PodConnection, site: str) -> None:
    lie(pod, None)
    if pod.run(["sh", "-c", "command -v nvidia-smi"]).rc == 0:
        pytest.skip("this machine has an nvidia-smi of its own, which the pod sees")
    checks = preflight(pod, replace(modest(site), min_driver=None), time.time)
    assert bad(checks) == NAMES[:5]
    assert {check.found for check in checks[:5]} == {"not found"}
    assert str(failing(checks)).startswith("GPU type, GPU count, GPU memory free, driver, CUDA: not found (limit: RTX")


def test_answers_that_cannot_be_read_are_failing_rows_with_the_text(pod: PodConnection, site: str) -> None:
    lie(pod, "printf 'Unable to determine\\033[31m the device handle\\n'; exit 15")
    limits = replace(modest(site), api_url=f"{site}/page", download_url=f"{site}/missing?signature=s3cret")
    checks = preflight(pod, limits, time.time)
    found = by_name(checks)
    assert bad(checks) == [*NAMES[:5], "download", "Prefect API"]
    assert found["GPU type"].found == "status 15: Unable to determine [31m the device handle"
    assert found["Prefect API"].found == "HTTP 200 <html>"
    assert found["download"].found == "HTTP 404"
    assert "s3cret" not in repr(checks)


def test_python_is_found_by_the_path_of_pid_1_and_its_lack_is_told(pod: PodConnection) -> None:
    if b"LIUM_POD_ID" not in pod.run("cat /proc/1/environ").stdout:
        pytest.skip("this pod has no pid 1 of its own")
    links = "mkdir ~/bin; for tool in tr sed head; do ln -s $(command -v $tool) ~/bin/; done; echo ~/bin"
    folder = pod.run(links).stdout.decode().strip()
    ask = json.dumps({"source": "def main(ask): print('here')"}).encode()
    bare = ["/usr/bin/env", "-i", f"PATH={folder}", "/bin/sh", "-c"]
    done = pod.run([*bare, _RUN], stdin=ask)
    assert (done.rc, done.stdout, done.stderr) == (0, b"here\n", b"")
    assert pod.run([*bare, _RUN.replace("/proc/1/environ", "/none")], stdin=ask).rc == NO_PYTHON


def test_a_pod_that_does_not_answer_raises(pod: PodConnection) -> None:
    pod.close()
    with pytest.raises(ControlPlaneError, match="closed"):
        preflight(pod, Limits(("H200",), 2), time.time)


SAID = {
    "gpus": Said("NVIDIA H200, 143771, 143000, 580.95.05\n"),
    "cuda": Said("CUDA Version: 12.8 |"),
    "disk": Said("500000000000 /root"),
    "write": Said("256000000 0.5"),
    "download": Said("125000000 1.0"),
    "shm": Said("8000000000"),
    "api": Said("200 true"),
    "digest": Said(DIGEST),
}
CLOCK = ClockReading(Said("1000.500000000"), 1000.0, 1001.0)
MET = Limits(
    gpu=("H200",),
    gpu_count=1,
    min_gpu_memory_free=0.99,
    min_driver="580.95.05",
    min_cuda=12.8,
    min_disk_gb=500,
    min_disk_write_mb_s=512,
    min_download_mbps=1000,
    download_url="http://x/file",
    max_clock_skew_s=0,
    min_shm_gb=8,
    api_url="http://x/api",
    image_digest=DIGEST,
)


def test_a_figure_equal_to_its_limit_is_enough() -> None:
    assert failing(rows(SAID, CLOCK, MET)) is None


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("GPU type", {"gpu": ("H100",)}),
        ("GPU count", {"gpu_count": 2}),
        ("GPU memory free", {"min_gpu_memory_free": 0.999}),
        ("driver", {"min_driver": "580.100"}),
        ("CUDA", {"min_cuda": 12.9}),
        ("disk space", {"min_disk_gb": 500.1}),
        ("disk write", {"min_disk_write_mb_s": 512.1}),
        ("download", {"min_download_mbps": 1000.1}),
        ("shared memory", {"min_shm_gb": 8.1}),
        ("image", {"image_digest": "sha256:cd"}),
    ],
)
def test_a_limit_just_missed_fails_its_own_row_alone(name: str, limit: dict) -> None:
    assert bad(rows(SAID, CLOCK, replace(MET, **limit))) == [name]


@pytest.mark.parametrize(
    ("probe_name", "text", "failed"),
    [
        ("gpus", "NVIDIA H200, 143771, 143000, 580.95.05\n" * 2, ["GPU count"]),
        ("gpus", "NVIDIA H200, [N/A], [N/A], 580.95.05", ["GPU memory free"]),
        ("gpus", "NVIDIA H200, 143771, 143000, beta", ["driver"]),
        ("gpus", "", NAMES[:4]),
        ("gpus", "No devices were found", NAMES[:4]),
        ("cuda", "CUDA Version: N/A", ["CUDA"]),
        ("cuda", "CUDA UMD Version: 12.4", ["CUDA"]),
        ("disk", "much", ["disk space"]),
        ("disk", "600000000000 /home\n400000000000 /root", ["disk space"]),
        ("write", "the disk of /root is full", ["disk write"]),
        ("write", "nan nan", ["disk write"]),
        ("download", "5", ["download"]),
        ("shm", "9" * 5000, ["shared memory"]),
        ("api", "502", ["Prefect API"]),
        ("api", "200 <html>", ["Prefect API"]),
        ("api", "401", []),
        ("digest", "", []),
    ],
)
def test_what_else_a_pod_may_say(probe_name: str, text: str, failed: list[str]) -> None:
    checks = rows({**SAID, probe_name: Said(text)}, CLOCK, MET)
    assert bad(checks) == failed
    assert all(len(check.found) <= 160 for check in checks)


@pytest.mark.parametrize("probe_name", ["cuda", "disk", "write", "download", "shm", "api", "digest"])
def test_a_probe_that_did_not_answer_fails_its_row(probe_name: str) -> None:
    checks = rows({**SAID, probe_name: Said(problem="no answer within 45 s")}, CLOCK, MET)
    assert [check.found for check in checks if not check.ok] == ["no answer within 45 s"]


@pytest.mark.parametrize(
    ("date", "before", "after", "well"),
    [
        ("1010.000000000", 1000.0, 1000.0, True),
        ("1010.100000000", 1000.0, 1000.0, False),
        ("989.900000000", 1000.0, 1000.0, False),
        ("1012.000000000", 1000.0, 1006.0, True),  # between 6 and 12 s off
        ("1017.000000000", 1000.0, 1006.0, False),  # between 11 and 17 s off
        ("1010.%N", 1000.0, 1000.0, True),
        ("1011.%N", 1000.0, 1000.0, False),
        ("date: not found", 1000.0, 1000.0, False),
        ("", 1000.0, 1000.0, False),
    ],
)
def test_only_what_the_clock_is_surely_off_counts(date: str, before: float, after: float, well: bool) -> None:
    checks = rows(SAID, ClockReading(Said(date), before, after), replace(MET, max_clock_skew_s=10))
    assert by_name(checks)["clock"].ok is well


class Answers:
    """Stands where a connection stands, for answers that no emulator pod gives."""

    def __init__(self, rc: int, stdout: bytes) -> None:
        self.rc, self.stdout, self.stderr = rc, stdout, b""

    def run(self, *_: object, **__: object) -> "Answers":
        return self


@pytest.mark.parametrize(
    ("rc", "output", "found"),
    [
        (66, b"", "there is no python3 on the pod"),
        (1, b"Killed", "the probe ended with status 1: Killed"),
        (0, b"[" * 100_000, "the probe ended with status 0: [[["),
        (0, b'{"gpus": 3}', "the probe did not answer"),
    ],
)
def test_a_pod_on_which_the_probe_does_not_run_fails_every_row(rc: int, output: bytes, found: str) -> None:
    checks = preflight(Answers(rc, output), MET, time.time)  # type: ignore[arg-type]
    assert bad(checks) == NAMES
    assert all(check.found.startswith(found) for check in checks if check.name != "clock")
    assert str(failing(checks)).startswith("GPU type, GPU count, GPU memory free, driver, CUDA, disk space")


def test_the_write_takes_no_more_than_a_tenth_of_what_is_free() -> None:
    assert probe.write_limit(10**12) == probe.WRITE_BYTES
    assert probe.write_limit(10**9) == 10**8
    assert probe.write_limit(5) == 0


def open_files(pid: int) -> list[str]:
    names = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            names.append(str(fd.readlink()))
    return names


def test_a_write_that_is_killed_leaves_nothing_behind(tmp_path: Path, until: Callable) -> None:
    slow = Path(probe.__file__).read_text() + "\nWRITE_BYTES, WRITE_STEP_BYTES, WRITE_S = 10**15, 4096, 60.0\n"
    argv, env = [sys.executable, "-I", "-c", probe.LAUNCH], {**os.environ, "HOME": str(tmp_path)}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=env) as child:
        try:
            child.stdin.write(json.dumps({"source": slow, "only": "write"}).encode())
            child.stdin.close()
            until(lambda: any(name.startswith(str(tmp_path)) for name in open_files(child.pid)), "the file is open")
        finally:
            child.kill()
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_hangs_is_left_behind() -> None:
    with pytest.raises(probe.Problem, match="no answer within 0 s"):
        probe.output(["sleep", "60"], limit_s=0.2)
    with pytest.raises(probe.Problem, match="not found"):
        probe.output(["no-such-program"])


def test_a_probe_that_hangs_does_not_keep_the_others_answers() -> None:
    hanging = Path(probe.__file__).read_text() + "\nALL_S = 3.0\ndef free_space():\n    time.sleep(600)\n"
    ask = json.dumps({"source": hanging}).encode()
    done = subprocess.run([sys.executable, "-I", "-c", probe.LAUNCH], input=ask, capture_output=True, timeout=60)
    answers = json.loads(done.stdout)
    assert answers["disk"] == {"problem": "no answer within 3 s"}
    assert int(answers["shm"]["text"]) > 0


def test_only_the_web_is_asked(site: str) -> None:
    for url in ("file:///etc/passwd", "ftp://127.0.0.1/x"):
        with pytest.raises(probe.Problem, match="not http"):
            probe.health(url)
        with pytest.raises(probe.Problem, match="not http"):
            probe.download_speed(url)
    assert [probe.health(f"{site}/{kind}/health") for kind in ("gateway", "broken")] == ["401", "502"]


def test_a_file_too_small_to_measure_is_said_so(site: str) -> None:
    text = probe.download_speed(f"{site}/small")
    assert text.split()[0] == str(5 * probe.DOWNLOAD_STREAMS)
    row = by_name(rows({**SAID, "download": Said(text)}, CLOCK, MET))["download"]
    assert "name a larger file" in row.row()["found"]


def test_the_digest_is_what_pid_1_or_the_image_says(tmp_path: Path) -> None:
    environ, file = tmp_path / "environ", tmp_path / "digest"
    environ.write_bytes(b"HOME=/root\0PATH=/bin\0")
    assert probe.image_digest(str(environ), str(file)) == ""
    file.write_text("sha256:file\n")
    assert probe.image_digest(str(environ), str(file)) == "sha256:file"
    environ.write_bytes(b"HOME=/root\0TRAINSTACK_IMAGE_DIGEST=sha256:init\0")
    assert probe.image_digest(str(environ), str(file)) == "sha256:init"
    assert probe.image_digest(str(tmp_path / "no"), str(tmp_path / "no")) == ""
