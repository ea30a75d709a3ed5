"""What a pod may do to its own, and what becomes of the part of a call that it may not say."""

import pytest

from plugins.gateway.service import Gateway
from tests.plugins.gateway.conftest import Pair, Pod
from tests.plugins.gateway.prefect_api import POOL, ControlPlane

pytestmark = pytest.mark.xdist_group("gateway")


def propose(pod: Pod, kind: str, **said: object) -> dict[str, object]:
    answer = pod.ask("POST", f"/flow_runs/{pod.run}/set_state", {"state": {"type": kind, **said}})
    assert answer.is_success, answer.text
    return dict(answer.json())


def test_a_pod_finds_its_own_runs_only_whatever_it_asks(control: ControlPlane, pair: Pair) -> None:
    _, pod, other = pair
    questions = [
        {"flow_runs": {"id": {"any_": []}, "state": {"type": {"any_": ["SCHEDULED"]}}}},
        {"flow_runs": {"operator": "or_", "id": {"any_": [other.run]}, "state": {"type": {"any_": ["SCHEDULED"]}}}},
        {"flow_runs": {"id": {"not_any_": [pod.run]}}},
        {"flow_runs": None},
        {},
    ]
    found = [{run["id"] for run in pod.ask("POST", "/flow_runs/filter", asked).json()} for asked in questions]
    assert {pod.run} in found
    assert set().union(*found) <= {pod.run}


def test_a_pod_gets_its_own_scheduled_runs_queue_deployment_and_flow(control: ControlPlane, pair: Pair) -> None:
    _, pod, _ = pair
    asked = {"work_queue_names": [pod.name], "scheduled_before": "2100-01-01T00:00:00Z", "limit": 200}
    answer = pod.ask("POST", f"/work_pools/{POOL}/get_scheduled_flow_runs", asked).json()
    assert [found["flow_run"]["id"] for found in answer] == [pod.run]
    queue = pod.ask("GET", f"/work_pools/{POOL}/queues/{pod.name}").json()
    assert pod.ask("GET", f"/work_queues/{queue['id']}").json()["name"] == pod.name
    assert pod.ask("GET", f"/deployments/{control.deployment}").json()["name"] == "tiny"
    assert pod.ask("GET", f"/flows/{control.flow}").json()["name"] == "tiny"


def test_a_pod_of_another_pool_with_the_same_queue_name_owns_nothing(
    control: ControlPlane, gateway: Gateway, pod: Pod
) -> None:
    control.ask("POST", "/work_pools/control/queues", {"name": pod.name})
    body = {"work_queue_name": pod.name, "state": {"type": "SCHEDULED"}}
    foreign = control.ask("POST", f"/deployments/{control.foreign_deployment}/create_flow_run", body)["id"]
    assert pod.ask("GET", f"/flow_runs/{foreign}").status_code == 403
    found = pod.ask("POST", "/flow_runs/filter", {}).json()
    assert [run["id"] for run in found] == [pod.run]


def test_a_run_that_was_ended_from_outside_stays_as_it_was_ended(
    control: ControlPlane, gateway: Gateway, pod: Pod
) -> None:
    propose(pod, "RUNNING")
    control.set_state(pod.run, "CRASHED", force=True)
    for kind in ("COMPLETED", "RUNNING", "FAILED", "CANCELLED"):
        assert propose(pod, kind)["status"] == "ABORT"
    assert control.state(pod.run) == "CRASHED"
    assert gateway.refusals == 4


def test_an_engine_may_force_its_own_crash_but_not_over_another_end(
    control: ControlPlane, gateway: Gateway, pod: Pod
) -> None:
    crashed = {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True}
    propose(pod, "RUNNING")
    assert pod.ask("POST", f"/flow_runs/{pod.run}/set_state", crashed).json()["status"] == "ACCEPT"
    assert control.state(pod.run) == "CRASHED"
    control.set_state(pod.run, "COMPLETED", force=True)
    assert pod.ask("POST", f"/flow_runs/{pod.run}/set_state", crashed).json()["status"] == "ABORT"
    assert control.state(pod.run) == "COMPLETED"


def test_an_end_that_is_said_twice_is_taken_once(control: ControlPlane, gateway: Gateway, pod: Pod) -> None:
    propose(pod, "RUNNING")
    first = propose(pod, "COMPLETED", name="Completed", message="the result")
    again = propose(pod, "COMPLETED", name="Completed", message="another result")
    assert first["status"] == again["status"] == "ACCEPT"
    assert control.ask("GET", f"/flow_runs/{pod.run}")["state"]["message"] == "the result"
    assert gateway.refusals == 0


def test_a_state_brings_neither_result_data_nor_foreign_ids(control: ControlPlane, pod: Pod) -> None:
    data = {"type": "unpersisted", "storage_key": "/tmp/bomb.pickle"}
    lease = "11111111-1111-4111-8111-111111111111"
    details = {"deployment_concurrency_lease_id": lease, "child_flow_run_id": lease, "scheduled_time": "2100-01-01"}
    propose(pod, "RUNNING")
    propose(pod, "COMPLETED", data=data, state_details=details)
    state = control.ask("GET", f"/flow_runs/{pod.run}")["state"]
    assert state["data"] is None
    assert lease not in str(state["state_details"].values())
    assert state["state_details"]["scheduled_time"] is None


def test_a_retry_policy_from_a_pod_is_dropped(control: ControlPlane, pod: Pod) -> None:
    said = {"flow_version": "v7", "empirical_policy": {"retries": 5, "retry_delay": 0}}
    assert pod.ask("PATCH", f"/flow_runs/{pod.run}", said).is_success
    assert pod.ask("PATCH", f"/flow_runs/{pod.run}", {"empirical_policy": {"retries": 5}}).is_success
    propose(pod, "RUNNING")
    propose(pod, "FAILED", message="no")
    run = control.ask("GET", f"/flow_runs/{pod.run}")
    assert (run["flow_version"], run["state"]["type"]) == ("v7", "FAILED")
    assert not run["empirical_policy"]["retries"]


def test_a_heartbeat_keeps_a_worker_online_for_a_few_minutes_at_most(control: ControlPlane, pod: Pod) -> None:
    said = {"name": pod.name, "heartbeat_interval_seconds": 10**9}
    assert pod.ask("POST", f"/work_pools/{POOL}/workers/heartbeat", said).is_success
    workers = control.ask("POST", f"/work_pools/{POOL}/workers/filter", {})
    assert [found["heartbeat_interval_seconds"] for found in workers if found["name"] == pod.name] == [60]


def test_a_result_storage_of_the_server_is_not_shown_to_pods(pair: Pair) -> None:
    assert pair[1].ask("GET", "/admin/storage").json() == {"default_result_storage_block_id": None}


def test_the_gateway_knows_when_it_last_saw_a_pod(gateway: Gateway, pod: Pod, other: Pod) -> None:
    assert gateway.last_seen_s(pod.name) is None
    assert pod.ask("GET", "/ready").is_success
    assert gateway.last_seen_s(pod.name) is not None
    assert gateway.last_seen_s(other.name) is None
