"""Checkpoints where no folder is shared: S3, the Hub, a lost pod in between, and milestones that others can load."""

import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from tests.e2e.world import ROOT, World, eventually
from tests.hub_server.running import Running, running_hub
from tests.plugins.checkpoints.s3_server import s3_server

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("world-a")]
SFT = {
    "data": str(ROOT / "deployments" / "recipes" / "data" / "demo_sft.jsonl"),
    "num_rollout": 24,
    "save_interval": 4,
    "extra_args": {"rollout-batch-size": 4, "lr": 0.003},
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Running]:
    with running_hub(tmp_path / "hub") as server:
        server.token("hf_e2e_secret", "me")
        yield server


@pytest.fixture
def clouds(world: World, hub: Running) -> World:
    """The world with an S3 server and a Hub in its environment."""
    more = {
        "AWS_ACCESS_KEY_ID": "e2e-key-id",
        "AWS_SECRET_ACCESS_KEY": "e2e-secret-key",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server(),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_e2e_secret",
        "HF_HUB_DISABLE_XET": "1",
    }
    return replace(world, env={**world.env, **more})


def s3() -> Any:
    keys = {"aws_access_key_id": "e2e-key-id", "aws_secret_access_key": "e2e-secret-key", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=s3_server(), **keys)


def in_s3(bucket: str, run_id: str) -> list[int]:
    """Iterations that the run's state in the bucket names."""
    try:
        text = s3().get_object(Bucket=bucket, Key=f"x/{run_id}/sft/state.json")["Body"].read()
    except s3().exceptions.NoSuchKey:
        return []
    return sorted(int(one["iteration"]) for one in json.loads(text)["checkpoints"])


def test_a_run_on_s3_survives_its_pod_pushes_its_milestones_and_tells_what_the_loss_cost(
    clouds: World, hub: Running, started: list[subprocess.Popen[bytes]]
) -> None:
    s3().create_bucket(Bucket="e2e")
    recipe = clouds.recipe(
        "cloud",
        sft=SFT,
        env={"TINYSLIME_STEP_DELAY_S": "0.3"},
        checkpoint={"store": "s3://e2e/x", "keep": 2},
        milestones={"interval": 12, "push_to": "hub://me/cloud-{stage}"},
    )
    process = clouds.start("run", str(recipe), "--run-id", "cloud")
    started.append(process)
    eventually(lambda: len(in_s3("e2e", "cloud")) >= 2, "two checkpoints in S3")
    (pod,) = clouds.pod_rows("cloud")
    httpx.post(f"{clouds.control}/pods/{pod['id']}/kill", json={"how": "vanish"}, timeout=30).raise_for_status()
    assert process.wait(timeout=240) == 0
    assert in_s3("e2e", "cloud")[-1] == 23
    stage = clouds.status("cloud")["stages"][0]
    assert (stage["attempts"], stage["last_iteration"]) == (2, 23)
    assert stage["store_uri"].startswith("s3://e2e/x/cloud/sft/iter_0000023")
    log = clouds.cli("logs", "cloud", "--stage", "sft").stdout
    assert "the start is proved: iteration" in log and "milestone 23 (end of the stage) pushed" in log
    assert hub.commits("me/cloud-sft") >= 2

    report = clouds.cli("report", "cloud", "--picture", str(clouds.folder / "cloud.png"))
    assert report.returncode == 0, report.stderr
    assert "effective training time" in report.stdout.lower() and "lost" in report.stdout
    assert (clouds.folder / "cloud.png").read_bytes().startswith(b"\x89PNG")

    pushed = clouds.cli("push", "cloud", "--to", "hub://me/by-hand@main")
    assert pushed.returncode == 0, pushed.stderr
    assert hub.commits("me/by-hand") >= 1 and "revision" in pushed.stdout

    said = "".join(path.read_text(errors="replace") for path in clouds.logs) + log + pushed.stdout + pushed.stderr
    everything = said + httpx.post(f"{clouds.api}/artifacts/filter", json={"limit": 200}, timeout=30).text
    everything += httpx.post(f"{clouds.api}/flow_runs/filter", json={"limit": 200}, timeout=30).text
    for secret in ("e2e-secret-key", "hf_e2e_secret"):
        assert secret not in everything


def test_a_store_that_cannot_be_written_is_an_error_before_anything_is_rented(clouds: World) -> None:
    recipe = clouds.recipe("nowhere", checkpoint={"store": "s3://no-such-bucket/x"})
    done = clouds.cli("run", str(recipe), "--run-id", "nowhere")
    assert done.returncode != 0 and "no-such-bucket" in done.stderr
    assert clouds.pod_rows("nowhere", removed=True) == []


def test_a_checkpoint_of_another_model_is_refused_before_anything_is_rented(
    clouds: World, started: list[subprocess.Popen[bytes]]
) -> None:
    process = clouds.start("run", str(clouds.recipe("shape", sft={**SFT, "num_rollout": 400})), "--run-id", "shape")
    started.append(process)
    eventually(lambda: clouds.sealed("shape"), "it trains")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=90) == 130
    rents = len(clouds.pod_rows("shape", removed=True))
    other = clouds.recipe("shape", model={"args": {"num-layers": 2, "hidden-size": 32, "num-attention-heads": 2}})
    done = clouds.cli("run", str(other), "--run-id", "shape")
    assert done.returncode != 0 and "is of another model" in " ".join(done.stderr.split())
    assert len(clouds.pod_rows("shape", removed=True)) == rents
