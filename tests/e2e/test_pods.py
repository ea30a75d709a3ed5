"""Renting with real processes: a flow that is killed anywhere, a pod that stays behind, a pod that is a stranger.

The fault suite (`tests/faults`) goes through thousands of such cases in virtual time; these few have real servers,
real pods and a real kill -9.
"""

import base64
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.world import ANY_DISK, KEY, ROOT, World, command_of, eventually, pids_with

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("world-b")]
Started = list[subprocess.Popen[bytes]]
DATA = str(ROOT / "deployments" / "recipes" / "data" / "demo_sft.jsonl")
POD = {"gpu": "H200", "max_price_per_gpu_hour": 9.0, "budget_usd": 9.0, "preflight": ANY_DISK, "bad_host_hours": 0}
SLOW = {"data": DATA, "num_rollout": 40, "save_interval": 4, "extra_args": {"rollout-batch-size": 4, "lr": 0.003}}


def begin(world: World, run_id: str, started: Started, **changes: Any) -> subprocess.Popen[bytes]:
    """Start, or go on with, a run whose stage takes a while."""
    settings = {"sft": SLOW, "env": {"TINYSLIME_STEP_DELAY_S": "0.2"}, "pod": POD, "max_attempts": 20, **changes}
    process = world.start("run", str(world.recipe(run_id, **settings)), "--run-id", run_id)
    started.append(process)
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)


def most_at_once(world: World, run_id: str) -> tuple[int, int]:
    """How many pods the run had at any one time, and how many in all, as the emulator knows it."""
    rows = world.pod_rows(run_id, removed=True)
    changes = [(row["created_at"], 1) for row in rows] + [(row["removed_at"], -1) for row in rows if row["removed"]]
    living = most = 0
    for _, change in sorted(changes):
        living += change
        most = max(most, living)
    return most, len(rows)


def artifact(world: World, key: str) -> Any:
    found = httpx.post(f"{world.api}/artifacts/latest/filter", json={"limit": 200}, timeout=30).json()
    return next((row["data"] for row in found if row["key"] == key), None)


def queue(world: World, name: str) -> bool:
    return httpx.get(f"{world.api}/work_pools/lium/queues/{name}", timeout=30).status_code == 200


def worker(world: World, name: str) -> bool:
    rows = httpx.post(f"{world.api}/work_pools/lium/workers/filter", json={}, timeout=30).json()
    return any(row["name"] == name and row["status"] == "ONLINE" for row in rows)


MOMENTS: list[tuple[str, Callable[[World, str], Any]]] = [
    ("the flow run exists", lambda w, r: w.flow_runs(f"run:{r}")),
    ("the intent is written", lambda w, r: artifact(w, f"{r}-pods")),
    ("the pod is listed", lambda w, r: w.pods(r)),
    ("the pod can be reached", lambda w, r: any(row["status"] == "RUNNING" for row in w.pod_rows(r))),
    ("the preflight is shown", lambda w, r: artifact(w, f"{r}-preflight-1")),
    ("the pod's queue is open", lambda w, r: queue(w, f"ts-{r}-sft-a1")),
    ("the worker is online", lambda w, r: worker(w, f"ts-{r}-sft-a1")),
    ("the attempt is submitted", lambda w, r: w.stage_run(r, "sft", 1)),
    ("the attempt trains", lambda w, r: w.sealed(r)),
    ("the attempt is complete", lambda w, r: w.stage_state(r, "sft", 1) == "COMPLETED"),
]


def test_a_flow_killed_at_ten_moments_completes_and_pays_for_one_pod_at_a_time(world: World, started: Started) -> None:
    for what, come in MOMENTS:
        process = begin(world, "killed", started)
        eventually(lambda look=come, p=process: look(world, "killed") or p.poll() is not None, what)
        assert process.poll() is None, f"the flow ended by itself before: {what}"
        kill(process)
    process = begin(world, "killed", started)
    assert process.wait(timeout=200) == 0
    most, ever = most_at_once(world, "killed")
    assert (most, ever) == (1, 1), "every start went on with the one pod"
    assert world.status("killed")["stages"][0]["attempts"] == 1
    assert world.pods("killed") == [] and world.left_running("killed") == []


