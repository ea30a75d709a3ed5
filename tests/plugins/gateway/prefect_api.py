"""A real Prefect server with a password and CSRF protection, and the hands of the control plane on it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from plugins.gateway.tokens import basic

BOSS = "boss:not-for-pods"
SECRET = "sk-very-secret"
POOL = "lium"
HERE = Path(__file__).resolve().parent
PATIENCE_S = 45.0
SETTINGS = ("command", "env", "labels", "name", "stream_output", "working_dir")
JOB = {  # without one a worker would write its own into the pool, which no pod may
    "job_configuration": {name: f"{{{{ {name} }}}}" for name in SETTINGS},
    "variables": {"type": "object", "properties": {name: {} for name in SETTINGS}},
}
IDLE_SERVICES = ("SCHEDULER", "LATE_RUNS", "PAUSE_EXPIRATIONS", "REPOSSESSOR", "TRIGGERS", "FOREMAN")


def eventually(look: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """The first truthy answer of `look`; fails with `what` when none came in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for: {what}"
        time.sleep(0.05)


def stage_key(pod: str) -> str:
    return pod.removeprefix("ts-").removesuffix("-a1") + "-heartbeat"


def bare_env(home: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    return {**kept, "HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "DO_NOT_TRACK": "1"}


def start_server(home: Path, port: int) -> subprocess.Popen[bytes]:
    home.mkdir()
    env = {
        **bare_env(home),
        "PREFECT_SERVER_API_AUTH_STRING": BOSS,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
        **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in IDLE_SERVICES},
    }
    argv = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("wb") as log:
        return subprocess.Popen(argv, env=env, cwd=home, stdout=log, stderr=log, start_new_session=True)


@dataclass
class ControlPlane:
    """Calls with the password that no pod has."""

    url: str
    numbers: Any = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.http = httpx.Client(headers={"Authorization": basic(BOSS)}, timeout=30, trust_env=False)

    def trust(self) -> None:
        client = str(uuid4())
        token = self.http.get(f"{self.url}/csrf-token", params={"client": client}).json()["token"]
        self.http.headers.update({"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": token})

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        def settled() -> list[httpx.Response]:
            answer = self.http.request(method, self.url + path, json=body)
            return [answer] if answer.status_code != 503 else []  # SQLite was locked

        answer = eventually(settled, f"{method} {path}")[0]
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def furnish(self) -> None:
        """What every control plane has and no pod may touch."""
        self.trust()
        for pool in (POOL, "control"):
            self.ask("POST", "/work_pools/", {"name": pool, "type": "process", "base_job_template": JOB})
        flow = self.ask("POST", "/flows/", {"name": "tiny"})["id"]
        self.flow = flow
        self.deployment = self.deploy(flow, "tiny", POOL, "tiny_flow.py:tiny")
        self.foreign_flow = self.ask("POST", "/flows/", {"name": "pipeline"})["id"]
        self.foreign_deployment = self.deploy(self.foreign_flow, "pipeline", "control", "tiny_flow.py:tiny")
        self.ask("POST", "/variables/", {"name": "a_variable", "value": SECRET})
        types = self.ask("POST", "/block_types/filter", {"block_types": {"slug": {"any_": ["secret"]}}})
        schema = self.ask(
            "POST", "/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [types[0]["id"]]}}}
        )[0]
        block = {
            "name": "lium",
            "data": {"value": SECRET},
            "block_schema_id": schema["id"],
            "block_type_id": types[0]["id"],
        }
        self.block = self.ask("POST", "/block_documents/", block)["id"]

    def deploy(self, flow: str, name: str, pool: str, entrypoint: str) -> str:
        body = {
            "flow_id": flow,
            "name": name,
            "work_pool_name": pool,
            "entrypoint": entrypoint,
            "path": str(HERE),
            "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(HERE)}}],
            "job_variables": {"command": "python -m prefect.engine"},
            "enforce_parameter_schema": False,
        }
        return str(self.ask("POST", "/deployments/", body)["id"])

    def queue(self) -> str:
        """A pod's name, and the queue that says it lives."""
        pod = f"ts-run{next(self.numbers)}-sft-a1"
        self.ask("POST", f"/work_pools/{POOL}/queues", {"name": pod})
        return pod

    def release(self, pod: str) -> None:
        self.ask("DELETE", f"/work_pools/{POOL}/queues/{pod}")

    def run(self, pod: str, **parameters: Any) -> str:
        tags = [f"run:{pod.removeprefix('ts-').removesuffix('-sft-a1')}", "stage:sft", "attempt:1"]
        body = {"work_queue_name": pod, "parameters": parameters, "state": {"type": "SCHEDULED"}, "tags": tags}
        return str(self.ask("POST", f"/deployments/{self.deployment}/create_flow_run", body)["id"])

    def state(self, run: str) -> str:
        return str(self.ask("GET", f"/flow_runs/{run}")["state"]["type"])

    def set_state(self, run: str, kind: str, *, force: bool = False) -> None:
        body = {"state": {"type": kind, "name": kind.title()}, "force": force}
        self.ask("POST", f"/flow_runs/{run}/set_state", body)

    def logs(self, run: str) -> list[str]:
        found = self.ask("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})
        return [line["message"] for line in found]

    def artifacts(self, run: str) -> list[dict[str, Any]]:
        body = {"artifacts": {"flow_run_id": {"any_": [run]}}}
        return list(self.ask("POST", "/artifacts/filter", body))

    def artifact(self, run: str, key: str) -> str:
        body = {"key": key, "type": "markdown", "data": "true", "flow_run_id": run}
        return str(self.ask("POST", "/artifacts/", body)["id"])

    def events(self, run: str) -> list[str]:
        body = {"filter": {"any_resource": {"id": [f"prefect.flow-run.{run}"]}}}
        return [event["event"] for event in self.ask("POST", "/events/filter", body)["events"]]

    def task_runs(self, run: str) -> list[dict[str, Any]]:
        return list(self.ask("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}}))
