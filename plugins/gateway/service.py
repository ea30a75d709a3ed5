"""The gateway as a thing that runs: one server in a thread of its own, on one port.

Started by the process that steers pods, at the end of their SSH tunnels, or by `python -m plugins.gateway` behind a
public URL. It needs nothing from its last life: any process with the same key file serves the same pods.
"""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from plugins.errors import ControlPlaneError, UserError
from plugins.gateway.gate import Gate
from plugins.gateway.limits import Limits
from plugins.gateway.names import stage_artifact
from plugins.gateway.proxy import Proxy
from plugins.gateway.routes import table
from plugins.gateway.sockets import Sockets
from plugins.gateway.standing import Standing
from plugins.gateway.tokens import auth_string, mint
from plugins.gateway.upstream import Upstream
from plugins.gateway.verdict import MayWrite

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
START_S = 20.0


class Gateway:
    """A reverse proxy to one Prefect API for the pods of one work pool.

    upstream: the API's URL, path and all; pods use the same path at the gateway. upstream_auth: the control plane's
    PREFECT_API_AUTH_STRING, which no pod gets to see. may_write: whether a run with these tags may write that key.
    """

    def __init__(
        self,
        upstream: str,
        key: bytes,
        *,
        upstream_auth: str | None,
        work_pool: str = "lium",
        host: str = "127.0.0.1",
        port: int = 0,
        log: Callable[[str], None] = print,
        limits: Limits | None = None,
        may_write: MayWrite = stage_artifact,
    ) -> None:
        parts = urlsplit(upstream)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(f"{upstream!r} is not the URL of a Prefect API, like http://127.0.0.1:4200/api.")
        self._upstream, self._path, self._auth = upstream.rstrip("/"), parts.path.rstrip("/"), upstream_auth
        self._key, self._pool, self._may_write = key, work_pool, may_write
        self._limits = limits or Limits()
        self._gate = Gate(key, self._limits, log)
        self._host, self._port = host, port
        self._standing: Standing | None = None
        self._revoked: set[str] = set()
        self._halves: tuple[Proxy, Sockets] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen. Raises ControlPlaneError when the port is taken."""
        listening = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((self._host, self._port))
        except OSError as error:
            listening.close()
            raise ControlPlaneError(f"The gateway cannot listen on {self._host}:{self._port}: {error}") from error
        self._port = int(listening.getsockname()[1])
        self._server = uvicorn.Server(self._config())
        self._thread = threading.Thread(target=self._run, args=(listening,), name=f"gateway-{self._port}", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.close()
                raise ControlPlaneError(f"The gateway did not start on {self._host}:{self._port}.")
            time.sleep(0.01)

    @property
    def port(self) -> int:
        """Where it listens; known once it has started."""
        return self._port

    @property
    def url(self) -> str:
        """The API's URL on this side of a tunnel."""
        return f"http://{self._host}:{self._port}{self._path}"

    @property
    def refusals(self) -> int:
        """How many calls and events were refused."""
        return self._gate.complaints.count

    def auth_for(self, pod: str, pod_id: str) -> str:
        """What that pod gets as PREFECT_API_AUTH_STRING; a secret."""
        return auth_string(pod, mint(self._key, pod, pod_id))

    def last_seen_s(self, pod: str) -> float | None:
        """Seconds since the pod last made a call that was let in; None when it never did."""
        at = self._gate.last_seen(pod)
        return None if at is None else self._gate.clock() - at

    def revoke(self, pod: str, patience_s: float = 2.0) -> None:
        """Serve this pod no more, from now on; waits up to `patience_s` for calls that are on their way upstream.

        A state that the control plane declares after this cannot be overwritten by the pod.
        """
        self._revoked.add(pod)
        if self._standing is None or self._loop is None:
            return
        self._standing.revoke(pod)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._gate.close_sockets, pod)
        deadline = time.monotonic() + patience_s
        while self._gate.under_way(pod) and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self, patience_s: float = 5.0) -> None:
        """Stop listening and end what is open. May be called again."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(patience_s)

    def _config(self) -> uvicorn.Config:
        routes = [Route("/{path:path}", self._http, methods=METHODS), WebSocketRoute("/{path:path}", self._websocket)]
        return uvicorn.Config(
            Starlette(routes=routes, lifespan=self._life),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="websockets-sansio",
            ws_max_size=self._limits.message_bytes,
            timeout_graceful_shutdown=1,
            timeout_keep_alive=30,
        )

    def _run(self, listening: socket.socket) -> None:
        assert self._server is not None
        with listening:
            asyncio.run(self._server.serve(sockets=[listening]))

    async def _http(self, request: Request) -> Response:
        assert self._halves is not None
        return await self._halves[0](request)

    async def _websocket(self, websocket: WebSocket) -> None:
        assert self._halves is not None
        await self._halves[1](websocket)

    @asynccontextmanager
    async def _life(self, app: Starlette) -> AsyncIterator[None]:
        upstream = Upstream(
            self._upstream,
            self._auth,
            timeout_s=self._limits.upstream_s,
            message_bytes=self._limits.message_bytes,
        )
        self._loop = asyncio.get_running_loop()
        standing = Standing(upstream, self._pool, self._limits.look_s, self._gate.clock)
        for pod in self._revoked:
            standing.revoke(pod)
        self._standing = standing
        self._halves = Proxy(self._gate, standing, table(self._may_write)), Sockets(self._gate, standing)
        try:
            yield
        finally:
            await upstream.close()
