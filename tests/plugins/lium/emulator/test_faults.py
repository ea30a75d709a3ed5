"""Ordered faults on any call, as the unmodified SDK meets them: silence, lost answers, late, empty and odd listings."""

import contextlib
import threading
import time

import httpx
import pytest
import requests
from lium.sdk.exceptions import LiumError, LiumServerError

pytestmark = pytest.mark.filterwarnings("ignore:Pinning:UserWarning")


@pytest.fixture(scope="module")
def emulator(start_for_module):
    """Its own: a fault is taken by whoever calls next."""
    return start_for_module("--listings-per-minute", "100000")


def journal(sdk, *calls):
    own = [row for row in sdk.emulator.journal() if row["api_key_tail"] == sdk.key[-4:]]
    rows = [f"{row['method']} {row['path']} {row['status']}" for row in own]
    return [row for row in rows if row.rpartition(" ")[0] in calls]


def rent_body(ssh_key, **more):
    return {"gpu_type": "4090", "pod_name": "p", "user_public_key": [ssh_key.with_suffix(".pub").read_text()]} | more


def test_a_call_without_an_answer_is_not_carried_out_and_ends_when_the_client_gives_up(sdk, emulator, wait_until):
    emulator.order({"timeout:POST /api/volumes": 1})
    with pytest.raises(httpx.ReadTimeout):
        headers = {"X-API-KEY": sdk.key}
        httpx.post(f"{emulator.url}/volumes", json={"name": "v"}, headers=headers, timeout=0.5)
    held = wait_until(lambda: journal(sdk, "POST /api/volumes"), "the emulator sees that the client is gone")
    assert held == ["POST /api/volumes 504"]
    assert sdk.lium.volumes() == []
    assert sdk.call("POST", "/volumes", json={"name": "v"}).status_code == 200


def test_a_lost_answer_closes_the_connection_after_the_work(sdk, emulator):
    emulator.order({"lost:POST /api/volumes": 1})
    with pytest.raises(requests.ConnectionError):
        sdk.lium.volume_create("made-all-the-same")
    assert [volume.name for volume in sdk.lium.volumes()] == ["made-all-the-same"]


def test_a_lost_answer_to_a_listing_is_asked_for_again_by_the_sdk(sdk, emulator):
    emulator.order({"lost:GET /api/pods": 2})
    assert sdk.lium.ps() == []
    assert journal(sdk, "GET /api/pods") == ["GET /api/pods 502"] * 2 + ["GET /api/pods 200"]


def test_a_lost_rent_leaves_one_pod_which_the_sdk_finds(sdk, emulator):
    emulator.order({"lost:POST /api/executors/rent-by-spec": 1})
    rented = sdk.lium.rent(gpu_type="4090", name="lost-too")
    assert [pod.id for pod in sdk.lium.ps()] == [rented.pod["id"]]
    assert len(journal(sdk, "POST /api/executors/rent-by-spec")) == 1


def test_a_removal_whose_answer_is_lost_has_removed(sdk, emulator):
    pod = sdk.pod()
    emulator.order({"lost:DELETE /api/pods/*": 1})
    with pytest.raises(requests.ConnectionError):
        sdk.lium.down(pod)
    assert sdk.lium.ps() == []


def test_a_late_pod_is_rented_and_paid_and_listed_only_later(sdk, emulator, ssh_key, wait_until):
    emulator.order({"late:POST /api/executors/rent-by-spec": 1})
    answer = sdk.call("POST", "/executors/rent-by-spec", json=rent_body(ssh_key)).json()
    assert answer["pod_id"] and sdk.lium.ps() == []
    assert sdk.call("GET", f"/pods/{answer['pod_id']}").status_code == 200
    wait_until(sdk.lium.ps, "it is listed")
    row = sdk.call("GET", "/pods").json()[0]
    record = sdk.lium.pod_record(row["id"])
    assert row["id"] == answer["pod_id"] and record["billed_seconds"] > 3, "the meter ran while it was not listed"


def test_the_sdk_waits_for_a_late_pod(sdk, emulator):
    emulator.order({"late:POST /api/executors/*/rent": 1})
    node = next(node for node in sdk.lium.ls() if "4090" in node.machine_name)
    rented = sdk.lium.up(executor_id=node.id, name="late-one")
    assert sdk.ready(rented["id"]).name == "late-one"


def test_an_empty_listing_and_an_odd_status_last_one_listing(sdk, emulator):
    pod = sdk.pod()
    emulator.order({"empty:GET /api/pods": 1})
    assert [sdk.lium.ps(), [row.id for row in sdk.lium.ps()]] == [[], [pod.id]]
    emulator.order({"status:HIBERNATING": 1})
    assert [sdk.lium.ps()[0].status for _ in range(2)] == ["HIBERNATING", "RUNNING"]
    assert sdk.out(pod, "echo untouched") == "untouched"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/executors"), ("GET", "/users/me"), ("POST", "/templates"), ("DELETE", "/volumes/x"), ("PUT", "/pods/x")],
)
def test_an_error_can_be_ordered_for_any_call(sdk, emulator, method, path):
    emulator.order({f"503:{method} /api{path.rsplit('/', 1)[0]}*": 1})
    answer = sdk.call(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "emulated_fault")
    assert sdk.call(method, path).status_code != 503


def test_errors_that_last_reach_the_caller(sdk, emulator):
    emulator.order({"502:GET /api/pods": 3})
    with pytest.raises(LiumServerError, match="502"):
        sdk.lium.ps()


def test_held_calls_do_not_hold_the_end_of_the_emulator(start_emulator, wait_until):
    emulator = start_emulator()
    emulator.order({"timeout:GET /api/pods": 1})
    with httpx.Client(timeout=30) as client:
        request = client.build_request("GET", f"{emulator.url}/pods", headers={"X-API-KEY": "any"})

        def ask():
            with contextlib.suppress(httpx.HTTPError):
                client.send(request)

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: not httpx.get(f"{emulator.control}/faults").json(), "the call is held")
        began = time.monotonic()
        assert emulator.stop() == 0
        asking.join(10)
    assert time.monotonic() - began < 20 and not asking.is_alive()


def test_a_refused_order_names_what_there_is(sdk):
    answer = sdk.call("POST", "/../_emulator/faults", json={"slow:GET /api/pods": 1})
    assert answer.status_code == 400
    for known in ("lose_rent_answer", "429:GET /api/pods", "timeout, lost, empty, late", "status:SLEEPING"):
        assert known in answer.json()["message"]
    with pytest.raises(LiumError):
        sdk.lium.rent(gpu_type="B300", name="unknown")
