"""The whole chain with real servers: Prefect's own, the emulator, pods, Ray, the stand-in trainer.

One world per test process: its state folder, its HOME, its servers. Tests use run ids of their own and look at
the world from outside: through the command line, Prefect's API, Lium's API, the store's files and /proc.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
KEY = {"X-API-KEY": "local-emulator"}
PATIENCE_S = 150.0
ANY_DISK = {"min_disk_write_mb_s": None, "min_shm_gb": None, "download_url": None}
"""A preflight that shows this machine's disk and network and does not judge them."""


def eventually(look: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """The first truthy answer of `look`; fails with `what` when none came in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for: {what}"
        time.sleep(0.1)


def pids_with(marker: str) -> list[int]:
    """Processes that carry this `NAME=value` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def command_of(pid: int) -> str:
    """A process's command line; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@dataclass
class World:
    """Servers and folders of this test process."""

    folder: Path
    env: dict[str, str]
    api: str
    lium: str
    logs: list[Path] = field(default_factory=list)
    """What `start` writes to, oldest first."""

    def cli(self, *words: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """Run `trainstack WORDS` to its end."""
        argv = [sys.executable, "-m", "flows.cli", *words]
        return subprocess.run(
            argv, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start `trainstack WORDS`, its output in a log of its own."""
        log = self.folder / f"cli-{time.monotonic_ns()}.log"
        argv = [sys.executable, "-m", "flows.cli", *words]
        with log.open("wb") as out:
            process = subprocess.Popen(
                argv, env=self.env, cwd=self.folder, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.logs.append(log)
        return process

    def recipe(self, name: str, **changes: Any) -> Path:
        """Write a small recipe: 12 SFT iterations, a checkpoint every 4."""
        data = ROOT / "deployments" / "recipes" / "data"
        shape = {"num-layers": 1, "hidden-size": 32, "ffn-hidden-size": 64, "num-attention-heads": 2, "seq-length": 48}
        recipe: dict[str, Any] = {
            "name": "small",
            "seed": 7,
            "lium": {"base_url": "emulator"},
            # No rest for hosts: all tests of a world share two, and what one test loses another needs.
            "pod": {
                "gpu": "H200",
                "max_price_per_gpu_hour": 9.0,
                "budget_usd": 9.0,
                "preflight": ANY_DISK,
                "bad_host_hours": 0,
            },
            "trainer": {"kind": "tinyslime"},
            "model": {"args": shape},
            "sft": {
                "data": str(data / "demo_sft.jsonl"),
                "num_rollout": 12,
                "save_interval": 4,
                "extra_args": {"rollout-batch-size": 4, "lr": 0.003},
            },
            "heartbeat_s": 1,
            **changes,
        }
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(recipe))
        return file

    def status(self, run_id: str) -> dict[str, Any]:
        """`trainstack status RUN_ID --json`."""
        done = self.cli("status", run_id, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def pods(self, run_id: str) -> list[str]:
        """Names of this run's pods in Lium's listing."""
        return [row["pod_name"] for row in self.pod_rows(run_id)]

    def pod_rows(self, run_id: str, *, removed: bool = False) -> list[dict[str, Any]]:
        """This run's pods on the emulator, past the listing: that may be asked 60 times a minute, by the run alone."""
        rows = httpx.get(f"{self.control}/pods", timeout=20).json()
        mine = re.compile(rf"ts-{re.escape(run_id)}-(sft|rl|sftrl)-a\d+")
        return [row for row in rows if mine.fullmatch(row["pod_name"]) and (removed or not row["removed"])]

    @property
    def control(self) -> str:
        """The emulator's own routes, which real Lium does not have."""
        return self.lium.removesuffix("/api") + "/_emulator"

    def rents(self, run_id: str) -> int:
        """How many pods were ever rented for a run, from Prefect's ledger."""
        return len(self.status(run_id)["pods"])

    def left_running(self, run_id: str) -> list[str]:
        """Command lines of processes that still live in pods this run ever had."""
        pods = [pod["id"] for pod in self.status(run_id)["pods"]]
        return [command_of(pid) for pod in pods for pid in pids_with(f"LIUM_POD_ID={pod}")]

    def flow_runs(self, *tags: str) -> list[dict[str, Any]]:
        """Flow runs that carry all these tags, newest first."""
        body = {"flow_runs": {"tags": {"all_": list(tags)}}, "sort": "EXPECTED_START_TIME_DESC"}
        return list(httpx.post(f"{self.api}/flow_runs/filter", json=body, timeout=30).json())

    def stage_run(self, run_id: str, stage: str, attempt: int) -> dict[str, Any] | None:
        """The flow run of one attempt, None while there is none."""
        found = self.flow_runs(f"run:{run_id}", f"stage:{stage}", f"attempt:{attempt}")
        return found[0] if found else None

    def stage_state(self, run_id: str, stage: str, attempt: int) -> str | None:
        """State type of one attempt."""
        found = self.stage_run(run_id, stage, attempt)
        return found["state_type"] if found else None

    def set_state(self, flow_run_id: str, kind: str) -> None:
        """Propose a state, as the button in the UI does."""
        body = {"state": {"type": kind, "name": kind.title()}, "force": False}
        httpx.post(f"{self.api}/flow_runs/{flow_run_id}/set_state", json=body, timeout=30).raise_for_status()

    def sealed(self, run_id: str, stage: str = "sft") -> list[int]:
        """Iterations in the store."""
        folder = self.folder / "state" / "store" / run_id / stage
        names = [file.parent.name for file in folder.glob("iter_*/manifest.json")]
        return sorted(int(name.removeprefix("iter_")) for name in names if "." not in name)  # not what is being deleted

    def weights(self, run_id: str, stage: str = "sft") -> bytes:
        """Bytes of the newest exported weights."""
        last = self.sealed(run_id, stage)[-1]
        store = self.folder / "state" / "store" / run_id / stage
        return (store / f"iter_{last:07d}" / "hf" / str(last) / "model.safetensors").read_bytes()

    def engine(self, run_id: str, stage: str, attempt: int) -> int:
        """Process id of the engine that runs an attempt."""
        run = eventually(lambda: self.stage_run(run_id, stage, attempt), f"{stage} attempt {attempt} of {run_id}")
        marker = f"PREFECT__FLOW_RUN_ID={run['id']}"

        def look() -> list[int]:
            return [pid for pid in pids_with(marker) if "prefect.engine" in command_of(pid)]

        return int(eventually(look, f"the engine of {run_id} {stage} {attempt}")[0])


@contextmanager
def new_world(folder: Path) -> Iterator[World]:
    """Servers of their own under a folder; at the end they are stopped, and none may be left."""
    (folder / "home").mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TERM") if name in os.environ}
    env = {**kept, "HOME": str(folder / "home"), "TRAINSTACK_DIR": str(folder / "state"), "COLUMNS": "200"}
    code = "from tasks.control_plane import use_api; from tasks.local_servers import ensure_emulator as e; "
    code += "print(use_api()); print(e())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    api, lium = done.stdout.split()[-2:]
    made = World(folder, env, api, lium)
    try:
        yield made
    finally:
        made.cli("down")
        assert not [pid for pid in pids_with(f"TRAINSTACK_DIR={env['TRAINSTACK_DIR']}") if pid != os.getpid()]
