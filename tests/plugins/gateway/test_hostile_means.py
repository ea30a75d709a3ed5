"""The same stranger with cruder means: false tokens, floods, monsters, broken bodies, crooked paths."""

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from plugins.gateway.limits import Limits
from plugins.gateway.service import Gateway
from plugins.gateway.tokens import auth_string, basic, mint
from tests.plugins.gateway.conftest import Pair, Pod, Start
from tests.plugins.gateway.prefect_api import BOSS, POOL, ControlPlane, eventually

pytestmark = pytest.mark.xdist_group("gateway")

Enlist = Callable[[Gateway], Pod]
LOOK_S = 0.2
NOWHERE = (400, 403, 404, 405)


def raw(pod: Pod, method: str, target: str, body: bytes = b"", **headers: str) -> int:
    """The status of a call whose target nobody tidied up."""
    where = urlsplit(pod.url)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=30)
    try:
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        said = {"Host": "x", "Authorization": basic(pod.auth), "Content-Length": str(len(body)), **headers}
        for name, value in said.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        return connection.getresponse().status
    finally:
        connection.close()


def reads_own_run(pod: Pod) -> int:
    return pod.ask("GET", f"/flow_runs/{pod.run}").status_code


def test_a_token_that_is_not_the_pods_own_is_refused(pair: Pair) -> None:
    _, pod, other = pair
    token = pod.auth.partition(":")[2]
    forged = [
        BOSS,
        token,
        f":{token}",
        f"{other.name}:{token}",
        auth_string(pod.name, mint(b"x" * 32, pod.name, "lium-1")),
        pod.auth[:-1],
        pod.auth + "A",
    ]
    for auth in forged:
        answer = httpx.get(f"{pod.url}/flow_runs/{pod.run}", headers={"Authorization": basic(auth)})
        assert answer.status_code == 401, auth
    assert httpx.get(f"{pod.url}/flow_runs/{pod.run}").status_code == 401
    assert httpx.get(f"{pod.url}/flow_runs/{pod.run}", headers={"Authorization": "Bearer " + token}).status_code == 401
    assert reads_own_run(pod) == 200


def test_a_token_is_worth_nothing_once_the_queue_is_gone(control: ControlPlane, start: Start, enlist: Enlist) -> None:
    gateway = start(limits=Limits(look_s=LOOK_S))
    pod, other = enlist(gateway), enlist(gateway)
    assert reads_own_run(pod) == 200
    control.release(pod.name)
    eventually(lambda: reads_own_run(pod) == 401, "the token's end", 10)
    assert reads_own_run(other) == 200


def test_a_revoked_token_is_refused_at_once_and_for_good(start: Start, enlist: Enlist) -> None:
    gateway = start(limits=Limits(look_s=600))
    pod, other = enlist(gateway), enlist(gateway)
    assert reads_own_run(pod) == 200
    gateway.revoke(pod.name)
    assert [reads_own_run(pod) for _ in range(3)] == [401] * 3
    assert reads_own_run(other) == 200


def test_another_process_with_the_same_key_serves_an_adopted_pod(start: Start, enlist: Enlist) -> None:
    pod = enlist(start())
    successor = start()
    assert httpx.get(f"{successor.url}/flow_runs/{pod.run}", headers={"Authorization": basic(pod.auth)}).is_success
    stranger = start(key=b"z" * 32)
    assert httpx.get(f"{stranger.url}/health", headers={"Authorization": basic(pod.auth)}).status_code == 401


def test_a_flood_from_one_pod_costs_the_others_no_call(start: Start, enlist: Enlist, log: list[str]) -> None:
    gateway = start(limits=Limits(calls_per_s=5, burst=10))
    flooding, patient = enlist(gateway), enlist(gateway)
    over = threading.Event()
    seen: Counter[int] = Counter()

    def flood() -> None:
        with httpx.Client(headers={"Authorization": basic(flooding.auth)}, timeout=60) as client:
            while not over.is_set():
                answer = client.get(f"{flooding.url}/flow_runs/{flooding.run}")
                seen[answer.status_code] += 1
                assert answer.status_code == 200 or int(answer.headers["Retry-After"]) >= 1

    threads = [threading.Thread(target=flood, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: seen[429] > 50, "the flood")
    assert [reads_own_run(patient) for _ in range(10)] == [200] * 10
    over.set()
    for thread in threads:
        thread.join(60)
    assert seen[429] > seen[200] > 0
    assert set(seen) == {200, 429}
    assert len(log) < 30


def test_a_pod_that_holds_calls_open_has_only_so_many(start: Start, enlist: Enlist) -> None:
    gateway = start(limits=Limits(at_once=2, body_s=2.0))
    pod, other = enlist(gateway), enlist(gateway)
    where = urlsplit(pod.url)
    held = [http.client.HTTPConnection(str(where.hostname), where.port, timeout=30) for _ in range(2)]
    for connection in held:
        connection.putrequest("POST", f"{where.path}/logs/")
        connection.putheader("Authorization", basic(pod.auth))
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"[")  # and no more of it
    eventually(lambda: reads_own_run(pod) == 429, "the limit", 10)
    assert reads_own_run(other) == 200
    assert [connection.getresponse().status for connection in held] == [408, 408]
    assert reads_own_run(pod) == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "in chunks"])
