"""Which artifact keys a pod's name gives it."""

import pytest

from plugins.gateway.names import stage_artifact, worker_resource


@pytest.mark.parametrize(
    ("pod", "key"),
    [
        ("ts-r1-sft-a1", "r1-sft-heartbeat"),
        ("ts-r1-sftrl-a12", "r1-rl-progress"),
        ("ts-my-run-rl-a1", "my-run-rl-result"),
        ("ts-x-sft-rl-a1", "x-sft-rl-curves"),
    ],
)
def test_a_stage_writes_its_four_artifacts(pod: str, key: str) -> None:
    assert stage_artifact(pod, key)


@pytest.mark.parametrize(
    ("pod", "key"),
    [
        ("ts-r1-sft-a1", "r1-pods"),
        ("ts-r1-sft-a1", "r1-recipe"),
        ("ts-r1-sft-a1", "r1-sft-pods"),
        ("ts-r1-sft-a1", "r1-rl-heartbeat"),
        ("ts-r1-sft-a1", "r2-sft-heartbeat"),
        ("ts-r1-sft-a1", "r1-sft-heartbeat "),
        ("ts-r1-sft-a1", ""),
        ("pod-of-nobody", "r1-sft-heartbeat"),
        ("xts-r1-sft-a1", "r1-sft-heartbeat"),
        ("ts-r1-sft-a1x", "r1-sft-heartbeat"),
    ],
)
def test_what_else_there_is_belongs_to_the_control_plane(pod: str, key: str) -> None:
    assert not stage_artifact(pod, key)


def test_a_worker_in_an_event_has_prefects_slug_of_its_name() -> None:
    assert worker_resource("ts-My_Run-sft-a1") == "prefect.worker.process.ts-my-run-sft-a1"
