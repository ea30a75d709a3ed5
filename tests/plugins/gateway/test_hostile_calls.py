"""A pod that tries, call by call, what a stranger's machine would try. Nothing works, and nothing upstream changes."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.plugins.gateway.conftest import Pair, Pod
from tests.plugins.gateway.prefect_api import POOL, SECRET, ControlPlane

pytestmark = pytest.mark.xdist_group("gateway")

# What it is: the call. The words in capitals stand for ids, see `words`.
ATTACKS = """
read a block's secret: GET /block_documents/BLOCK?include_secrets=true
read a block: GET /block_documents/BLOCK
read a block by name: GET /block_types/slug/secret/block_documents/name/lium
list blocks: POST /block_documents/filter {"include_secrets": true}
read a variable: GET /variables/name/a_variable
list variables: POST /variables/filter {}
write a variable: POST /variables/ {"name": "mine", "value": 1}
read the settings: GET /admin/settings
clear the database: POST /admin/database/clear {"confirm": true}
start a pipeline: POST /deployments/PIPELINE/create_flow_run {"state": {"type": "SCHEDULED"}, "parameters": {}}
start a stage: POST /deployments/STAGE/create_flow_run {"state": {"type": "SCHEDULED"}, "parameters": {}}
make a run without a deployment: POST /flow_runs/ {"flow_id": "FLOW"}
read another deployment: GET /deployments/PIPELINE
read another flow: GET /flows/OTHERFLOW
list deployments: POST /deployments/filter {}
change the own deployment: PATCH /deployments/STAGE {"path": "/tmp"}
schedule the own deployment: POST /deployments/STAGE/schedule {}
read another's run: GET /flow_runs/OTHER_RUN
read another's run, in capitals: GET /flow_runs/OTHER_RUN_IN_CAPITALS
cancel another's run: POST /flow_runs/OTHER_RUN/set_state {"state": {"type": "CANCELLED"}}
end another's run: POST /flow_runs/OTHER_RUN/set_state {"state": {"type": "COMPLETED"}}
end runs in bulk: POST /flow_runs/bulk_set_state {"flow_runs": {}, "state": {"type": "RUNNING", "name": "Running"}}
delete another's run: DELETE /flow_runs/OTHER_RUN
delete the own run: DELETE /flow_runs/OWN_RUN
label another's run: PATCH /flow_runs/OTHER_RUN/labels {"prefect.worker.name": "x"}
label the own run freely: PATCH /flow_runs/OWN_RUN/labels {"run": "another"}
tag the own run: PATCH /flow_runs/OWN_RUN {"tags": ["run:another"]}
rename the own run: PATCH /flow_runs/OWN_RUN {"name": "x"}
change the own order: PATCH /flow_runs/OWN_RUN {"parameters": {"x": 1}}
note a pid on another's run: PATCH /flow_runs/OTHER_RUN {"infrastructure_pid": "1"}
find everybody's runs by name: POST /flow_runs/filter {"flow_runs": {"name": {"any_": ["x"]}}}
find runs through their flow: POST /flow_runs/filter {"flows": {"name": {"any_": ["tiny"]}}}
count runs: POST /flow_runs/count {}
claim from another queue: POST /work_pools/lium/get_scheduled_flow_runs {"work_queue_names": ["OTHER"]}
claim from both queues: POST /work_pools/lium/get_scheduled_flow_runs {"work_queue_names": ["OWN", "OTHER"]}
claim from all queues: POST /work_pools/lium/get_scheduled_flow_runs {}
claim from the control plane: POST /work_pools/control/get_scheduled_flow_runs {"work_queue_names": ["OWN"]}
claim by deployment: POST /deployments/get_scheduled_flow_runs {"deployment_ids": ["STAGE"]}
read another's queue: GET /work_pools/lium/queues/OTHER
find another's queue: POST /work_pools/lium/queues/filter {"work_queues": {"name": {"any_": ["OTHER"]}}}
find all queues: POST /work_pools/lium/queues/filter {}
pause another's queue: PATCH /work_pools/lium/queues/OTHER {"is_paused": true}
delete another's queue: DELETE /work_pools/lium/queues/OTHER
delete the own queue: DELETE /work_pools/lium/queues/OWN
make a queue: POST /work_pools/lium/queues {"name": "ts-x-sft-a9"}
read the control plane's pool: GET /work_pools/control
change the pool: PATCH /work_pools/lium {"is_paused": true}
delete the pool: DELETE /work_pools/lium
say that another's worker lives: POST /work_pools/lium/workers/heartbeat {"name": "OTHER"}
list workers: POST /work_pools/lium/workers/filter {}
delete another's worker: DELETE /work_pools/lium/workers/OTHER
write into another's log: POST /logs/ [{"message": "forged", "flow_run_id": "OTHER_RUN"}]
slip into another's log: POST /logs/ [{"flow_run_id": "OWN_RUN"}, {"flow_run_id": "OTHER_RUN"}]
read logs: POST /logs/filter {"logs": {"flow_run_id": {"any_": ["OTHER_RUN"]}}}
write an artifact of another: POST /artifacts/ {"key": "OWN_KEY", "data": "forged", "flow_run_id": "OTHER_RUN"}
forge the ledger of the own run: POST /artifacts/ {"key": "OWN_LEDGER", "data": "forged", "flow_run_id": "OWN_RUN"}
write under another's key: POST /artifacts/ {"key": "OTHER_KEY", "data": "forged", "flow_run_id": "OWN_RUN"}
write under another stage's key: POST /artifacts/ {"key": "OWN_RL_KEY", "data": "forged", "flow_run_id": "OWN_RUN"}
read an artifact of another: GET /artifacts/OTHER_ARTIFACT
overwrite an artifact of another: PATCH /artifacts/OTHER_ARTIFACT {"data": "forged"}
move the artifact of another: PATCH /artifacts/OTHER_ARTIFACT {"flow_run_id": "OWN_RUN"}
read artifacts of another: POST /artifacts/filter {"artifacts": {"flow_run_id": {"any_": ["OTHER_RUN"]}}}
read artifacts of both: POST /artifacts/filter {"artifacts": {"flow_run_id": {"any_": ["OWN_RUN", "OTHER_RUN"]}}}
read everybody's artifacts: POST /artifacts/filter {}
read artifacts by key: POST /artifacts/filter {"artifacts": {"key": {"any_": ["OTHER_KEY"]}}}
read the newest artifact of a key: GET /artifacts/OTHER_KEY/latest
read the newest artifacts: POST /artifacts/latest/filter {}
make a task run: POST /task_runs/ {"flow_run_id": "OTHER_RUN", "task_key": "x", "dynamic_key": "0"}
read another's task runs: POST /task_runs/filter {}
read events: POST /events/filter {}
post events: POST /events []
make an automation: POST /automations/ {}
take a concurrency slot: POST /v2/concurrency_limits/increment {"names": ["pods"], "slots": 1}
resume a run: POST /flow_runs/OWN_RUN/resume {}
send input to another's run: POST /flow_runs/OTHER_RUN/input {"key": "k", "value": "v"}
put itself back on the schedule: POST /flow_runs/OWN_RUN/set_state {"state": {"type": "SCHEDULED", "name": "Running"}}
retry itself: POST /flow_runs/OWN_RUN/set_state {"state": {"type": "RUNNING", "name": "AwaitingRetry"}}
pause itself: POST /flow_runs/OWN_RUN/set_state {"state": {"type": "PAUSED", "name": "Suspended"}}
force a state: POST /flow_runs/OWN_RUN/set_state {"state": {"type": "RUNNING", "name": "Running"}, "force": true}
be another: POST /flow_runs/OWN_RUN/set_state {"state": {"type": "FAILED","state_details":{"flow_run_id":"OTHER_RUN"}}}
"""
CALLS = dict(line.split(": ", 1) for line in ATTACKS.strip().splitlines())


@pytest.fixture(scope="module")
def words(control: ControlPlane, pair: Pair) -> dict[str, str]:
    """What the words stand for. Longest first, so that OWN does not eat OWN_RUN."""
    _, pod, other = pair
    return {
        "OTHER_RUN_IN_CAPITALS": other.run.upper(),
        "OTHER_ARTIFACT": control.artifact(other.run, other.key),
        "OWN_RL_KEY": pod.key.replace("-sft-", "-rl-"),
        "OWN_LEDGER": pod.key.replace("-sft-heartbeat", "-pods"),
        "OTHERFLOW": control.foreign_flow,
        "OTHER_RUN": other.run,
        "OTHER_KEY": other.key,
        "PIPELINE": control.foreign_deployment,
        "OWN_RUN": pod.run,
        "OWN_KEY": pod.key,
        "OTHER": other.name,
        "STAGE": control.deployment,
        "BLOCK": control.block,
        "FLOW": control.flow,
        "OWN": pod.name,
    }


def snapshot(control: ControlPlane, pods: Sequence[Pod]) -> list[Any]:
    """What of the pods, and of what is nobody's, a pod might have changed."""
    seen: list[Any] = []
    for pod in pods:
        run = control.ask("GET", f"/flow_runs/{pod.run}")
        seen.append({key: run[key] for key in ("name", "tags", "parameters", "labels", "state", "infrastructure_pid")})
        queue = control.ask("GET", f"/work_pools/{POOL}/queues/{pod.name}")
        seen += [(queue["id"], queue["is_paused"]), control.artifacts(pod.run), control.logs(pod.run)]
    counts = ("flow_runs", "variables", "work_pools", "deployments", "automations")
    seen += [control.ask("POST", f"/{what}/count", {}) for what in counts]
    seen.append(control.ask("GET", f"/work_pools/{POOL}")["is_paused"])
    seen.append([found["name"] for found in control.ask("POST", f"/work_pools/{POOL}/workers/filter", {})])
    return seen


@pytest.fixture(scope="module", autouse=True)
def _nothing_changes(control: ControlPlane, pair: Pair, words: dict[str, str]) -> Iterator[None]:
    """After all attacks everything is as it was."""
    before = snapshot(control, pair[1:])
    yield
    assert snapshot(control, pair[1:]) == before


@pytest.mark.parametrize("what", CALLS)
def test_a_pod_cannot(what: str, words: dict[str, str], pair: Pair) -> None:
    gateway, pod, _ = pair
    refused = gateway.refusals
    call = CALLS[what]
    for word, value in words.items():
        call = call.replace(word, value)
    method, path, *body = call.split(" ", 2)
    answer = pod.ask(method, path, json.loads(body[0]) if body else None)
    assert answer.status_code == 403, answer.text
    assert "gateway:" in answer.text and SECRET not in answer.text
    assert gateway.refusals == refused + 1
