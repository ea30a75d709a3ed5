"""A stage in small: it does what `flows/stage.py` does to the API, and nothing else."""

import time
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed


@task
def count(number: int) -> int:
    return number + 1


@flow(persist_result=False)
def tiny(key: str, seconds: float = 0.0) -> State:
    own_id = UUID(str(flow_run.id))
    get_run_logger().info("hello from the pod")
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(own_id).state.is_running()
        made = client.create_artifact(ArtifactCreate(key=key, type="table", data="[]", flow_run_id=own_id))
        client.update_artifact(made.id, ArtifactUpdate(data='[{"iteration": 3}]'))
        mine = ArtifactFilter(key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[own_id]))
        assert [found.id for found in client.read_artifacts(artifact_filter=mine, limit=1)] == [made.id]
    count(1)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.1)
    return Completed(message="the result")
