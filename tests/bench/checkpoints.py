"""Sealing and storing a large checkpoint, beside the plain way of copying the same bytes to the same place.

Servers are stand-ins on loopback (moto, our Hub server), each in a process of its own; every measured piece of work is
a process too, so that its peak memory is its own. The stall is measured on a trainer that only computes.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from plugins.slime.layout import iteration_dir, write_tracker
from tests.hub_server.running import hub_process

GIB = 1 << 30
FILES = 8
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}
TRAINER = (
    "import sys,time\nimport numpy as np\na=np.ones((256,256));n=0\nend=time.monotonic()+float(sys.argv[1])\n"
    "while time.monotonic()<end:\n a@a;n+=1\nprint(n)"
)


def main(gigabytes: float, rounds: int) -> None:
    """Measure and print both tables."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        root = Path(folder)
        save = root / "save"
        make_checkpoint(save, int(gigabytes * GIB))
        table = Table("store", "beside", "ours s", "beside s", "ratio", "ours MB/s", "peak MB", "beside peak MB")
        table.title = f"seal + store {gigabytes:g} GiB: medians of {rounds}, side by side"
        with servers(root) as env:
            for store, beside in (("folder", "cp"), ("volume", "cp"), ("s3", "boto3"), ("hub", "upload_folder")):
                table.add_row(*pair(save, root, store, beside, env, rounds))
                Console(stderr=True).print(f"{store} done")
        Console(width=120).print(table)
        Console(width=120).print(stall(save, root))


def make_checkpoint(save: Path, size_bytes: int) -> None:
    """Random bytes (nothing compresses them) in a few large files, as a sharded checkpoint has."""
    place = iteration_dir(save, 1)
    place.mkdir(parents=True)
    block = os.urandom(16 << 20)
    for number in range(FILES):
        with (place / f"__0_{number}.distcp").open("wb") as file:
            for part in range(size_bytes // FILES // len(block)):
                file.write(number.to_bytes(4, "big") + part.to_bytes(4, "big") + block[8:])
    write_tracker(save, 1)


def pair(save: Path, root: Path, store: str, beside: str, env: dict[str, str], rounds: int) -> list[str]:
    """One row: ours and the plain way in turn, each to a fresh place that is cleared afterwards."""
    size_mb = sum(file.stat().st_size for file in save.rglob("*") if file.is_file()) / 1e6
    times: dict[str, list[dict[str, float]]] = {"ours": [], beside: []}
    for number in range(rounds):
        for what in ("ours", beside):
            target, clear = place_of(root, store, what, number, env)
            times[what].append(work(what, save, target, env))
            clear()
            (save / "iter_0000001.manifest.json").unlink(missing_ok=True)
    median = {what: statistics.median(one["seconds"] for one in found) for what, found in times.items()}
    peak = {what: max(one["peak_mb"] for one in found) for what, found in times.items()}
    return [
        store,
        beside,
        f"{median['ours']:.1f}",
        f"{median[beside]:.1f}",
        f"{median['ours'] / median[beside]:.2f}",
        f"{size_mb / median['ours']:.0f}",
        f"{peak['ours']:.0f}",
        f"{peak[beside]:.0f}",
    ]


def place_of(root: Path, store: str, what: str, number: int, env: dict[str, str]) -> tuple[str, Any]:
    """Where this round stores to, and what clears it."""
    name = f"{store}-{what.replace('_', '-')}-{number}"
    if store in ("folder", "volume"):
        path = root / name
        path.mkdir()
        target = f"{store}:{path}" if what == "ours" else str(path / "copy")
        return target, lambda: shutil.rmtree(path)
    if store == "s3":
        script = f"import boto3;boto3.client('s3').create_bucket(Bucket='{name}')"
        subprocess.run([sys.executable, "-c", script], env={**os.environ, **env}, check=True)
        emptied = f"import boto3;b=boto3.resource('s3').Bucket('{name}');b.objects.delete();b.delete()"
        target = f"s3://{name}/x" if what == "ours" else f"{name}/x"
        return target, lambda: subprocess.run([sys.executable, "-c", emptied], env={**os.environ, **env}, check=True)
    script = f"from huggingface_hub import HfApi;HfApi().create_repo('me/{name}', private=True)"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **env}, check=True)
    gone = f"from huggingface_hub import HfApi;HfApi().delete_repo('me/{name}')"
    target = f"hub://me/{name}" if what == "ours" else f"me/{name}#x"
    return target, lambda: subprocess.run([sys.executable, "-c", gone], env={**os.environ, **env}, check=True)


def work(what: str, save: Path, target: str, env: dict[str, str]) -> dict[str, float]:
    """Run one piece of work in its own process."""
    argv = [sys.executable, "-m", "tests.bench.work", what, str(save), target]
    done = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{what} to {target} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def stall(save: Path, root: Path) -> Table:
    """What sealing and storing takes from a trainer that computes on one core, alone and beside our publisher."""
    table = Table("trainer", "products a second", "share of alone", title="stall added to a computing trainer")
    target = root / "stall"
    alone = compute(20.0)
    argv = [sys.executable, "-m", "tests.bench.work", "ours", str(save), f"folder:{target}"]
    publishing = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    beside = compute(20.0)
    took = json.loads(publishing.communicate()[0].splitlines()[-1])["seconds"]
    table.add_row("alone", f"{alone:.0f}", "1.00")
    table.add_row("beside seal + store (folder)", f"{beside:.0f}", f"{beside / alone:.2f}")
    lost_s = (1 - beside / alone) * 20.0
    table.caption = f"seal + store took {took:.1f} s with the trainer beside it; it cost the trainer {lost_s:.1f} s"
    return table


def compute(seconds: float) -> float:
    """Matrix products a second of a process on one core."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRAINER, str(seconds)], env=env, capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1]) / seconds


@contextlib.contextmanager
def servers(root: Path) -> Iterator[dict[str, str]]:
    """moto and the Hub server on loopback; yields the environment that leads to them."""
    s3 = subprocess.Popen(
        [sys.executable, "-c", S3], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(root)}
    )
    assert s3.stdout is not None
    s3_url = s3.stdout.readline().strip()
    with hub_process(root / "hub") as (hub, _):
        token = hub.token("hf_bench", "me")
        try:
            yield {
                **KEYS,
                "AWS_ENDPOINT_URL": s3_url,
                "HF_ENDPOINT": hub.url,
                "HF_TOKEN": token,
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            }
        finally:
            s3.terminate()
            s3.wait()


S3 = """
import time
from tests.plugins.checkpoints.s3_server import s3_server
print(s3_server(), flush=True)
time.sleep(100000)
"""
