"""Which process steers a run: written on the pipeline's flow run, so that a killed pipeline is known from a living one.

Prefect itself leaves the flow run of a killed `python` process Running for ever (prefect.md 0, fact 2).
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed

from blocks.recipe import home
from plugins.errors import UserError
from tasks.control_plane import is_pipeline, runs_of, set_state
from tasks.local_servers import start_time

HOST, PID, STARTED = "trainstack.host", "trainstack.pid", "trainstack.started"


class Steered(StrEnum):
    """Who has a pipeline's flow run in hand."""

    HERE = "a living process of this machine"
    NOBODY = "a process of this machine that is gone"
    UNKNOWN = "a process of another machine, or one that has not started yet"


def announce(client: SyncPrefectClient, flow_run_id: UUID) -> None:
    """Write this process on its pipeline's flow run."""
    pid = os.getpid()
    client.update_flow_run_labels(
        flow_run_id, {HOST: socket.gethostname(), PID: str(pid), STARTED: start_time(pid) or ""}
    )


def steered(flow_run: FlowRun) -> Steered:
    """Whether the process that announced itself on a flow run still lives, as far as this machine can tell."""
    labels = flow_run.labels or {}
    if labels.get(HOST) != socket.gethostname() or PID not in labels:
        return Steered.UNKNOWN
    return Steered.HERE if start_time(int(str(labels[PID]))) == labels.get(STARTED) else Steered.NOBODY


def bury_dead_pipelines(client: SyncPrefectClient, run_id: str) -> list[FlowRun]:
    """Set the pipelines of a run Crashed whose process is gone; returns the ones that still live."""
    living = []
    for flow_run in runs_of(client, run_id):
        if not is_pipeline(flow_run) or flow_run.state is None or flow_run.state.is_final():
            continue
        if steered(flow_run) is Steered.NOBODY:
            message = f"Its process is gone. `trainstack run ... --run-id {run_id}` goes on with the run."
            set_state(client, flow_run.id, Crashed(message=message), force=True)
        else:
            living.append(flow_run)
    return living


@contextmanager
def sole_steering(run_id: str) -> Iterator[None]:
    """Hold the run's lock file while the block runs: of two starts at the same moment one is refused with UserError."""
    folder = home() / "local" / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{run_id}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Run {run_id} is already being carried through by another process of this machine. Follow it with "
                f"`trainstack logs {run_id} --follow`, or end it with `trainstack stop {run_id}`."
            ) from None
        yield


def runs_in_hand() -> list[str]:
    """Ids of the runs that living processes of this machine carry through, by their lock files."""
    held = []
    for file in sorted((home() / "local" / "runs").glob("*.lock")):
        with file.open("r+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(file.stem)
    return held


def take_over(client: SyncPrefectClient, run_id: str, own_id: UUID) -> None:
    """Write the truth on pipelines of this run whose process is gone, then announce this one. Needs `sole_steering`."""
    bury_dead_pipelines(client, run_id)
    announce(client, own_id)
