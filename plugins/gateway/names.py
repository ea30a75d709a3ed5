"""Which artifact keys belong to a pod, read from the pod's name.

Prefect finds artifacts by key alone, whichever run wrote them: a pod that could choose its keys could write the ledger
of any run. Names of pods are DESIGN 5.1's `ts-<run_id>-<stages>-a<number>`, keys of a stage `<run_id>-<stage>-<what>`.
"""

import re

POD = re.compile(r"ts-(?P<run>.+)-(?P<stages>sft|rl|sftrl)-a\d+")
STAGES = ("sft", "rl")
WRITTEN_BY_STAGES = ("progress", "heartbeat", "curves", "result")


def stage_artifact(pod: str, key: str) -> bool:
    """Whether a stage on that pod writes an artifact under this key."""
    found = POD.fullmatch(pod)
    if found is None:
        return False
    own = [stage for stage in STAGES if stage in found["stages"]]
    return key in {f"{found['run']}-{stage}-{what}" for stage in own for what in WRITTEN_BY_STAGES}


def worker_resource(pod: str) -> str:
    """The id of the pod's worker in Prefect's events: its name in Prefect's slug form."""
    return "prefect.worker.process." + re.sub(r"[^a-z0-9]+", "-", pod.lower()).strip("-")