def rent_as_somebody_else(world: World, name: str) -> str:
    """A pod on the same account that trainstack did not rent."""
    host = httpx.get(f"{world.lium}/executors", headers=KEY, timeout=30).json()[-1]["id"]
    body = {"pod_name": name, "user_public_key": ["ssh-ed25519 AAAA test"], "gpu_count": 1, "termination_hours": 1}
    answer = httpx.post(f"{world.lium}/executors/{host}/rent", json=body, headers=KEY, timeout=60)
    answer.raise_for_status()
    return str(answer.json()["pod_id"])


def test_a_pod_left_behind_is_shown_reached_and_reaped_and_nothing_else_is(world: World, started: Started) -> None:
    foreign = rent_as_somebody_else(world, "ts-left-behind")
    process = begin(world, "left", started, sft={**SLOW, "num_rollout": 2000})
    eventually(lambda: world.sealed("left"), "it trains")
    listed = world.cli("ps").stdout
    assert "ts-left-sft-a1" in listed and "85 %" in listed and "$" in listed and " min" in listed
    assert "ts-left-behind" not in listed
    inside = world.cli("ssh", "left", "--", "nvidia-smi", "-L")
    assert (inside.returncode, inside.stdout.count("NVIDIA H200")) == (0, 1), inside.stderr
    steered = world.cli("reap", "--grace-minutes", "0").stdout
    assert "its run is being carried through" in " ".join(steered.split())
    kill(process)
    soon = world.cli("reap").stdout
    assert "may be started again" in " ".join(soon.split()), "a new start may still go on with the pod"
    dry = world.cli("reap", "--dry-run", "--grace-minutes", "0").stdout
    assert "orphan" in dry and world.pods("left") == ["ts-left-sft-a1"]
    done = world.cli("reap", "--grace-minutes", "0")
    assert "ts-left-sft-a1 given back" in done.stderr
    assert world.pods("left") == []
    assert httpx.get(f"{world.lium}/pods/{foreign}", headers=KEY, timeout=30).status_code == 200
    httpx.delete(f"{world.lium}/pods/{foreign}", headers=KEY, timeout=60)
    assert world.cli("stop", "left").returncode == 0
    assert world.status("left")["state"] == "Cancelled"


def token_of(world: World, run_id: str) -> str:
    """The secret with which the pod's worker reaches Prefect, read as the pod's owner can."""
    (pod,) = world.pod_rows(run_id)
    for pid in pids_with(f"LIUM_POD_ID={pod['id']}"):
        if "prefect worker start" in command_of(pid):
            environ = dict(
                item.split("=", 1) for item in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in item
            )
            return f"{environ['PREFECT_API_URL']} {environ['PREFECT_API_AUTH_STRING']}"
    raise AssertionError("the pod has no worker")


def test_a_pod_cannot_read_secrets_or_touch_other_runs(world: World, started: Started) -> None:
    process = begin(world, "stranger", started, sft={**SLOW, "num_rollout": 2000})
    eventually(lambda: world.sealed("stranger"), "it trains")
    url, auth = token_of(world, "stranger").split(" ", 1)
    head = {"Authorization": "Basic " + base64.b64encode(auth.encode()).decode()}
    with httpx.Client(base_url=url, headers=head, timeout=30) as pod:
        own = world.stage_run("stranger", "sft", 1)
        assert own is not None
        assert pod.get(f"/flow_runs/{own['id']}").status_code == 200, "its own run it may read"
        other = next(run for run in world.flow_runs("run:stranger") if run["id"] != own["id"])
        state = {"state": {"type": "CANCELLED", "name": "Cancelled"}, "force": True}
        refused = [
            pod.post("/block_documents/filter", json={"include_secrets": True}),
            pod.post("/variables/filter", json={}),
            pod.post(f"/flow_runs/{other['id']}/set_state", json=state),
            pod.get(f"/flow_runs/{other['id']}"),
            pod.post(f"/deployments/{own['deployment_id']}/create_flow_run", json={}),
        ]
        assert [answer.status_code for answer in refused] == [403] * len(refused)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=90) == 130
    with pytest.raises(httpx.HTTPError):  # the gateway ended with the flow, and the token with the pod
        httpx.get(f"{url}/flow_runs/{own['id']}", headers=head, timeout=10).raise_for_status()


