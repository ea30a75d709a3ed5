"""A real S3 server on loopback (moto), one for the whole test process, and what it can be told to do wrong."""

import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any

import moto.s3.models
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Answer = Callable[..., Any]


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: object) -> None:
        """Nothing."""


class Server:
    """The application, one write at a time: moto looks at a condition and writes in two steps."""

    def __init__(self, conditions: bool) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._conditions = conditions
        self._lock = threading.Lock()
        self.requests: list[str] = []
        """Method and path of each; a test empties it."""
        self.instead: Callable[[str, str], tuple[str, bytes] | None] | None = None
        self.change: Callable[[str, str, bytes], bytes] | None = None
        moto.s3.models.S3_UPLOAD_PART_MIN_SIZE = 1

    def __call__(self, environ: dict[str, Any], start: Answer) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], f"{environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
        self.requests.append(f"{method} {path}")
        if self.instead and (instead := self.instead(method, path)):
            start(instead[0], [("Content-Length", str(len(instead[1])))])
            return [instead[1]]
        if not self._conditions:
            environ.pop("HTTP_IF_MATCH", None)
            environ.pop("HTTP_IF_NONE_MATCH", None)
        with self._lock:
            body = list(self._app(environ, start))
        whole = b"".join(body)
        return body if self.change is None else cut_off(whole, self.change(method, path, whole))

    def well(self) -> None:
        """Do nothing wrong any more."""
        self.instead = self.change = None
        self.requests.clear()


def cut_off(whole: bytes, sent: bytes) -> Iterable[bytes]:
    """Send what is wanted and break off if that is not all."""
    yield sent
    if len(sent) < len(whole):
        raise ConnectionError("broken off by the test")


def refusal(code: str, status: str) -> tuple[str, bytes]:
    """What S3 says when it refuses."""
    return status, f"<Error><Code>{code}</Code><Message>secret-in-a-message</Message></Error>".encode()


@functools.cache
def application(conditions: bool) -> Server:
    return Server(conditions)


@functools.cache
def s3_server(conditions: bool = True) -> str:
    """URL of the server; without `conditions` it ignores them, as some endpoints do."""
    server = make_server("127.0.0.1", 0, application(conditions), threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True, name="s3").start()
    return f"http://127.0.0.1:{server.server_port}"
