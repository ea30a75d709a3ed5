"""The chain in the three ways people start it, and what it leaves: checkpoints, artifacts, no secret, no pod."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.world import ROOT, World, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("world-a")]
SECRET = "s3cr3t-value-that-must-not-leak"
RL = {
    "data": str(ROOT / "deployments" / "recipes" / "data" / "demo_rl.jsonl"),
    "environment": {"task": "arithmetic"},
    "num_rollout": 3,
    "save_interval": 2,
    "extra_args": {"rollout-batch-size": 4, "n-samples-per-prompt": 4, "rollout-max-response-len": 6, "lr": 0.0005},
}


@pytest.fixture(scope="module")
def finished(world: World) -> dict[str, Any]:
    """Status of a finished SFT and RL run that was given a secret."""
    recipe = world.recipe("both", rl=RL, secrets=["DEMO_TOKEN"])
    world.env["DEMO_TOKEN"] = SECRET
    try:
        done = world.cli("run", str(recipe), "--run-id", "both")
    finally:
        del world.env["DEMO_TOKEN"]
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    return world.status("both")


def artifacts(world: World, prefix: str) -> dict[str, Any]:
    found = httpx.post(f"{world.api}/artifacts/latest/filter", json={"limit": 200}, timeout=30).json()
    return {row["key"]: row for row in found if row["key"].startswith(prefix)}


def test_sft_and_rl_share_one_pod_which_is_given_back(world: World, finished: dict[str, Any]) -> None:
    assert finished["state"] == "Completed"
    assert [pod["name"] for pod in finished["pods"]] == ["ts-both-sftrl-a1"]
    assert finished["pods"][0]["cost_usd"] > 0
    assert world.pods("both") == []
    assert world.left_running("both") == []


def test_status_names_every_stage_its_figures_and_its_checkpoint(finished: dict[str, Any]) -> None:
    sft, rl = finished["stages"]
    assert (sft["stage"], sft["state"], sft["attempts"], sft["last_iteration"]) == ("sft", "Completed", 1, 11)
    assert (rl["stage"], rl["state"], rl["attempts"], rl["last_iteration"]) == ("rl", "Completed", 1, 2)
    assert sft["loss"]["last"] < sft["loss"]["first"]
    assert rl["reward"]["last"] is not None
    for stage in (sft, rl):
        assert (Path(stage["export_path"]) / "model.safetensors").is_file()


def test_the_rl_stage_started_from_the_sealed_sft_export(world: World, finished: dict[str, Any]) -> None:
    logs = world.cli("logs", "both", "--stage", "rl").stdout
    last = [line for line in logs.splitlines() if "successfully saved checkpoint from iteration" in line][-1]
    assert re.search(r"iteration +2 ", last), "the log is whole, although the pod was given back at once"
    assert "/rl/init/hf/11" in logs or "init/hf/11" in logs
    assert len(finished["flow_runs"]["stages"]) == 2


def test_the_manifest_tells_what_was_trained_from_what(world: World, finished: dict[str, Any]) -> None:
    store = world.folder / "state" / "store" / "both" / "sft"
    manifest = json.loads((store / "iter_0000011" / "manifest.json").read_text())
    assert manifest["iteration"] == 11
    assert {"recipe_sha256", "git_commit", "data_sha256", "pod"} <= set(manifest["lineage"])


def test_the_ui_gets_progress_tables_curves_and_a_summary(world: World, finished: dict[str, Any]) -> None:
    found = artifacts(world, "both-")
    kinds = {key: row["type"] for key, row in found.items()}
    assert kinds["both-summary"] == "markdown"
    assert kinds["both-pods"] == kinds["both-sft-result"] == kinds["both-rl-checkpoint"] == "table"
    assert kinds["both-sft-progress"] == "progress"
    assert "data:image/png;base64," in found["both-sft-curves"]["data"]
    assert found["both-rl-curves"]["data"].count("data:image/png") == 2


def test_the_secret_is_in_no_parameter_log_artifact_or_store(world: World, finished: dict[str, Any]) -> None:
    said = [json.dumps(artifacts(world, "both-")), json.dumps(world.flow_runs("run:both"))]
    said += [world.cli("logs", "both").stdout]
    said += [world.cli("logs", "both", "--stage", stage).stdout for stage in ("sft", "rl")]
    said += [httpx.post(f"{world.api}/task_runs/filter", json={}, timeout=30).text]
    assert not [text[:80] for text in said if SECRET in text]
    done = subprocess.run(
        ["grep", "-rl", SECRET, str(world.folder / "state")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == ""


def test_the_queue_of_the_pod_is_gone_with_it(world: World, finished: dict[str, Any]) -> None:
    queues = httpx.post(f"{world.api}/work_queues/filter", json={}, timeout=30).json()
    assert "ts-both-sftrl-a1" not in [queue["name"] for queue in queues]


def test_serve_makes_prefect_deployment_run_do_the_same_and_cancel_from_the_cli_ends_it(world: World) -> None:
    served = world.cli("serve")
    assert served.returncode == 0, served.stderr
    recipe = world.recipe("served", env={"TINYSLIME_STEP_DELAY_S": "0.5"})
    prefect = [sys.executable, "-m", "prefect"]
    argv = [
        *prefect,
        "deployment",
        "run",
        "sft-pipeline/lium",
        "--param",
        f"recipe={recipe}",
        "--param",
        "run_id=served",
    ]
    done = subprocess.run(
        argv, env=world.env, cwd=world.folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    eventually(lambda: 3 in world.sealed("served"), "the served run to seal iteration 3")
    pipeline = next(run for run in world.flow_runs("run:served") if "stage:sft" not in run["tags"])
    argv = [*prefect, "flow-run", "cancel", pipeline["id"]]
    subprocess.run(argv, env=world.env, cwd=world.folder, capture_output=True, timeout=60, check=True)
    eventually(lambda: world.status("served")["state"] == "Cancelled", "the pipeline to be Cancelled", 90)
    assert world.stage_state("served", "sft", 1) == "CANCELLED"
    assert world.pods("served") == []
    assert world.left_running("served") == []


def test_a_flow_file_is_a_program_and_a_second_one_for_the_same_run_is_refused(
    world: World, started: list[subprocess.Popen[bytes]]
) -> None:
    recipe = world.recipe("script", env={"TINYSLIME_STEP_DELAY_S": "0.5"})
    argv = [sys.executable, str(ROOT / "flows" / "sft.py"), str(recipe), "--run-id", "script"]
    log = (world.folder / "script.log").open("wb")
    first = subprocess.Popen(argv, env=world.env, cwd=world.folder, stdout=log, stderr=subprocess.STDOUT)
    started.append(first)
    eventually(lambda: world.stage_state("script", "sft", 1) == "RUNNING", "the stage to run")
    second = subprocess.run(
        argv, env=world.env, cwd=world.folder, capture_output=True, text=True, timeout=90, check=False
    )
    assert second.returncode == 1
    assert "already being carried through" in second.stderr
    assert len(world.pods("script")) == 1, "the refused one must not touch the other's pod"
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait(timeout=90) == 130
    assert world.pods("script") == []
    assert world.left_running("script") == []
