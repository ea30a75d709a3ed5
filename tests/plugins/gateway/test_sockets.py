"""Events out of a pod and news for it, over real websockets, also from a pod that lies in them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from plugins.gateway.limits import Limits
from plugins.gateway.service import Gateway
from tests.plugins.gateway.cable import Cable
from tests.plugins.gateway.conftest import Pair, Pod, Start
from tests.plugins.gateway.prefect_api import POOL, ControlPlane, eventually

pytestmark = pytest.mark.xdist_group("gateway")

NOW = datetime.now(UTC).isoformat()
SPAN = {"since": NOW, "until": "2100-01-01T00:00:00Z"}
CANCELLING = {"event": {"name": ["prefect.flow-run.Cancelling"]}, "occurred": SPAN}


@contextmanager
def opened(pod: Pod, path: str, auth: str | None = None) -> Iterator[ClientConnection]:
    """A websocket after Prefect's handshake."""
    url = pod.url.replace("http", "ws", 1) + path
    with connect(url, subprotocols=["prefect"], open_timeout=20, close_timeout=5, proxy=None) as socket:  # type: ignore[list-item]
        socket.send(json.dumps({"type": "auth", "token": pod.auth if auth is None else auth}))
        assert json.loads(socket.recv(20)) == {"type": "auth_success"}
        yield socket


def event(name: str, resource: str, related: list[tuple[str, str]] | None = None, **more: Any) -> str:
    entries = [{"prefect.resource.id": found, "prefect.resource.role": role} for found, role in related or []]
    about = {"prefect.resource.id": resource, "prefect.orchestration": "client"}  # without it no task run is recorded
    said = {"id": str(uuid4()), "occurred": NOW, "event": name, "resource": about}
    return json.dumps({"payload": {}, **said, "related": entries, **more})


def task_event(run: str, task_run: str, **payload: Any) -> str:
    return event(
        "prefect.task-run.Completed",
        f"prefect.task-run.{task_run}",
        [(f"prefect.flow-run.{run}", "flow-run")],
        payload={
            "intended": {"from": None, "to": "COMPLETED"},
            "validated_state": {"type": "COMPLETED", "name": "Completed"},
            "task_run": {"name": "t", "task_key": "t", "dynamic_key": str(uuid4()), **payload},
        },
    )


def refused(pod: Pod, path: str, subprotocols: list[str] | None) -> int:
    url = pod.url.replace("http", "ws", 1) + path
    with pytest.raises(InvalidStatus) as error, connect(url, subprotocols=subprotocols, proxy=None):  # type: ignore[arg-type]
        pass
    return error.value.response.status_code


@pytest.mark.parametrize(
    "path",
    [
        "/logs/out",
        "/task_runs/subscriptions/scheduled",
        f"/work_pools/{POOL}/workers/connect",
        "/work_pools/control/workers/connect",
        "/events/in?x=1",
        "/events/../events/in",
        "/events%2fin",
        "/variables",
    ],
)
def test_other_websockets_are_refused(path: str, pair: Pair) -> None:
    assert refused(pair[1], path, ["prefect"]) == 403


def test_a_websocket_without_prefects_handshake_is_refused(pair: Pair) -> None:
    assert refused(pair[1], "/events/in", None) == 403


@pytest.mark.parametrize("path", ["/events/in", "/events/out"])
def test_a_wrong_token_closes_the_websocket(path: str, pair: Pair) -> None:
    _, pod, other = pair
    url = pod.url.replace("http", "ws", 1) + path
    for first in (
        json.dumps({"type": "auth", "token": f"{other.name}:{pod.auth.partition(':')[2]}"}),
        json.dumps({"type": "auth", "token": None}),
        json.dumps(["auth"]),
        "{",
        b"\x00",
    ):
        with connect(url, subprotocols=["prefect"], proxy=None) as socket:  # type: ignore[list-item]
            socket.send(first)
            with pytest.raises(ConnectionClosed) as error:
                socket.recv(20)
            assert error.value.rcvd is not None and error.value.rcvd.code == 1008


