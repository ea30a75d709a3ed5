"""The Prefect API as the gateway sees it: with the control plane's credentials, which no pod ever gets.

Never hangs and never hands a pod what concerns the gateway alone: a dead server is 502, a slow one 503, refused
credentials of ours 502, each of which makes Prefect's client try again.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import websockets
from websockets.asyncio.client import ClientConnection

from plugins.gateway.tokens import basic
from plugins.gateway.verdict import Json, UpstreamTrouble

SILENT = logging.getLogger("trainstack.gateway.upstream")
SILENT.addHandler(logging.NullHandler())
SILENT.propagate = False


@dataclass(frozen=True)
class Reply:
    """What upstream said; of its headers only the content type goes on to a pod."""

    status: int
    content: bytes
    content_type: str

    @property
    def good(self) -> bool:
        """Whether upstream did what was asked."""
        return 200 <= self.status < 300


class Upstream:
    """Calls to the API behind the gateway. Belongs to one event loop; `close` it there."""

    def __init__(self, url: str, auth: str | None, *, timeout_s: float, message_bytes: int) -> None:
        self.url = url.rstrip("/")
        self.path = urlsplit(self.url).path
        self._auth, self._timeout_s, self._message_bytes = auth, timeout_s, message_bytes
        self._csrf: dict[str, str] = {}
        self._http = httpx.AsyncClient(
            headers={"Authorization": basic(auth)} if auth else {},
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            trust_env=False,
        )

    async def close(self) -> None:
        """Let the connections go."""
        await self._http.aclose()

    async def call(self, method: str, path: str, body: Any = None) -> Reply:
        """Ask upstream. Raises UpstreamTrouble."""
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._send(method, path, body)
                if answer.status_code == 403 and b"CSRF" in answer.content:
                    await self._renew_csrf()
                    answer = await self._send(method, path, body)
        except (httpx.TimeoutException, TimeoutError) as error:
            raise UpstreamTrouble(503, "the Prefect API takes too long") from error
        except httpx.HTTPError as error:
            raise UpstreamTrouble(502, f"the Prefect API does not answer ({type(error).__name__})") from error
        if answer.status_code == 401 or 300 <= answer.status_code < 400:
            raise UpstreamTrouble(502, f"the Prefect API answers the gateway with {answer.status_code}")
        return Reply(answer.status_code, answer.content, answer.headers.get("content-type", "application/json"))

    async def look(self, path: str) -> Json | None:
        """One object; None when there is none. Raises UpstreamTrouble."""
        found = await self.call("GET", path)
        if found.status == 404:
            return None
        return dict(self._json(found, path))

    async def rows(self, path: str, body: Json) -> list[Json]:
        """Objects that a filter finds. Raises UpstreamTrouble."""
        return list(self._json(await self.call("POST", path, body), path))

    @asynccontextmanager
    async def socket(self, path: str) -> AsyncIterator[ClientConnection]:
        """An open websocket that upstream let in. Raises UpstreamTrouble, OSError, TimeoutError, WebSocketException."""
        connection = websockets.connect(
            self.url.replace("http", "ws", 1) + path,
            subprotocols=[websockets.Subprotocol("prefect")],
            open_timeout=10,
            max_size=8 * self._message_bytes,
            proxy=None,
            logger=SILENT,
        )
        async with connection as socket:
            await socket.send(json.dumps({"type": "auth", "token": self._auth}))
            said = json.loads(await asyncio.wait_for(socket.recv(), 10))
            if said.get("type") != "auth_success":
                raise UpstreamTrouble(502, "the Prefect API does not let the gateway in")
            yield socket

    async def _send(self, method: str, path: str, body: Any) -> httpx.Response:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self._csrf} if content is not None else self._csrf
        return await self._http.request(method, self.url + path, content=content, headers=headers)

    async def _renew_csrf(self) -> None:
        client = self._csrf.get("Prefect-Csrf-Client") or str(uuid4())
        answer = await self._http.get(f"{self.url}/csrf-token", params={"client": client})
        token = answer.json().get("token", "") if answer.is_success else ""
        self._csrf = {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": token}

    @staticmethod
    def _json(reply: Reply, path: str) -> Any:
        if not reply.good:
            raise UpstreamTrouble(502, f"the Prefect API answers {path} with {reply.status}")
        try:
            return json.loads(reply.content)
        except ValueError as error:
            raise UpstreamTrouble(502, f"the Prefect API answers {path} with something that is not JSON") from error
