import asyncio
from typing import Any

import httpx
import pytest

from plugins.errors import EnvError
from plugins.http_env.client import EnvClient
from plugins.http_env.protocol import Problem
from plugins.http_env.server import build_app
from plugins.http_env.sessions import Sessions
from plugins.http_env.tasks.arithmetic import Arithmetic

PROBLEM = Problem("3+4=", "7", {"attempts": 9})


class Network(httpx.AsyncBaseTransport):
    """A line to an environment whose next calls may fail: a status, an exception, or "lost" (done, answer lost)."""

    def __init__(self, *faults: Any, ids: bool = True) -> None:
        self.sessions = Sessions(Arithmetic())
        self._inner = httpx.ASGITransport(build_app(Arithmetic(), sessions=self.sessions))
        self.faults = list(faults)
        self.calls: list[str] = []
        self._ids = ids

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.calls.append(request.url.path.rsplit("/", 1)[1])
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int):
            return httpx.Response(fault, json={"detail": "down"})
        if isinstance(fault, Exception):
            raise fault
        response = await self._inner.handle_async_request(request)
        await response.aread()
        if fault == "lost":
            raise httpx.ReadError("connection reset")
        if not self._ids:  # a server of the older stack: it does not know request ids
            body = {key: value for key, value in response.json().items() if key != "request_id"}
            return httpx.Response(response.status_code, json=body)
        return response


class Line:
    """A client on a Network, with a clock that only its own waits move."""

    def __init__(self, network: Network, **options: Any) -> None:
        self.network, self.now, self.waits = network, 0.0, [0.0][:0]
        http = httpx.AsyncClient(transport=network)
        self.client = EnvClient("http://env/", http=http, sleep=self.sleep, clock=lambda: self.now, **options)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.waits.append(seconds)


def test_a_start_is_retried_until_the_environment_is_back() -> None:
    line = Line(Network(503, httpx.ConnectError("refused"), 500, "lost"))
    session = asyncio.run(line.client.start(PROBLEM))
    assert session.idempotent
    assert line.network.calls == ["start"] * 5
    assert len(line.network.sessions) == 1  # the lost one was found again by its request id


def test_a_lost_answer_to_a_step_is_asked_for_again_and_makes_one_transition() -> None:
    async def go() -> None:
        line = Line(Network())
        session = await line.client.start(PROBLEM)
        line.network.faults = ["lost", 502, "lost"]
        turn = await line.client.step(session, "8")
        assert turn.observation == "Wrong. Tries left: 8."
        assert (await line.client.step(session, "8")).observation == "Wrong. Tries left: 7."

    asyncio.run(go())


@pytest.mark.parametrize("fault", ["lost", 502, httpx.ReadTimeout("slow")])
def test_with_a_server_that_knows_no_request_ids_a_step_that_may_have_arrived_is_not_repeated(fault: Any) -> None:
    async def go() -> None:
        line = Line(Network(ids=False))
        session = await line.client.start(PROBLEM)
        line.network.faults = [fault]
        with pytest.raises(EnvError, match="tried once"):
            await line.client.step(session, "8")

    asyncio.run(go())


@pytest.mark.parametrize("fault", [503, 429, httpx.ConnectError("refused")])
def test_a_step_that_cannot_have_arrived_is_repeated_with_any_server(fault: Any) -> None:
    async def go() -> None:
        line = Line(Network(ids=False))
        session = await line.client.start(PROBLEM)
        line.network.faults = [fault]
        assert (await line.client.step(session, "8")).observation == "Wrong. Tries left: 8."

    asyncio.run(go())


def test_an_environment_that_stays_down_is_an_env_error_after_the_patience_and_not_later() -> None:
    line = Line(Network(*[503] * 1000), patience_s=20)
    with pytest.raises(EnvError, match=r"http://env: POST /v1/session/start failed \(HTTP 503 down\), tried \d+ times"):
        asyncio.run(line.client.start(PROBLEM))
    assert 10 < line.now <= 20
    assert max(line.waits) <= 5


def test_a_refusal_is_not_retried() -> None:
    line = Line(Network(404))
    with pytest.raises(EnvError, match="refused with HTTP 404 down"):
        asyncio.run(line.client.start(PROBLEM))
    assert line.network.calls == ["start"]


def test_a_call_that_hangs_ends_at_its_time_limit() -> None:
    class Hanging(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

    client = EnvClient("http://env", call_s=0.05, patience_s=0.01, http=httpx.AsyncClient(transport=Hanging()))
    with pytest.raises(EnvError, match=r"no answer in 0.05 s"):
        asyncio.run(client.start(PROBLEM))


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"session_id": 5}', b'{"session_id": "x", "reward": "?"}'])
def test_an_answer_that_breaks_the_protocol_is_an_env_error(content: bytes) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=content))
    client = EnvClient("http://env", http=httpx.AsyncClient(transport=transport))
    with pytest.raises(EnvError):
        asyncio.run(client.start(PROBLEM))


def test_closing_never_raises_and_tries_once() -> None:
    async def go() -> None:
        line = Line(Network())
        session = await line.client.start(PROBLEM)
        line.network.faults = [httpx.ConnectError("refused")]
        assert not await line.client.close(session)
        assert await line.client.close(session)
        assert line.network.calls == ["start", "close", "close"]

    asyncio.run(go())
