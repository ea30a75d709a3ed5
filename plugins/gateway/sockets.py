"""The websocket half of the gateway: events out of a pod, and the news that one of its runs is to be cancelled.

A pod's socket outlives an outage of Prefect's server: the gateway connects again by itself, because Prefect's own
observer of cancellations gives up after some 30 seconds and never comes back. Every other socket is refused; the worker
then sends its heartbeats and reads its pool over HTTP.
"""

import asyncio
import json
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from itertools import chain, repeat
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import WebSocketException

from plugins.gateway.events import as_event, may_see, missed_runs, own_event, own_filter
from plugins.gateway.gate import UNKNOWN, Gate
from plugins.gateway.routes import plain_path
from plugins.gateway.standing import Standing
from plugins.gateway.verdict import Json, Refusal, UpstreamTrouble, parsed

POLICY, BUSY = 1008, 1013
LAST_WORDS_S = 5.0
SETTLED_S = 2.0  # after that a new subscription is surely in place
UPSTREAM_DOWN = (OSError, TimeoutError, WebSocketException, UpstreamTrouble, ValueError)

Part = Coroutine[Any, Any, None]


class Sockets:
    """Answers the websockets of pods."""

    def __init__(self, gate: Gate, standing: Standing) -> None:
        self._gate, self._standing = gate, standing

    async def __call__(self, socket: WebSocket) -> None:
        """One websocket, from its handshake to its end."""
        pod = UNKNOWN
        try:
            path = plain_path(bytes(socket.scope.get("raw_path") or b"").split(b"?")[0], self._standing.upstream.path)
            if path == f"/work_pools/{self._standing.pool}/workers/connect":
                return await _close(socket, POLICY, "not here")  # every worker tries once; no reason to complain
            if path not in ("/events/in", "/events/out") or socket.scope["query_string"]:
                with suppress(Refusal):
                    pod = self._gate.identify(socket.headers.get("authorization")).pod
                raise Refusal(403, "not a websocket that a pod may open")
            if "prefect" not in socket.scope.get("subprotocols", []):
                raise Refusal(403, "the subprotocol 'prefect' is missing")
            pod = await self._let_in(socket)
            await self._serve(socket, pod, path)
        except Refusal as refusal:
            self._gate.complaints.note(pod, "WEBSOCKET", socket.url.path, refusal.reason)
            await _close(socket, BUSY if refusal.status == 429 else POLICY, refusal.reason)
        except UpstreamTrouble as trouble:
            await _close(socket, BUSY, trouble.reason)
        except WebSocketDisconnect:
            pass

    async def _let_in(self, socket: WebSocket) -> str:
        """The handshake of Prefect's subprotocol: the first message carries the auth string."""
        if self._gate.handshakes >= self._gate.limits.handshakes:
            raise Refusal(429, "too many handshakes at once")
        self._gate.handshakes += 1
        try:
            await socket.accept(subprotocol="prefect")
            async with asyncio.timeout(self._gate.limits.handshake_s):
                said = parsed(await _text(socket))
                passed = self._gate.believe(said.get("token") if isinstance(said, dict) else None)
                pod = await self._gate.admit(passed, self._standing)
        except TimeoutError as error:
            raise Refusal(408, "no token came") from error
        finally:
            self._gate.handshakes -= 1
        return pod

    async def _serve(self, socket: WebSocket, pod: str, path: str) -> None:
        allowance = self._gate.allowance(pod)
        if allowance.sockets >= self._gate.limits.sockets:
            raise Refusal(429, "too many websockets")
        allowance.sockets += 1
        tasks: set[asyncio.Task[None]] = set()
        try:
            await socket.send_json({"type": "auth_success"})
            parts = await self._out(socket, pod) if path == "/events/out" else self._in(socket, pod)
            tasks = {asyncio.create_task(part) for part in (*parts, self._until_released(pod))}
            self._gate.open_sockets[pod] |= tasks
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if any(task.cancelled() for task in done):
                raise Refusal(401, "the token was revoked")
            for task in done:
                task.result()
        finally:
            allowance.sockets -= 1
            self._gate.open_sockets[pod] -= tasks
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_released(self, pod: str) -> None:
        """Raises Refusal once the pod is served no more; a server that is down says nothing about that."""
        for pause_s in repeat(self._gate.limits.look_s):
            await asyncio.sleep(pause_s)
            with suppress(UpstreamTrouble):
                await self._standing.queue(pod)

    def _in(self, socket: WebSocket, pod: str) -> tuple[Part, ...]:
        events: asyncio.Queue[Json] = asyncio.Queue(maxsize=1)  # more waits in the pod's socket
        return self._read_events(socket, pod, events), self._send_events(events)

    async def _read_events(self, socket: WebSocket, pod: str, events: "asyncio.Queue[Json]") -> None:
        """Take the pod's own events, at most so many a second. Ends with the pod's socket."""
        try:
            while True:
                text = await _text(socket)
                await asyncio.sleep(self._gate.allowance(pod).messages.reserve())
                try:
                    await events.put(await self._own(parsed(text), pod))
                except Refusal as refusal:
                    self._gate.complaints.note(pod, "EVENT", "/events/in", refusal.reason)
        except WebSocketDisconnect:
            with suppress(TimeoutError):  # a stage says its last words and goes
                await asyncio.wait_for(events.join(), LAST_WORDS_S)

    async def _own(self, event: Any, pod: str) -> Json:
        for pause_s in _pauses():
            with suppress(UpstreamTrouble):
                return await own_event(event, pod, self._standing)
            await asyncio.sleep(pause_s)
        raise AssertionError("pauses do not end")

    async def _send_events(self, events: "asyncio.Queue[Json]") -> None:
        unsent = None
        for pause_s in _pauses():
            with suppress(*UPSTREAM_DOWN):
                async with self._standing.upstream.socket("/events/in") as upstream:
                    while True:
                        unsent = unsent or await events.get()
                        await upstream.send(json.dumps(unsent))
                        unsent = None
                        events.task_done()
            await asyncio.sleep(pause_s)

    async def _out(self, socket: WebSocket, pod: str) -> tuple[Part, ...]:
        try:
            async with asyncio.timeout(self._gate.limits.handshake_s):
                wanted = own_filter(parsed(await _text(socket)), await self._standing.queue(pod))
        except TimeoutError as error:
            raise Refusal(408, "no filter came") from error
        return self._watch(socket, pod, wanted), _until_gone(socket)

    async def _watch(self, socket: WebSocket, pod: str, wanted: Json) -> None:
        """Pass on what happens to the pod's runs, and after each connection what happened before it."""
        for pause_s in _pauses():
            with suppress(*UPSTREAM_DOWN):
                async with self._standing.upstream.socket("/events/out") as upstream:
                    await upstream.send(json.dumps(wanted))
                    catching_up = asyncio.create_task(self._catch_up(socket, pod, wanted))
                    try:
                        async for text in upstream:
                            if await may_see(json.loads(text), pod, self._standing):
                                await socket.send_text(text if isinstance(text, str) else text.decode())
                    finally:
                        catching_up.cancel()
            await asyncio.sleep(pause_s)

    async def _catch_up(self, socket: WebSocket, pod: str, wanted: Json) -> None:
        """Say again what the runs' states say: Prefect stores events seconds late, so that its replay has a gap."""
        for pause_s in (0.0, SETTLED_S):
            await asyncio.sleep(pause_s)
            with suppress(UpstreamTrouble, WebSocketDisconnect):
                for run in await self._standing.upstream.rows("/flow_runs/filter", missed_runs(pod, self._standing)):
                    news = as_event(run)
                    if news["event"]["event"] in wanted["filter"]["event"]["name"]:
                        await socket.send_json(news)


async def _text(socket: WebSocket) -> str:
    """The next message. Raises WebSocketDisconnect, Refusal for one that is not text."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    text = message.get("text")
    if not isinstance(text, str):
        raise Refusal(400, "a message that is not text")
    return text


async def _until_gone(socket: WebSocket) -> None:
    with suppress(WebSocketDisconnect):
        while True:
            await _text(socket)


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    with suppress(RuntimeError, WebSocketDisconnect, OSError):  # it may be gone already
        await socket.close(code, reason[:100])


def _pauses() -> Iterator[float]:
    """Seconds between tries to reach a server that is down."""
    return chain((0.2, 0.5, 1.0), repeat(2.0))