def test_a_body_that_is_too_large_is_refused(chunked: bool, start: Start, enlist: Enlist) -> None:
    pod = enlist(start(limits=Limits(body_bytes=10_000)))

    def body() -> Iterator[bytes]:
        for _ in range(30):
            yield b"[" * 1000

    content = body() if chunked else b"[" * 30_000
    answer = pod.http.post(f"{pod.url}/logs/", content=content)
    assert answer.status_code == 413
    assert raw(pod, "POST", "/api/logs/", **{"Content-Length": "100000"}) == 413, "before any of it is read"
    assert reads_own_run(pod) == 200


def test_large_bodies_count_as_many_calls(start: Start, enlist: Enlist) -> None:
    pod = enlist(start(limits=Limits(call_bytes=100, burst=20, calls_per_s=0.01)))
    assert pod.http.post(f"{pod.url}/logs/", content=b"[]" + b" " * 5000).status_code == 201
    assert reads_own_run(pod) == 429


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b'"x"', b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 50_000, b"[" + b"9" * 10_000 + b"]"],
    ids=["empty", "cut", "null", "text", "numbers", "no utf-8", "deep list", "deep object", "huge number"],
)
@pytest.mark.parametrize("path", ["/logs/", "/artifacts/", "/flow_runs/filter", "/artifacts/filter"])
def test_a_broken_body_is_the_pods_mistake(path: str, body: bytes, pair: Pair) -> None:
    pod = pair[1]
    assert pod.http.post(pod.url + path, content=body).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        {"state": None},
        {"state": []},
        {"state": {"type": "RUNNING", "name": 5}},
        {"state": {"type": "RUNNING", "state_details": "x"}},
        {"state": {"type": "RUNNING", "name": "x" * 10_000}},
    ],
)
def test_a_state_that_is_none_is_the_pods_mistake(body: object, pair: Pair) -> None:
    pod = pair[1]
    assert pod.ask("POST", f"/flow_runs/{pod.run}/set_state", body).status_code == 400


@pytest.mark.parametrize("run", ["x", 5, None, [], {}, "../admin", "00000000"])
def test_an_id_that_is_none_is_the_pods_mistake(run: object, pair: Pair) -> None:
    pod = pair[1]
    assert pod.ask("POST", "/artifacts/", {"key": pod.key, "flow_run_id": run}).status_code == 400
    assert pod.ask("POST", "/logs/", [{"flow_run_id": pod.run}, {"flow_run_id": run}]).status_code == 400


@pytest.mark.parametrize(
    "target",
    [
        "/api/../api/variables/name/a_variable",
        "/api/flow_runs/../variables/name/a_variable",
        "/api/flow_runs/%2e%2e/variables/name/a_variable",
        "/api/flow_runs/..%2fvariables",
        "/api//variables/name/a_variable",
        "//api/variables/name/a_variable",
        "/api/health/../admin/settings",
        "/api/health%00",
        "/api/health;x=/admin/settings",
        "/api/health\\..\\admin\\settings",
        "/api/h%65alth",
        "/api/work_pools/lium/queues/%2e%2e/%2e%2e/control",
        "/admin/settings",
        "/apix/health",
        "/",
        "http://127.0.0.1/api/admin/settings",
        "/api/health?x=1",
        "/api/flow_runs/filter?limit=200",
    ],
)
def test_a_crooked_path_leads_nowhere(target: str, pair: Pair) -> None:
    pod = pair[1]
    said = (400,) if any(mark in target for mark in ("..", "%", ";", "\\", "//api")) else NOWHERE
    assert raw(pod, "GET", target) in said
    assert raw(pod, "POST", target, b"{}") in said
    assert reads_own_run(pod) == 200


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "TRACE", "CONNECT", "DELETE", "BREW"])
def test_a_method_that_no_client_needs_is_refused(method: str, pair: Pair) -> None:
    pod = pair[1]
    assert raw(pod, method, f"/api/flow_runs/{pod.run}") in NOWHERE
    assert reads_own_run(pod) == 200


def test_a_compressed_body_is_refused(pair: Pair) -> None:
    pod = pair[1]
    answer = pod.http.post(f"{pod.url}/logs/", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


def test_neither_tokens_nor_bodies_are_logged(gateway: Gateway, pod: Pod, log: list[str]) -> None:
    pod.ask("POST", "/block_documents/filter", {"name": "a-body-with-a-secret"})
    pod.http.get(f"{pod.url}/flow_runs/{pod.run}", headers={"Authorization": basic(pod.auth + "x")})
    said = "\n".join(log)
    assert f"refused {pod.name} POST /api/block_documents/filter: not a call that a pod may make" in said
    assert "no token of a pod" in said
    assert "a-body-with-a-secret" not in said and pod.auth.partition(":")[2] not in said


def test_the_gateway_says_that_it_lives_to_anybody_and_no_more(pair: Pair) -> None:
    pod = pair[1]
    assert httpx.get(f"{pod.url}/health").json() is True
    assert httpx.get(f"{pod.url}/ready").status_code == 401
    assert httpx.get(f"{pod.url}/work_pools/{POOL}").status_code == 401
