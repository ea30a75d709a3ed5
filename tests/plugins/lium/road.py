"""The road between an account and the emulator: a proxy on loopback on which a test puts obstacles.

The emulator's own faults are the server's; here a request or an answer is lost on the way, or another answer comes.
"""

import fnmatch
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from plugins.lium.client import LiumSettings

RENT = "POST /api/executors/*/rent"
LISTING = "GET /api/pods"
ONE_POD = "GET /api/pods/*"
FOR_EVER = 1_000_000


@dataclass(frozen=True)
class Answer:
    """What comes back: `body` as JSON, a text as it is; nothing at all when `status` is None.

    forward: the request reaches the emulator, and its answer is lost.
    """

    status: int | None = None
    body: Any = None
    forward: bool = False


LOST_REQUEST = Answer()
LOST_ANSWER = Answer(forward=True)
NOT_HERE = Answer(503, {})
EMPTY = Answer(200, [])


def refusal(status: int, code: str, message: str, **data: Any) -> Answer:
    """Lium's error envelope."""
    return Answer(status, {"error": {"code": code, "message": message, "data": data}, "message": message})


@dataclass(frozen=True)
class Crossing:
    """One request as it came by."""

    call: str
    key: str | None
    body: Any


@dataclass
class Obstacle:
    """An answer for the next `times` calls of a shape."""

    shape: str
    answer: Answer
    times: int


@dataclass
class Road:
    """The proxy; `crossings` are the requests that came by, `url` stands for the emulator's."""

    target: str
    crossings: list[Crossing] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/api"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def put(self, shape: str, answer: Answer, times: int = FOR_EVER) -> None:
        """Answer calls like "GET /api/pods" (fnmatch) so; of several, the one put first that is not used up."""
        self.obstacles.append(Obstacle(shape, answer, times))

    def clear(self) -> None:
        self.obstacles.clear()

    def settings(self, settings: LiumSettings) -> LiumSettings:
        """The same account by this road."""
        return replace(settings, base_url=self.url)

    def seen(self, shape: str) -> list[Crossing]:
        return [crossing for crossing in self.crossings if fnmatch.fnmatchcase(crossing.call, shape)]

    def take(self, call: str) -> Answer | None:
        for obstacle in self.obstacles:
            if obstacle.times > 0 and fnmatch.fnmatchcase(call, obstacle.shape):
                obstacle.times -= 1
                return obstacle.answer
        return None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(road: Road) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def cross(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            call = f"{self.command} {self.path.partition('?')[0]}"
            road.crossings.append(Crossing(call, self.headers.get("Idempotency-Key"), json.loads(body or b"null")))
            planned = road.take(call)
            if planned is None or planned.forward:
                arrived = self.forward(body)
            if planned is None:
                self.answer(arrived.status_code, arrived.content, dict(arrived.headers))
            elif planned.status is not None:
                text = planned.body if isinstance(planned.body, str) else json.dumps(planned.body)
                self.answer(planned.status, text.encode(), {})

        def forward(self, body: bytes) -> httpx.Response:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            url = road.target.removesuffix("/api") + self.path
            return httpx.request(self.command, url, content=body, headers=headers, timeout=60)

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name in ("idempotent-replayed", "retry-after"):
                if name in headers:
                    self.send_header(name, headers[name])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET: Callable = cross
        do_POST: Callable = cross
        do_PUT: Callable = cross
        do_DELETE: Callable = cross

        def log_message(self, *_: object) -> None:
            pass

    return Handler
