"""A second node of Ray, on the same machine as the emulator's are: joins, is named, is missed, and leaves nothing."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.errors import ControlPlaneError
from plugins.rayjobs.processes import marked
from plugins.rayjobs.settings import TOKEN, HeadSettings, ray_environment, ray_start_argv, read_info

from .conftest import running_head, until

pytestmark = pytest.mark.xdist_group("ray")

SPREAD = """
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as On

ray.init(address="auto", log_to_driver=False)
group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
ray.get(group.ready(), timeout=60)

@ray.remote(num_cpus=1)
def where():
    import os
    return os.environ["TEST_NODE"]

asked = [where.options(scheduling_strategy=On(group, index)).remote() for index in range(2)]
print(sorted(ray.get(asked)))
"""


@contextlib.contextmanager
def running_worker(head, folder, *more, name="node-1", token=None):
    state, mark = folder / "worker", str(folder / "worker")
    argv = [sys.executable, "-m", "plugins.rayjobs.worker", "--head", head.info.address, "--state", str(state)]
    secret = token or Path(head.info.token_file).read_text()
    process = subprocess.Popen(
        [*argv, "--num-cpus=2", "--num-gpus=0", "--node-name", name, *more],
        env={**os.environ, "TEST_HEAD": mark, "TEST_NODE": name, TOKEN: secret},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield state, process, lambda: marked("TEST_HEAD", mark)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
        for pid in marked("TEST_HEAD", mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def environments(pids):
    """What these processes have in their environment and argument lists."""
    text = ""
    for pid in pids:
        with contextlib.suppress(OSError):
            text += Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
    return text


def test_a_job_spreads_over_two_nodes_and_the_loss_of_one_ends_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_NODE", "node-0")
    with running_head(tmp_path, "--node-name", "node-0") as head, running_worker(head, tmp_path) as worker:
        state, process, processes = worker
        head.jobs.wait_nodes(["node-0", "node-1"], 60)
        info = until(lambda: read_info(state))
        assert (info.dashboard, info.address) == ("", head.info.address)
        secret = Path(head.info.token_file).read_text()
        ray_only = processes() - {process.pid, info.guard_pid}
        assert secret not in environments(ray_only), "it lies in a file that only its owner reads"

        log = head.cwd / "log"
        head.jobs.submit("spread", [sys.executable, "-c", SPREAD], {}, head.cwd, log)
        until(lambda: head.jobs.status("spread") in ("SUCCEEDED", "FAILED"))
        assert "['node-0', 'node-1']" in log.read_text()

        with pytest.raises(ControlPlaneError, match=r"2 of 3 nodes .* missing: node-2\."):
            head.jobs.wait_nodes(["node-0", "node-1", "node-2"], 0.3)
        process.kill()
        process.wait(10)
        until(lambda: not processes(), 15)
        assert not Path(info.temp_dir).exists() and read_info(state) is None
        until(lambda: head.jobs.nodes() == {"node-0"}, 60)


def test_a_worker_ends_cleanly_and_without_a_head_it_ends_by_itself(tmp_path):
    with running_head(tmp_path, "--node-name", "node-0") as head, running_worker(head, tmp_path) as worker:
        state, process, processes = worker
        until(lambda: read_info(state))
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0 and not processes()
        assert read_info(state) is None and list((state / "ray-logs").glob("raylet*"))
    with running_worker(head, tmp_path, "--start-timeout-s=4", token="0" * 64) as (_, process, processes):
        assert process.wait(60) == 1, "its head is gone"
        assert not processes()


def test_on_the_way_to_other_machines_the_address_is_the_overlays_and_the_jobs_api_stays_on_loopback(tmp_path):
    head = HeadSettings(tmp_path, 2, node_ip="10.42.0.1", node_name="node-0")
    words = " ".join(ray_start_argv(head, tmp_path))
    assert "--head" in words and "--node-ip-address 10.42.0.1" in words and "--dashboard-host 127.0.0.1" in words
    worker = HeadSettings(tmp_path, 2, node_ip="10.42.0.2", head="10.42.0.1:6379")
    words = " ".join(ray_start_argv(worker, tmp_path))
    assert "--address 10.42.0.1:6379" in words and "--head" not in words and "dashboard-host" not in words
    assert ray_environment(tmp_path, "10.42.0.2")["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "1", "or Ray refuses workers"
