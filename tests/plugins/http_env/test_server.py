import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from plugins.http_env.protocol import Ask, Problem, Turn
from plugins.http_env.server import build_app
from plugins.http_env.sessions import Sessions
from plugins.http_env.tasks.arithmetic import Arithmetic


class Counting:
    """A task whose steps wait for `gate` and count their transitions."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.steps = 0
        self.closed = 0
        self.fault: Exception | None = None

    async def start(self, problem: Problem) -> "tuple[Counting, Turn]":
        return self, Turn("go")

    async def step(self, action: str) -> Turn:
        await self.gate.wait()
        self.steps += 1
        if self.fault:
            raise self.fault
        return Turn(f"{action} {self.steps}", reward=0.5)

    async def close(self) -> None:
        self.closed += 1


def client(app: Starlette) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://env")


async def post(http: httpx.AsyncClient, verb: str, **body: Any) -> httpx.Response:
    return await http.post(f"/v1/session/{verb}", json=body)


def test_a_session_runs_with_the_fields_of_the_older_stack() -> None:
    async def go() -> None:
        async with client(build_app(Arithmetic(), name="arithmetic")) as http:
            task = {"prompt": "3+4=", "label": "7", "metadata": {}}
            started = (await post(http, "start", task=task)).json()
            session = started.pop("session_id")
            assert started == {"observation": "", "done": False, "reward": None, "info": {"task": "arithmetic"}}
            stepped = (await post(http, "step", session_id=session, action="7")).json()
            assert (stepped["done"], stepped["reward"]) == (True, 1.0)
            late = (await post(http, "step", session_id=session, action="8")).json()
            assert (late["reward"], late["info"]) == (1.0, {"reason": "already_done"})
            assert (await post(http, "close", session_id=session)).json() == {"ok": True}
            assert (await post(http, "close", session_id=session)).json() == {"ok": True}
            assert (await http.get("/health")).json() == {"status": "ok", "task": "arithmetic", "sessions": 0}

    asyncio.run(go())


def test_the_same_request_id_makes_one_transition_and_gets_one_answer_even_at_the_same_time() -> None:
    async def go() -> None:
        task = Counting()
        async with client(build_app(task)) as http:
            session = (await post(http, "start", task={})).json()["session_id"]
            calls = [post(http, "step", session_id=session, action="a", request_id="one") for _ in range(5)]
            together = asyncio.gather(*calls)
            task.gate.set()
            answers = [response.json() for response in await together]
            later = (await post(http, "step", session_id=session, action="a", request_id="one")).json()
            assert all(answer == later for answer in answers)
            assert (task.steps, later["observation"], later["request_id"]) == (1, "a 1", "one")
            assert (await post(http, "step", session_id=session, action="a", request_id="two")).json()[
                "observation"
            ] == "a 2"
            other = await post(http, "step", session_id=session, action="b", request_id="one")
            assert (other.status_code, task.steps) == (409, 2)

    asyncio.run(go())


def test_the_same_start_request_id_opens_one_session() -> None:
    async def go() -> None:
        async with client(build_app(Arithmetic())) as http:
            body = {"task": {"prompt": "1+1="}, "request_id": "r"}
            ids = {(await post(http, "start", **body)).json()["session_id"] for _ in range(3)}
            assert len(ids) == 1
            await post(http, "close", session_id=ids.pop())
            assert (await http.get("/health")).json()["sessions"] == 0

    asyncio.run(go())


def test_a_step_over_its_deadline_is_504_and_the_retry_gets_the_answer() -> None:
    async def go() -> None:
        task = Counting()
        async with client(build_app(task)) as http:
            session = (await post(http, "start", task={})).json()["session_id"]
            step = {"session_id": session, "action": "a", "request_id": "r"}
            late = await post(http, "step", **step, deadline_s=0.01)
            assert (late.status_code, task.steps) == (504, 0)
            assert "same request_id" in late.json()["detail"]
            task.gate.set()
            assert (await post(http, "step", **step)).json()["observation"] == "a 1"

    asyncio.run(go())


def test_a_failing_task_is_500_with_its_message() -> None:
    async def go() -> None:
        task = Counting()
        task.fault = RuntimeError("browser died")
        task.gate.set()
        async with client(build_app(task)) as http:
            session = (await post(http, "start", task={})).json()["session_id"]
            answer = await post(http, "step", session_id=session, action="a")
            assert (answer.status_code, "browser died" in answer.json()["detail"]) == (500, True)

    asyncio.run(go())


def test_an_unknown_session_is_404_with_a_message() -> None:
    async def go() -> None:
        async with client(build_app(Arithmetic())) as http:
            answer = await post(http, "step", session_id="nope", action="7")
            assert answer.status_code == 404
            assert "'nope'" in answer.json()["detail"]

    asyncio.run(go())


@pytest.mark.parametrize(
    ("verb", "content", "words"),
    [
        ("start", b"{", "not JSON"),
        ("start", b"[]", "must be a JSON object"),
        ("start", b'{"task": {"prompt": 3}}', "'prompt'"),
        ("start", b'{"task": {"prompt": "3+4=", "label": "x"}}', "must be a number"),
        ("step", b'{"session_id": "x"}', "'action'"),
        ("step", b'{"action": "x", "session_id": 5}', "'session_id'"),
        ("close", b"{}", "'session_id'"),
    ],
)
def test_bad_requests_are_422_and_say_what_is_wrong(verb: str, content: bytes, words: str) -> None:
    async def go() -> None:
        async with client(build_app(Arithmetic())) as http:
            answer = await http.post(f"/v1/session/{verb}", content=content)
            assert answer.status_code == 422
            assert words in answer.json()["detail"]

    asyncio.run(go())


def test_sessions_are_bounded_and_unused_ones_expire_and_are_closed() -> None:
    async def go() -> None:
        now = [0.0]
        task = Counting()
        sessions = Sessions(task, max_sessions=2, idle_s=10, clock=lambda: now[0])
        async with client(build_app(task, sessions=sessions)) as http:
            first, _ = [(await post(http, "start", task={})).json()["session_id"] for _ in range(2)]
            full = await post(http, "start", task={})
            assert (full.status_code, "all 2 sessions" in full.json()["detail"]) == (503, True)
            now[0] = 8
            task.gate.set()
            await post(http, "step", session_id=first, action="a")
            now[0] = 11
            assert (await post(http, "start", task={})).status_code == 200
            assert (task.closed, len(sessions)) == (1, 2)
            assert (await post(http, "step", session_id=first, action="a")).status_code == 200

    asyncio.run(go())


def test_a_session_with_a_running_step_does_not_expire(world: Any) -> None:
    async def go() -> None:
        now = [0.0]
        task = Counting()
        sessions = Sessions(task, idle_s=10, clock=lambda: now[0])
        session = await sessions.start(Problem(""), Ask())
        step = asyncio.create_task(sessions.step(session.id, "a", Ask()))
        await world.until(session.lock.locked)
        now[0] = 100
        assert await sessions.expire() == 0
        task.gate.set()
        assert (await step).reward == 0.5

    asyncio.run(go())


def start_process(*extra: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "plugins.http_env.server", "--task", "arithmetic", *extra]
    root = Path(__file__).parents[3]
    return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=root, env=os.environ | {"HTTP_PROXY": ""})


def test_the_process_takes_a_free_port_says_where_it_is_and_ends_on_sigterm(tmp_path: Path) -> None:
    ready = tmp_path / "env.json"
    with start_process("--port", "0", "--ready-file", str(ready)) as process:
        try:
            deadline = time.monotonic() + 60
            while not ready.exists() and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.02)
            said = json.loads(ready.read_text())
            assert said["pid"] == process.pid
            assert httpx.get(said["url"] + "/health", trust_env=False).json()["task"] == "arithmetic"
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        finally:
            process.kill()
    assert not ready.exists()


@pytest.mark.parametrize("taken", [True, False])
def test_a_taken_port_or_an_unknown_task_ends_with_one_clear_line_and_status_2(taken: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        process = start_process("--port", port) if taken else start_process("--task", "nope", "--port", "0")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert (f"127.0.0.1:{port} cannot be listened on" if taken else "no task is called 'nope'") in errors
