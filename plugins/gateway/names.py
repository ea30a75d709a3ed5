"""Which artifact keys a stage on a pod may write, and what Prefect calls the pod's worker.

Prefect finds artifacts by key alone, whichever run wrote them: a pod that could choose its keys could write the ledger
of any run. Whose stage it is stands in the flow run's tags, which the control plane set and no pod may change; a pod's
name would not do, because a pod that is taken over warm works for another run than the one it was rented for.
"""

import re
from collections.abc import Sequence

STAGES = ("sft", "rl")
WRITTEN_BY_STAGES = ("progress", "heartbeat", "curves", "result", "start")


def stage_artifact(tags: Sequence[str], key: str) -> bool:
    """Whether the stage whose flow run has these tags (`run:<id>`, `stage:<name>`) writes an artifact of this key."""
    said = dict(tag.split(":", 1) for tag in tags if ":" in tag)
    run, stage = said.get("run"), said.get("stage")
    return bool(run) and stage in STAGES and key in {f"{run}-{stage}-{what}" for what in WRITTEN_BY_STAGES}


def worker_resource(pod: str) -> str:
    """The id of the pod's worker in Prefect's events: its name in Prefect's slug form."""
    return "prefect.worker.process." + re.sub(r"[^a-z0-9]+", "-", pod.lower()).strip("-")