def test_events_about_the_own_run_arrive_and_those_about_others_do_not(
    control: ControlPlane, gateway: Gateway, pod: Pod, other: Pod
) -> None:
    own, foreign = f"prefect.flow-run.{pod.run}", f"prefect.flow-run.{other.run}"
    foreign_artifact = control.artifact(other.run, other.key)
    lies = [
        event("gpu.ready", foreign),
        event("gpu.ready", own, [(foreign, "flow-run")]),
        event("prefect.flow-run.Completed", own),
        event("prefect.flow-run.heartbeat", foreign),
        event("prefect.worker.stopped", f"prefect.worker.process.{other.name}"),
        event("prefect.artifact.updated", f"prefect.artifact.{foreign_artifact}"),
        event("prefect.runner.cancelled-flow-run", "prefect.runner.x", [(foreign, "flow-run")]),
        event("prefect.runner.cancelled-flow-run", "prefect.runner.x"),
        event("prefect.work-pool.paused", own),
        event("prefect.automation.triggered", own),
        event("gpu.ready", "prefect.flow-run.x"),
        event("gpu.ready", f"prefect.flow-run.{uuid4()}"),
        json.dumps({"event": "gpu.ready"}),
        "[]",
        "{",
    ]
    eventually(lambda: "prefect.artifact-collection.created" in control.events(other.run), "the other's own events")
    before = set(control.events(other.run))
    with opened(pod, "/events/in") as socket:
        for lie in lies:
            socket.send(lie)
        socket.send(event("gpu.ready", own))
    eventually(lambda: "gpu.ready" in control.events(pod.run), "the true event")
    assert gateway.refusals == len(lies)
    assert set(control.events(other.run)) == before
    assert "prefect.flow-run.Completed" not in control.events(pod.run)
    assert control.events(pod.run).count("gpu.ready") == 1


def test_what_an_event_says_of_others_is_cut_out(control: ControlPlane, pod: Pod) -> None:
    own = f"prefect.flow-run.{pod.run}"
    block = f"prefect.block-document.{control.block}"
    pipeline = f"prefect.deployment.{control.foreign_deployment}"
    stage = f"prefect.deployment.{control.deployment}"
    said = [(own, "flow-run"), (block, "block"), (pipeline, "deployment"), (stage, "deployment"), (stage, "flow")]
    with opened(pod, "/events/in") as socket:
        socket.send(event("gpu.ready", own, said))
    eventually(lambda: "gpu.ready" in control.events(pod.run), "the event")
    body = {"filter": {"any_resource": {"id": [own]}, "event": {"name": ["gpu.ready"]}}}
    [found] = control.ask("POST", "/events/filter", body)["events"]
    kept = {(entry["prefect.resource.id"], entry["prefect.resource.role"]) for entry in found["related"]}
    assert kept == {(own, "flow-run"), (stage, "deployment")}


def test_a_pod_cannot_rewrite_a_task_of_another(control: ControlPlane, gateway: Gateway, pod: Pod, other: Pod) -> None:
    theirs, mine = str(uuid4()), str(uuid4())
    with opened(other, "/events/in") as socket:
        socket.send(task_event(other.run, theirs, name="theirs"))
    eventually(lambda: control.task_runs(other.run), "the other's task run")
    with opened(pod, "/events/in") as socket:
        socket.send(task_event(pod.run, theirs, name="stolen"))
        socket.send(event("prefect.task-run.Completed", f"prefect.task-run.{uuid4()}"))
        socket.send(task_event(pod.run, mine, id=theirs, flow_run_id=other.run, name="mine"))
    eventually(lambda: control.task_runs(pod.run), "the own task run")
    assert [(task["id"], task["name"]) for task in control.task_runs(pod.run)] == [(mine, "mine")]
    assert [(task["id"], task["name"]) for task in control.task_runs(other.run)] == [(theirs, "theirs")]
    assert gateway.refusals == 2
    lines = [{"flow_run_id": pod.run, "task_run_id": theirs, "message": "forged", "level": 20, "name": "x"}]
    assert pod.ask("POST", "/logs/", lines).status_code == 403


@pytest.mark.parametrize(
    "wanted",
    [
        {"event": {"name": ["prefect.flow-run.Completed"]}},
        {"event": {"name": ["prefect.flow-run.Cancelling", "prefect.block-document.updated"]}},
        {"event": {"prefix": ["prefect."]}},
        {"event": {"name": []}},
        {"event": {"name": "prefect.flow-run.Cancelling"}},
        {},
        None,
    ],
)
def test_a_pod_may_watch_for_its_end_only(wanted: Any, pair: Pair) -> None:
    with opened(pair[1], "/events/out") as socket:
        socket.send(json.dumps({"type": "filter", "filter": wanted}))
        with pytest.raises(ConnectionClosed) as error:
            socket.recv(20)
    assert error.value.rcvd is not None and error.value.rcvd.code == 1008


