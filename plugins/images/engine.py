"""Build, push and look up images by a real Docker engine, through docker-py.

Which engine is the environment's word (DOCKER_HOST and the like, as for `docker`), and logins are read by docker-py
from Docker's own config.json; neither is ever shown. What it takes long to do is told in lines: the steps of the
build, and every few seconds how much was fetched or sent.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from plugins.errors import ControlPlaneError, UserError
from plugins.images.context import DOCKERFILE, Context
from plugins.images.words import as_error, boundary

CONNECT_S = 10.0
QUIET_S = 1800.0
"""How long an engine may say nothing while it builds or pushes; installing packages prints nothing for minutes."""
EVERY_S = 10.0
LABEL = "trainstack.context"
POD_ARCH = "amd64"
_KEPT_LINES = 25

Log = Callable[[str], None]


class Engine:
    """A connection to the Docker engine that the environment names. UserError on entry: there is none."""

    def __init__(self, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._api: Any = None

    def __enter__(self) -> Engine:
        import docker

        with boundary("ask the Docker engine", ""):
            docker.from_env(timeout=int(CONNECT_S)).close()  # negotiates the version: an engine that hangs shows here
            self._api = docker.from_env(timeout=int(QUIET_S)).api
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._api.close()

    def digest_in_registry(self, name: str) -> str | None:
        """The digest of `repository:tag` in its registry; None if it is not there or this login may not see it.

        ControlPlaneError: the registry does not answer.
        """
        try:
            with boundary(f"look up {name}", name):
                return str(self._api.inspect_distribution(name)["Descriptor"]["digest"])
        except UserError:
            return None  # Docker Hub says "denied" of a repository that does not exist yet

    def build(self, context: Context, name: str) -> str:
        """Build the context's Dockerfile as `repository:tag`, for x86-64 also on another machine; the id of the image.

        UserError: a step failed (the end of its output is in the message), the base cannot be had, no room.
        ControlPlaneError: the network or the engine failed.
        """
        with boundary(f"build {name}", name):
            stream = self._api.build(
                fileobj=io.BytesIO(context.archive),
                custom_context=True,
                dockerfile=DOCKERFILE,
                tag=name,
                buildargs=dict(context.arguments),
                labels={LABEL: context.digest},
                platform=None if self._api.version().get("Arch") == POD_ARCH else f"linux/{POD_ARCH}",
                rm=True,
                forcerm=True,
                timeout=QUIET_S,
                decode=True,
            )
            self._follow("build", name, stream, context.arguments.get("BASE", name))
            return str(self._api.inspect_image(name)["Id"])

    def push(self, name: str) -> str:
        """Push `repository:tag`; the digest that the registry gave it.

        UserError: the login may not. ControlPlaneError: the network, the registry or the engine failed.
        """
        repository, _, tag = name.rpartition(":")
        with boundary(f"push {name}", name):
            said = self._follow("push", name, self._api.push(repository, tag=tag, stream=True, decode=True), name)
        digest = said.get("Digest") or self.digest_in_registry(name)
        if not digest:
            raise ControlPlaneError(f"push {name}: neither the engine nor the registry names its digest. Try again")
        return str(digest)

    def _follow(self, verb: str, name: str, stream: Iterable[dict[str, Any]], image: str) -> dict[str, Any]:
        """Read the engine's answer to its end, telling what is worth it; the last `aux` of the stream."""
        output: deque[str] = deque(maxlen=_KEPT_LINES)
        transfer = Transfer(self._log, self._clock)
        aux: dict[str, Any] = {}
        for item in stream:
            if "error" in item or "errorDetail" in item:
                words = str((item.get("errorDetail") or {}).get("message") or item.get("error"))
                raise as_error(f"{verb} {name}", words, image, "\n".join(output))
            if isinstance(item.get("aux"), dict):
                aux = item["aux"]
            if text := str(item.get("stream", "")).strip():
                output.extend(text.splitlines())
                if text.startswith("Step "):
                    self._log(text)
            elif "id" in item:
                transfer.seen(item)
        return aux


class Transfer:
    """The layers that are being fetched or sent, told as one line every few seconds."""

    def __init__(self, log: Log, clock: Callable[[], float]) -> None:
        self._log, self._clock = log, clock
        self._told = clock()
        self._layers: dict[str, tuple[int, int]] = {}

    def seen(self, item: dict[str, Any]) -> None:
        """Take in one progress item of the engine: the layer `id`, its `status`, bytes done and bytes in all."""
        status, detail = str(item.get("status", "")), item.get("progressDetail") or {}
        if status not in ("Downloading", "Pushing") or not detail.get("current"):
            return
        current = int(detail["current"])
        self._layers[str(item["id"])] = current, max(int(detail.get("total") or 0), current)
        if self._clock() - self._told >= EVERY_S:
            self._told = self._clock()
            done, in_all = (sum(sizes) / 1e9 for sizes in zip(*self._layers.values(), strict=True))
            verb = {"Downloading": "fetched", "Pushing": "sent"}[status]
            self._log(f"{verb} {done:.1f} GB of {in_all:.1f} GB in {len(self._layers)} layers so far")
