"""The older stack's keys that a recipe has no use for, and what stands in their place."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["taken over", "replaced", "not needed", "UNKNOWN"]


@dataclass(frozen=True)
class Fate:
    """What became of one key of the older file."""

    key: str
    outcome: Outcome
    words: str

    def __str__(self) -> str:
        return f"{self.key}: {self.outcome}: {self.words}"


_PREFECT = "the Prefect server and the pipeline flow do the commander's part"
_WORKER = "a Prefect worker is started on the pod for you"
WITHOUT: dict[str, tuple[Outcome, str]] = {
    **{
        f"commander.{name}": ("not needed", _PREFECT)
        for name in ("host", "port", "state_path", "pid_path", "wait_seconds")
    },
    "commander.lease_seconds": ("replaced", "by heartbeat_s and the attempt's number, which fences an older writer"),
    "commander.log_path": ("replaced", "by the Prefect UI and `trainstack logs RUN_ID`"),
    "commander.python_bin": ("not needed", _PREFECT),
    "commander.restart_if_running": ("not needed", "a run that is started again is adopted"),
    "commander.public_url": (
        "replaced",
        "by a reverse tunnel; set api_url to the public URL of `trainstack gateway` only if pods must come in that way",
    ),
    "commander.shared_secret": ("not needed", "each pod gets a token of its own; the value was not copied"),
    "lium.executor": (
        "replaced",
        "by pod.gpu, pod.countries and prices; `trainstack plan` shows which host it would be",
    ),
    "lium.pod_name": ("replaced", "by ts-<run id>-..., from which it is known whose pod it is"),
    "lium.ttl": ("replaced", "by pod.budget_usd and pod.dead_man_minutes: the pod is given back at every end"),
    "lium.yes": ("not needed", "nothing asks"),
    "lium.poll_interval_seconds": ("not needed", "one poller keeps to Lium's limits"),
    "run.worker_id": ("not needed", _WORKER),
    "run.rollout_trajectory_subdir": ("replaced", "by the folder in RELAY_ROLLOUT_TRAJECTORY_ROOT"),
    "worker.local_config_path": ("not needed", _WORKER),
    "worker.remote_config_path": ("not needed", _WORKER),
    "worker.remote_python_bin": ("not needed", _WORKER),
    "worker.remote_pid_path": ("not needed", _WORKER),
    "worker.remote_log_path": ("replaced", "by `trainstack logs RUN_ID --stage sft -f`, also after the pod is gone"),
    "worker.command": ("replaced", "it started the older worker; a trainer's own command is sft.command or rl.command"),
    "worker.relay_run_config.commander_url": ("not needed", _PREFECT),
    "worker.relay_run_config.worker_id": ("not needed", _WORKER),
    "worker.relay_run_config.relay_shared_secret": ("not needed", "each pod gets a token of its own"),
    "worker.relay_run_config.rollout_trajectory_subdir": ("replaced", "by the folder in RELAY_ROLLOUT_TRAJECTORY_ROOT"),
}
"""Fate of each key whose value does not matter."""
