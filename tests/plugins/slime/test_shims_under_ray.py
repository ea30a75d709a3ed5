"""Scripts that own their machine, under a real Ray of ours: they train to their end, and nothing of the pod ends."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins.rayjobs.jobs import FINAL, MARK
from plugins.rayjobs.processes import children_named, marked
from plugins.slime import layout
from plugins.slime.launch import HOME, TrainerSpec, build
from plugins.slime.shims import under_shims
from tests.plugins.rayjobs.conftest import Head, running_head, until

pytestmark = pytest.mark.xdist_group("ray")
SLIME = os.environ.get("SLIME", "")
SCRIPT = "scripts/run-qwen3-4B-base-sft.sh"
needs_slime = pytest.mark.skipif(
    not SLIME or not (Path(SLIME) / SCRIPT).is_file(), reason="SLIME names no checkout of upstream slime"
)

OWNS_ITS_MACHINE = """#!/bin/bash
pkill -9 sglang
ray stop --force
pkill -9 ray
pkill -9 python
set -ex
export EXPORTED=yes
ray start --head --node-ip-address 127.0.0.1 --num-gpus 8 --disable-usage-stats --dashboard-port=8265 > /dev/null 2>&1
ray job list
ray job submit --address="http://127.0.0.1:8265" --runtime-env-json='{"env_vars": {"GIVEN": "json"}}' \\
   -- python3 train.py --save /root/elsewhere --save-interval 1 "$@"
"""
TRAIN = """
import json, os, sys, time
import ray

ray.init()

@ray.remote(num_cpus=0)
def look():
    return {name: os.environ.get(name) for name in ("GIVEN", "EXPORTED", "RELAY_TRAIN_MODE")}

flags = sys.argv[1:]
print("workers", json.dumps(ray.get(look.remote())), flush=True)
print("saves to", flags[len(flags) - flags[::-1].index("--save")], flush=True)
if "--wait" in flags:
    time.sleep(600)
sys.exit(3 if "--fail" in flags else 0)
"""
SAVING = """
import json, os, sys
from pathlib import Path
import ray

ray.init()
sys.path.insert(0, os.environ["TESTS"])
from tests.plugins.checkpoints.conftest import Trainer

@ray.remote(num_cpus=0)
def look():
    return {name: os.environ.get(name) for name in ("CUDA_DEVICE_MAX_CONNECTIONS", "PYTHONPATH", "MASTER_ADDR")}

flags = sys.argv[1:]
print("workers", json.dumps(ray.get(look.remote())), flush=True)
print("flags", json.dumps(flags), flush=True)
Trainer(Path(flags[len(flags) - flags[::-1].index("--save")])).save(7)
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    programs = Path(sys.executable).parent  # python3 and ray, as on a pod
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{programs}:{before}"
    try:
        with running_head(tmp_path_factory.mktemp("shims")) as started:
            yield started
    finally:
        os.environ["PATH"] = before


class Pod:
    """A slime folder with a script, started as the stage starts it."""

    def __init__(self, head: Head, folder: Path, name: str) -> None:
        self.head, self.folder, self.name, self.log = head, folder, name, folder / "trainer.log"
        self.save_dir = folder / "sft/save"
        (folder / "slime").mkdir()

    def start(self, command: str, **env: str) -> None:
        spec = TrainerSpec(
            kind="command",
            stage="sft",
            run_id="r",
            attempt=1,
            save_dir=self.save_dir,
            rollout_dir=self.folder / "attempt-1/rollouts",
            command=["bash", "-c", command],
            slime_dir=self.folder / "slime",
        )
        launch = under_shims(build(spec), self.folder / "attempt-1/shims")
        self.head.jobs.submit(self.name, launch.argv, {**launch.env, **env}, launch.cwd, self.log)

    def end(self) -> str:
        return until(lambda: self.head.jobs.status(self.name) in FINAL and self.head.jobs.status(self.name))

    def said(self, first: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.removeprefix(f"{first} ") for line in lines if line.startswith(f"{first} ")]


@pytest.fixture
def pod(head: Head, tmp_path: Path, request: pytest.FixtureRequest) -> Pod:
    made = Pod(head, tmp_path, request.node.name)
    (tmp_path / "slime/run.sh").write_text(OWNS_ITS_MACHINE)
    (tmp_path / "slime/train.py").write_text(TRAIN)
    return made


def test_a_script_that_owns_its_machine_trains_in_the_pods_own_ray(pod: Pod) -> None:
    guard = pod.head.info.guard_pid
    core = children_named(guard, "raylet") | children_named(guard, "gcs_server")
    pod.start("bash run.sh")
    assert pod.end() == "SUCCEEDED", pod.log.read_text()
    assert json.loads(pod.said("workers")[0]) == {"GIVEN": "json", "EXPORTED": "yes", "RELAY_TRAIN_MODE": "sft"}
    assert pod.said("saves to") == [str(pod.save_dir)]
    assert [line.partition(":")[0] for line in pod.said("trainstack:")] == [
        *("pkill -9 sglang", "ray stop", "pkill -9 ray", "pkill -9 python", "ray start"),
        *("ray job submit", "train.py"),
    ]
    assert pod.name in pod.log.read_text(), "`ray job list` is the real one's"
    assert pod.head.process.poll() is None and len(core) == 2 and core <= pod.head.processes()


def test_the_exit_status_of_what_was_submitted_is_the_jobs(pod: Pod) -> None:
    pod.start("bash run.sh --fail")
    assert (pod.end(), pod.head.jobs.exit_code(pod.name)) == ("FAILED", 3)


def test_what_was_submitted_ends_with_the_stage(pod: Pod) -> None:
    pod.start("bash run.sh --wait")
    until(lambda: pod.said("saves to"))
    assert len(marked(MARK, pod.name)) >= 2
    assert pod.head.jobs.stop(pod.name, 30) == "STOPPED"
    assert not marked(MARK, pod.name)


@pytest.mark.slime
@needs_slime
def test_slimes_own_script_runs_as_it_is(pod: Pod) -> None:
    slime = pod.folder / "slime"
    shutil.copytree(Path(SLIME) / "scripts", slime / "scripts")
    (slime / "train_async.py").write_text(SAVING)
    pod.start(f"bash {slime}/{SCRIPT}", TESTS=str(HOME))
    assert pod.end() == "SUCCEEDED", pod.log.read_text()
    assert layout.read_tracker(pod.save_dir) == 7
    flags = json.loads(pod.said("flags")[0])
    assert "--num-layers" in flags and "--debug-train-only" in flags
    assert flags[-4:] == ["--save", str(pod.save_dir), "--load", str(pod.save_dir)]
    workers = json.loads(pod.said("workers")[0])
    assert workers == {
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "PYTHONPATH": f"/root/Megatron-LM/:{HOME}",
        "MASTER_ADDR": "127.0.0.1",
    }
    assert pod.head.process.poll() is None
