"""A listing whose answers a test writes, for what watches pods."""

from collections.abc import Sequence

from plugins.errors import ControlPlaneError
from plugins.lium.pods import PodRow
from tests.plugins.lium.still_clock import StillClock

DOWN = ControlPlaneError("Server error: 503")


class Listings:
    """A listing whose answers the test writes; the last one is repeated. It counts seconds on `clock`."""

    def __init__(self, clock: StillClock, *answers: Sequence[PodRow] | Exception) -> None:
        self.clock = clock
        self.answers = list(answers)
        self.asked: list[float] = []
        self.looked_up = 0
        self.found: PodRow | Exception | None = None

    def pods(self, prefix: str = "", *, patient: bool = True) -> Sequence[PodRow]:
        assert not patient
        self.asked.append(self.clock.monotonic())
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def look_up(self, pod_id: str) -> PodRow | None:
        self.looked_up += 1
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def cause(self, pod_id: str) -> str | None:
        return f"cause of {pod_id}"


def pod(name: str = "a", status: str = "RUNNING", **more) -> PodRow:
    return PodRow(id=f"id-{name}", name=name, status=status, **{"ssh_host": "127.0.0.1", **more})
