"""Find and end pods that have our name and no living run. The last net under everything else.

A pod is an orphan only when all of this is known: its name is one of ours, this Prefect API knows its run, no pipeline
of the run lives or may be started again soon, and nobody holds the pod warm. A run that this API does not know may be
a colleague's on another server, so its pods are shown and left alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun

from plugins.errors import ControlPlaneError
from plugins.lium.client import LiumAccount
from plugins.lium.pods import PodRow
from tasks import common_knowledge
from tasks.board import WarmPod
from tasks.control_plane import is_pipeline, runs_of
from tasks.provision_pod import release, run_of
from tasks.steering import bury_dead_pipelines

GRACE_MINUTES = 15.0


class Keep(StrEnum):
    """Why a pod is left alone."""

    NOT_OURS = "not a pod of trainstack"
    STEERED = "its run is being carried through"
    WARM = "held warm for the next run"
    SOON = "its run ended without giving it back a moment ago and may be started again"
    UNKNOWN_RUN = "this Prefect API does not know its run"


@dataclass(frozen=True)
class Judged:
    """One pod of the account: `keep` None means that it is an orphan."""

    pod: PodRow
    run_id: str | None
    keep: Keep | None
    why: str


def judge_all(
    pods: Sequence[PodRow],
    pipelines: Mapping[str, Sequence[FlowRun]],
    warm: Sequence[WarmPod],
    now: datetime,
    grace_minutes: float = GRACE_MINUTES,
) -> list[Judged]:
    """Decide about every pod of a listing. pipelines: by run id, those whose process is known dead set Crashed."""
    held = {pod.name: pod for pod in warm}
    return [_judge(pod, pipelines, held, now, grace_minutes) for pod in pods]


def _judge(
    pod: PodRow,
    pipelines: Mapping[str, Sequence[FlowRun]],
    held: Mapping[str, WarmPod],
    now: datetime,
    grace_minutes: float,
) -> Judged:
    run_id = run_of(pod.name)
    if run_id is None:
        return Judged(pod, None, Keep.NOT_OURS, "its name is not one of ours")
    if (warm := held.get(pod.name)) is not None:
        if warm.claimed_by is not None:
            run_id = warm.claimed_by
        elif warm.until > now.timestamp():
            return Judged(pod, run_id, Keep.WARM, f"until {datetime.fromtimestamp(warm.until, UTC):%H:%M} UTC")
    known = pipelines.get(run_id, ())
    if not known:
        return Judged(pod, run_id, Keep.UNKNOWN_RUN, "left alone; it ends by itself at its dead-man time")
    if any(run.state is None or not run.state.is_final() for run in known):
        return Judged(pod, run_id, Keep.STEERED, "")
    last = max(known, key=lambda run: run.end_time or datetime.min.replace(tzinfo=UTC))
    state = last.state_name or "ended"
    if last.state is not None and last.state.is_crashed() and last.end_time is not None:
        minutes = (now - last.end_time).total_seconds() / 60
        if minutes < grace_minutes:
            return Judged(pod, run_id, Keep.SOON, f"{state} {minutes:.0f} minutes ago, left for {grace_minutes:g}")
    return Judged(pod, run_id, None, f"its run is {state}")


def look(client: SyncPrefectClient, account: LiumAccount, grace_minutes: float = GRACE_MINUTES) -> list[Judged]:
    """Judge every pod of the account now. Raises ControlPlaneError when Lium does not answer."""
    pods = account.pods()
    warm = common_knowledge.warm_pods(client)
    runs = {run_id for pod in pods if (run_id := run_of(pod.name)) is not None}
    runs |= {pod.claimed_by for pod in warm if pod.claimed_by is not None}
    pipelines = {}
    for run_id in runs:
        bury_dead_pipelines(client, run_id)
        pipelines[run_id] = [run for run in runs_of(client, run_id) if is_pipeline(run)]
    return judge_all(pods, pipelines, warm, datetime.now(UTC), grace_minutes)


def reap(client: SyncPrefectClient, account: LiumAccount, judged: Sequence[Judged]) -> list[str]:
    """End the orphans among these; returns a line for each. One that cannot be ended now is left for later, by name."""
    said = []
    for one in judged:
        if one.keep is not None or one.run_id is None:
            continue
        if any(is_pipeline(run) and not (run.state and run.state.is_final()) for run in runs_of(client, one.run_id)):
            continue  # started again while we looked
        try:
            release(account, one.pod)
            common_knowledge.forget_warm(client, one.pod.name)
            said.append(f"{one.pod.name} given back: {one.why}")
        except ControlPlaneError as error:
            said.append(f"WARNING {error}")
    return said