def test_a_pod_sees_its_own_cancellation_and_nobody_elses(control: ControlPlane, pod: Pod, other: Pod) -> None:
    with opened(pod, "/events/out") as socket:
        socket.send(json.dumps({"type": "filter", "filter": CANCELLING}))
        last = control.run(pod.name)
        for run in (other.run, pod.run, last):
            control.set_state(run, "RUNNING")
            control.set_state(run, "CANCELLING")
        seen: list[str] = []
        while not seen or not seen[-1].endswith(last):
            seen.append(json.loads(socket.recv(30))["event"]["resource"]["prefect.resource.id"])
        assert set(seen) == {f"prefect.flow-run.{run}" for run in (pod.run, last)}


def test_both_directions_outlive_an_outage_of_the_server(control: ControlPlane, start: Start, enlist: Any) -> None:
    cable = Cable(urlsplit(control.url).port or 0)
    gateway = start(upstream=f"http://127.0.0.1:{cable.port}/api")
    pod = enlist(gateway)
    with opened(pod, "/events/out") as news, opened(pod, "/events/in") as said:
        news.send(json.dumps({"type": "filter", "filter": CANCELLING}))
        said.send(event("before.outage", f"prefect.flow-run.{pod.run}"))
        eventually(lambda: "before.outage" in control.events(pod.run), "the event before")
        cable.cut()
        answer = pod.ask("GET", "/ready")
        assert (answer.status_code, "Retry-After" in answer.headers) == (502, True)
        control.set_state(pod.run, "RUNNING")
        control.set_state(pod.run, "CANCELLING")
        said.send(event("in.outage", f"prefect.flow-run.{pod.run}"))
        cable.mend()
        assert json.loads(news.recv(30))["event"]["event"] == "prefect.flow-run.Cancelling"
        eventually(lambda: "in.outage" in control.events(pod.run), "the event sent in the outage")
    cable.cut()


@pytest.mark.parametrize("how", ["revoked", "queue deleted"])
def test_open_websockets_end_with_the_pods_release(how: str, control: ControlPlane, start: Start, enlist: Any) -> None:
    gateway = start(limits=Limits(look_s=600 if how == "revoked" else 0.2))
    pod, other = enlist(gateway), enlist(gateway)
    with opened(pod, "/events/in") as one, opened(pod, "/events/out") as two, opened(other, "/events/in") as theirs:
        two.send(json.dumps({"type": "filter", "filter": CANCELLING}))
        if how == "revoked":
            gateway.revoke(pod.name)
        else:
            control.release(pod.name)
        for socket in (one, two):
            with pytest.raises(ConnectionClosed) as error:
                socket.recv(20)
            assert error.value.rcvd is not None and error.value.rcvd.code == 1008
        theirs.send(event("still.here", f"prefect.flow-run.{other.run}"))
        eventually(lambda: "still.here" in control.events(other.run), "the other pod's event")


def test_a_message_that_is_too_large_ends_its_own_websocket_only(start: Start, enlist: Any) -> None:
    pod = enlist(start(limits=Limits(message_bytes=10_000)))
    with opened(pod, "/events/in") as socket:
        socket.send("x" * 20_000)
        with pytest.raises(ConnectionClosed) as error:
            socket.recv(20)
        assert error.value.rcvd is not None and error.value.rcvd.code == 1009
    with opened(pod, "/events/in"):
        assert pod.ask("GET", "/ready").is_success


def test_a_pod_has_only_so_many_websockets(start: Start, enlist: Any) -> None:
    gateway = start(limits=Limits(sockets=1))
    pod, other = enlist(gateway), enlist(gateway)
    with opened(pod, "/events/in"), opened(other, "/events/in"):
        url = pod.url.replace("http", "ws", 1) + "/events/in"
        with connect(url, subprotocols=["prefect"], proxy=None) as socket:  # type: ignore[list-item]
            socket.send(json.dumps({"type": "auth", "token": pod.auth}))
            with pytest.raises(ConnectionClosed) as error:
                socket.recv(20)
            assert error.value.rcvd is not None and error.value.rcvd.code == 1013


def test_a_websocket_that_never_shows_a_token_is_closed(start: Start, enlist: Any) -> None:
    pod = enlist(start(limits=Limits(handshake_s=0.3, handshakes=1)))
    url = pod.url.replace("http", "ws", 1) + "/events/in"
    with connect(url, subprotocols=["prefect"], proxy=None) as socket:  # type: ignore[list-item]
        assert refused(pod, "/events/in", ["prefect"]) == 403
        with pytest.raises(ConnectionClosed):
            socket.recv(20)
    with opened(pod, "/events/in"):
        pass
