import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from plugins.http_env.connections import LANE, Connections, connections_for


def test_they_are_shared_in_one_event_loop_and_not_kept_for_a_closed_one() -> None:
    async def two() -> tuple[Connections, Connections, Connections]:
        return tuple(map(connections_for, ("http://127.0.0.1:1/x", "http://localhost:2", "http://example.org")))

    (first, second, far), (third, _, _) = asyncio.run(two()), asyncio.run(two())
    assert first is second
    assert far is not first
    assert first is not third


def test_more_requests_than_one_small_pool_holds_are_in_flight_together(world: Any) -> None:
    async def go() -> None:
        arrived, all_here = [0], asyncio.Event()

        async def wait(request: Request) -> PlainTextResponse:
            arrived[0] += 1
            if arrived[0] == 3 * LANE:
                all_here.set()
            await all_here.wait()
            return PlainTextResponse("together")

        async with asyncio.timeout(30), world.serving(Starlette(routes=[Route("/", wait)])) as url:
            calls = [connections_for(url).request("GET", url, timeout=30) for _ in range(3 * LANE)]
            assert {response.text for response in await asyncio.gather(*calls)} == {"together"}

    asyncio.run(go())
