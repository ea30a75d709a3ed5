"""Connections to one kind of server for thousands of requests at once.

At every request httpx's pool looks at all its connections once for each of them: with 128 samples in flight that was
38 ms of CPU per sample. Here many small pools stand side by side, and a request takes the first one that is not full.
"""

import asyncio
import ipaddress
from typing import Any
from urllib.parse import urlsplit

import httpx

LANE = 8  # requests in flight in one small pool
_loops: dict[asyncio.AbstractEventLoop, dict[tuple[bool, bool], "Connections"]] = {}


class Connections:
    """Small pools, opened as they are needed. Belongs to one event loop."""

    def __init__(self, *, direct: bool, tls: bool) -> None:
        self._direct = direct
        self._verify = httpx.create_ssl_context(trust_env=not direct) if tls else False  # dear, so made once
        self._lanes: list[httpx.AsyncClient] = []
        self._busy: list[int] = []

    async def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """As httpx.AsyncClient.request."""
        lane = next((index for index, busy in enumerate(self._busy) if busy < LANE), None)
        if lane is None:
            lane = len(self._lanes)
            self._lanes.append(httpx.AsyncClient(verify=self._verify, trust_env=not self._direct))
            self._busy.append(0)
        self._busy[lane] += 1
        try:
            return await self._lanes[lane].request(method, url, **options)
        finally:
            self._busy[lane] -= 1


def connections_for(url: str) -> Connections:
    """The running event loop's connections for such an address. Those of the own network never go through a proxy."""
    for loop in [loop for loop in _loops if loop.is_closed()]:
        del _loops[loop]
    kind = _is_near(url), urlsplit(url).scheme == "https"
    kinds = _loops.setdefault(asyncio.get_running_loop(), {})
    if kind not in kinds:
        kinds[kind] = Connections(direct=kind[0], tls=kind[1])
    return kinds[kind]


def _is_near(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host
