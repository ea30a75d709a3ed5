"""Artifacts written through a client we hold, so that any thread, and any flow run we name, can have them.

Prefect's own `create_*_artifact` functions take flow run and client from a context variable that other threads lack.
"""

import json
from base64 import b64encode
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.sorting import ArtifactSort

Row = dict[str, Any]


def put_table(
    client: SyncPrefectClient, flow_run_id: UUID | None, key: str, rows: Sequence[Row], description: str = ""
) -> UUID:
    """Create a table artifact (a new version when the key exists); returns its id."""
    return _put(client, flow_run_id, key, "table", table_data(rows), description)


def put_markdown(
    client: SyncPrefectClient, flow_run_id: UUID | None, key: str, text: str, description: str = ""
) -> UUID:
    """Create a markdown artifact; returns its id."""
    return _put(client, flow_run_id, key, "markdown", text, description)


def put_progress(client: SyncPrefectClient, flow_run_id: UUID | None, key: str, description: str = "") -> UUID:
    """Create a progress artifact at 0 %; returns its id."""
    return _put(client, flow_run_id, key, "progress", 0.0, description)


def picture(png: bytes, words: str) -> str:
    """Markdown that carries the picture itself, so it outlives pod and store."""
    return f"![{words}](data:image/png;base64,{b64encode(png).decode()})"


def put_json(client: SyncPrefectClient, flow_run_id: UUID | None, key: str, text: str, description: str = "") -> UUID:
    """Create a markdown artifact that shows a JSON document; `json_of` reads it back."""
    return put_markdown(client, flow_run_id, key, f"```json\n{text}\n```", description)


def json_of(artifact: Artifact | None) -> str | None:
    """The JSON document of a `put_json` artifact; None when there is none."""
    if artifact is None or not isinstance(artifact.data, str):
        return None
    return artifact.data.removeprefix("```json\n").removesuffix("\n```")


def update(client: SyncPrefectClient, artifact_id: UUID, data: Any, description: str | None = None) -> None:
    """Replace an artifact's data, and its description when there is a new one."""
    change = ArtifactUpdate(data=data) if description is None else ArtifactUpdate(data=data, description=description)
    client.update_artifact(artifact_id, change)


def table_data(rows: Sequence[Row]) -> str:
    """Rows in the form Prefect stores tables: a JSON string (NaN becomes null, which the UI can read)."""
    return json.dumps([{k: None if v != v else v for k, v in row.items()} for row in rows], default=str)


def newest(client: SyncPrefectClient, key: str, flow_run_id: UUID | None = None) -> Artifact | None:
    """The newest artifact of a key, of one flow run if given."""
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            key=ArtifactFilterKey(any_=[key]),
            flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]) if flow_run_id else None,
        ),
        sort=ArtifactSort.CREATED_DESC,
        limit=1,
    )
    return found[0] if found else None


def rows_of(artifact: Artifact | None) -> list[Row]:
    """Rows of a table artifact; empty when there is none."""
    if artifact is None:
        return []
    data = json.loads(artifact.data) if isinstance(artifact.data, str) else artifact.data
    return data if isinstance(data, list) else []


def _put(client: SyncPrefectClient, flow_run_id: UUID | None, key: str, kind: str, data: Any, description: str) -> UUID:
    created = client.create_artifact(
        ArtifactCreate(key=key, type=kind, data=data, description=description, flow_run_id=flow_run_id)
    )
    return created.id
