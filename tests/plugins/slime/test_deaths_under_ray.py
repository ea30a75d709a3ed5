"""Deaths of actors as Ray itself reports them, and the bar of one while it is drawn."""

import sys
import time
from pathlib import Path

import pytest

from plugins.rayjobs.jobs import FINAL
from plugins.slime.diagnose import diagnose
from plugins.slime.progress import bar
from plugins.slime.worker_logs import last_lines
from tests.plugins.rayjobs.conftest import Head, running_head, until

DRIVER = """
import os, signal, sys, time
import ray

ray.init(address="auto", log_to_driver=True)

@ray.remote(num_cpus=0)
class MegatronTrainRayActor:
    def train(self, go, how):
        drawn = "\\rRollout generation:  25%|##5       | 16/64 [00:09<00:28,  1.7it/s]"
        print(drawn, end="", file=sys.stderr, flush=True)
        while not os.path.exists(go):
            time.sleep(0.05)
        if how == "raise":
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        print("\\nTraceback (most recent call last):\\n  File \\"m.py\\", line 1, in f\\nKeyError: 'optimizer'",
              file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

ray.get(MegatronTrainRayActor.remote().train.remote(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory):
    with running_head(tmp_path_factory.mktemp("deaths")) as started:
        yield started


@pytest.mark.parametrize(("how", "name"), [("raise", "gpu-fault"), ("die", "actor-died")])
def test_what_an_actor_died_of_is_told_from_the_drivers_log(head: Head, tmp_path: Path, how: str, name: str) -> None:
    go, log, script = tmp_path / "go", tmp_path / "driver.log", tmp_path / "driver.py"
    script.write_text(DRIVER)
    since = float(int(time.time()))

    def said() -> list[str]:
        return log.read_text().splitlines() if log.exists() else []

    head.jobs.submit(how, [sys.executable, str(script), str(go), how], {}, tmp_path, log)
    until(lambda: ("Rollout generation", 16, 64) in map(bar, said()))  # while it is drawn
    go.touch()
    until(lambda: head.jobs.status(how) in FINAL)
    found = diagnose([line for line in said() if "KeyError" not in line])  # whether that one got through is chance
    assert found is not None and found.name == name, said()
    last = diagnose([line for line in last_lines(Path(head.info.log_dir), since) if "ECC" not in line])
    assert how != "die" or (last is not None and last.name == "optimizer-not-saved")
