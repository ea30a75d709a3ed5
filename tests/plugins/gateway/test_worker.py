"""A real worker and a real engine on a pod that has a token of its own and nothing else."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins.gateway.service import Gateway
from tests.plugins.gateway.conftest import Pod
from tests.plugins.gateway.prefect_api import HERE, POOL, ControlPlane, bare_env, eventually

ENDS = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
ITERATION = '[{"iteration": 3}]'

pytestmark = pytest.mark.xdist_group("gateway")


@pytest.fixture
def worker(pod: Pod, tmp_path: Path) -> Iterator[Path]:
    """The log of the pod's worker."""
    home = tmp_path / "home"
    home.mkdir()
    env = {
        **bare_env(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(HERE),
        "PREFECT_API_URL": pod.url,
        "PREFECT_API_AUTH_STRING": pod.auth,
        "PREFECT_WORKER_QUERY_SECONDS": "0.5",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "2",
        "PREFECT_WORKER_PREFETCH_SECONDS": "0",
    }
    argv = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--work-queue", pod.name]
    argv += ["--limit", "1", "--name", pod.name]
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(argv, env=env, cwd=home, stdout=output, stderr=output, start_new_session=True)
    yield log
    print(log.read_text())  # pytest shows it when the test failed
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def test_a_stage_reports_to_its_end_and_the_next_one_is_cancelled(
    control: ControlPlane, gateway: Gateway, pod: Pod, worker: Path, log: list[str]
) -> None:
    eventually(lambda: control.state(pod.run) in ENDS, "the stage")
    assert control.state(pod.run) == "COMPLETED", worker.read_text()
    assert control.ask("GET", f"/flow_runs/{pod.run}")["state"]["message"] == "the result"
    assert [(found["key"], found["data"]) for found in control.artifacts(pod.run)] == [(pod.key, ITERATION)]
    eventually(lambda: "hello from the pod" in control.logs(pod.run), "its log")
    eventually(lambda: {"COMPLETED"} == {found["state_type"] for found in control.task_runs(pod.run)}, "its task run")
    eventually(lambda: "prefect.worker.executed-flow-run" in control.events(pod.run), "its events")
    workers = control.ask("POST", f"/work_pools/{POOL}/workers/filter", {})
    assert [found["status"] for found in workers if found["name"] == pod.name] == ["ONLINE"]

    long = control.run(pod.name, key=pod.key, seconds=120)
    eventually(lambda: ITERATION in [found["data"] for found in control.artifacts(long)], "the stage that takes long")
    control.set_state(long, "CANCELLING")
    eventually(lambda: control.state(long) == "CANCELLED", "the end of the cancelled stage", 30)
    eventually(lambda: "Cancelled flow run" in worker.read_text(), "the word of the runner that ended it")
    assert (gateway.refusals, log) == (0, []), "a well-behaved pod is refused nothing"
