"""Which artifact keys a flow run's tags give it."""

import pytest

from plugins.gateway.names import stage_artifact, worker_resource


@pytest.mark.parametrize(
    ("run", "stage", "key"),
    [
        ("r1", "sft", "r1-sft-heartbeat"),
        ("r1", "rl", "r1-rl-progress"),
        ("my-run", "rl", "my-run-rl-result"),
        ("x-sft", "rl", "x-sft-rl-curves"),
    ],
)
def test_a_stage_writes_its_four_artifacts(run: str, stage: str, key: str) -> None:
    assert stage_artifact([f"run:{run}", f"stage:{stage}", "attempt:1"], key)


@pytest.mark.parametrize(
    ("tags", "key"),
    [
        (["run:r1", "stage:sft"], "r1-pods"),
        (["run:r1", "stage:sft"], "r1-recipe"),
        (["run:r1", "stage:sft"], "r1-sft-pods"),
        (["run:r1", "stage:sft"], "r1-rl-heartbeat"),
        (["run:r1", "stage:sft"], "r2-sft-heartbeat"),
        (["run:r1", "stage:sft"], "r1-sft-heartbeat "),
        (["run:r1", "stage:sft"], ""),
        (["run:r1", "stage:pods"], "r1-pods-heartbeat"),
        (["run:", "stage:sft"], "-sft-heartbeat"),
        (["run:r1"], "r1-sft-heartbeat"),
        ([], "r1-sft-heartbeat"),
    ],
)
def test_what_else_there_is_belongs_to_the_control_plane(tags: list[str], key: str) -> None:
    assert not stage_artifact(tags, key)


def test_a_worker_in_an_event_has_prefects_slug_of_its_name() -> None:
    assert worker_resource("ts-My_Run-sft-a1") == "prefect.worker.process.ts-my-run-sft-a1"
