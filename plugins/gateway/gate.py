"""Who stands at the gateway: believes or refuses a token, keeps each pod's allowance, counts what was refused.

Shared by the HTTP half (`proxy.py`) and the websocket half (`sockets.py`).
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable

from plugins.gateway.limits import Allowance, Complaints, Limits
from plugins.gateway.standing import Standing
from plugins.gateway.tokens import Pass, bearer_of, from_basic
from plugins.gateway.verdict import Refusal

UNKNOWN = "(no valid token)"


class Gate:
    """Belongs to one event loop, except `revoke`, `last_seen` and the counts, which any thread may use."""

    def __init__(
        self, key: bytes, limits: Limits, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits, self.clock = limits, clock
        self.complaints = Complaints(log, clock)
        self.log = log
        self._key = key
        self._allowances: dict[str, Allowance] = {}
        self._seen: dict[str, float] = {}
        self.open_sockets: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)
        self.handshakes = 0

    def identify(self, authorization: str | None) -> Pass:
        """Whose call it is. Raises Refusal (401); says nothing of what was shown."""
        return self.believe(from_basic(authorization or ""))

    def believe(self, auth: object) -> Pass:
        """Whose auth string it is. Raises Refusal (401)."""
        found = bearer_of(self._key, auth) if isinstance(auth, str) else None
        if found is None:
            raise Refusal(401, "no token of a pod, or not of this one")
        return found

    async def admit(self, found: Pass, standing: Standing) -> str:
        """The name of a pod that is served. Raises Refusal (401), UpstreamTrouble."""
        await standing.queue(found.pod)
        self._seen[found.pod] = self.clock()
        return found.pod

    def allowance(self, pod: str) -> Allowance:
        """What the pod has left."""
        if pod not in self._allowances:
            self._allowances[pod] = Allowance(self.limits, self.clock)
        return self._allowances[pod]

    def last_seen(self, pod: str) -> float | None:
        """When the pod was last let in, on this gate's clock."""
        return self._seen.get(pod)

    def under_way(self, pod: str) -> int:
        """Calls of the pod that have not been answered yet."""
        allowance = self._allowances.get(pod)
        return allowance.under_way if allowance else 0

    def close_sockets(self, pod: str) -> None:
        """End the websockets of a pod. In the loop's thread."""
        for task in tuple(self.open_sockets[pod]):
            task.cancel()