def test_a_pod_whose_network_is_gone_is_replaced_and_the_run_completes(world: World, started: Started) -> None:
    pod = {**POD, "unreachable_after_s": 10, "bad_host_hours": 6}
    process = begin(world, "cut-off", started, pod=pod)
    eventually(lambda: world.sealed("cut-off"), "it trains")
    (row,) = world.pod_rows("cut-off")
    httpx.post(f"{world.control}/pods/{row['id']}/network", json={"up": False}, timeout=30).raise_for_status()
    eventually(lambda: world.pods("cut-off") == ["ts-cut-off-sft-a2"], "another pod", 200)
    assert process.wait(timeout=200) == 0
    first, second = world.status("cut-off")["pods"]
    assert first["id"] == row["id"] and second["name"] == "ts-cut-off-sft-a2"
    rested = world.cli("hosts").stdout
    assert row["executor_id"] in rested, "the next run leaves that host out"
    assert world.cli("hosts", "--forget", "all").returncode == 0
    assert most_at_once(world, "cut-off")[0] == 1


def test_a_warm_pod_is_taken_over_by_the_next_run_and_ended_by_stop(world: World) -> None:
    pod = {**POD, "gpu": "RTX4090", "keep_warm_minutes": 20}
    for run_id in ("warm-a", "warm-b"):
        done = world.cli("run", str(world.recipe(run_id, pod=pod)), "--run-id", run_id)
        assert done.returncode == 0, done.stderr
        assert "held warm for 20 minutes" in done.stderr
    assert "taken over warm" in done.stderr
    assert [row["name"] for row in world.status("warm-b")["pods"]] == ["ts-warm-a-sft-a1"]
    assert len(world.pods("warm-a")) == 1
    assert artifact(world, "warm-b-sft-heartbeat") and artifact(world, "warm-b-sft-progress") is not None
    reaped = world.cli("reap", "--grace-minutes", "0").stdout
    assert "held warm" in " ".join(reaped.split())
    assert world.cli("stop", "warm-a").returncode == 0
    assert world.pods("warm-a") == []


def test_a_budget_ends_the_run_in_time_with_its_last_checkpoint_in_the_store(world: World, started: Started) -> None:
    pod = {**POD, "budget_usd": 0.9, "dead_man_minutes": 5}
    rows = [{"name": "ts-thrift-sft-a0", "id": "gone", "ended_at": "2026-01-01T00:00:00+00:00", "cost_usd": 0.0}]
    process = begin(world, "thrift", started, pod=pod, sft={**SLOW, "num_rollout": 4000})
    eventually(lambda: world.sealed("thrift"), "it trains")
    key = f"{world.api}/artifacts/"
    ledger = json.loads(artifact(world, "thrift-pods"))
    rows = [
        {**ledger[0], "name": "ts-thrift-sft-a0", "id": "gone", "ended_at": ledger[0]["rented_at"], "cost_usd": 0.899}
    ]
    body = {"key": "thrift-pods", "type": "table", "data": json.dumps([*rows, *ledger])}
    process.send_signal(signal.SIGKILL)  # the next start reads what was spent before
    process.wait(timeout=30)
    httpx.post(key, json=body, timeout=30).raise_for_status()
    process = begin(world, "thrift", started, pod=pod, sft={**SLOW, "num_rollout": 4000})
    assert process.wait(timeout=120) == 1
    status = world.status("thrift")
    assert status["state"] == "Budget reached" and "pod.budget_usd" in status["message"]
    assert world.pods("thrift") == [] and world.sealed("thrift")
    assert world.left_running("thrift") == []


def test_the_server_side_end_stands_whatever_happens_to_us(world: World, started: Started) -> None:
    process = begin(world, "alone", started, pod={**POD, "dead_man_minutes": 5}, sft={**SLOW, "num_rollout": 2000})
    eventually(lambda: world.sealed("alone"), "it trains")
    kill(process)
    (row,) = world.pod_rows("alone")
    seen = httpx.get(f"{world.lium}/pods/{row['id']}", headers=KEY, timeout=30).json()
    assert seen["removal_scheduled_at"] is not None
    assert world.cli("stop", "alone").returncode == 0
    assert world.pods("alone") == []
    assert not [pid for pid in pids_with(f"LIUM_POD_ID={row['id']}") if os.getpid() != pid]
