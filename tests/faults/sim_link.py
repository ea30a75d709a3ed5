"""A simulated pod in hand: what the real link does over SSH, with the same waits and the same errors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from plugins.errors import ControlPlaneError, PodLost
from plugins.lium.liveness import Probe
from plugins.lium.pods import PodRow
from plugins.lium.preflight import Check
from tests.faults.machines import SimPod
from tests.faults.virtual_clock import Process
from tests.faults.world import World

CONNECT_S = 120.0
WORKER_S = 180.0
TRY_AGAIN_S = 5.0


class Steering(Protocol):
    """What the link needs of the run that holds it."""

    board: Any

    def nap(self, seconds: float) -> None:
        """Wait in the main line."""
        ...


def open_link(world: World, process: Process, run: Steering, row: PodRow) -> "SimLink":
    """Connect to a pod. Raises PodLost when SSH does not answer for as long as the real one waits."""
    link = SimLink(world, process, run, row)
    began = process.monotonic()
    while True:
        try:
            link.knock()
            return link
        except ControlPlaneError as error:
            if process.monotonic() - began > max(CONNECT_S, world.plan.unreachable_after_s):
                raise PodLost(f"SSH does not answer: {error}") from error
            run.nap(TRY_AGAIN_S)


class SimLink:
    """The pod in hand of one process."""

    def __init__(self, world: World, process: Process, run: Steering, row: PodRow) -> None:
        self.row = row
        self._world, self._process, self._run = world, process, run

    @property
    def name(self) -> str:
        """The pod's name."""
        return self.row.name

    def knock(self) -> SimPod:
        """One exchange over SSH. Raises ControlPlaneError when the pod does not answer."""
        process, world = self._process, self._world
        call = process.enter()
        process.sleep(world.rng.uniform(0.05, 0.5))
        pod = world.market.pods[self.row.id]
        down = world.ssh_weather.meets(()) is not None
        if down or not pod.reachable:
            process.sleep(world.rng.choice((0.1, 10.0, 30.0)))
        process.leave(call)
        if down or not pod.reachable:
            world.note(f"ssh {self.row.name}", "no answer")
            raise ControlPlaneError(f"pod {self.row.name}: SSH does not answer")
        return pod

    def preflight(self) -> list[Check]:
        """Look at the pod; a lying host shows another GPU."""
        pod = self.knock()
        self._process.sleep(self._world.rng.uniform(5, 30))
        found = "NVIDIA A10" if pod.host.plan.lies else pod.host.plan.gpu
        return [
            Check("GPU type", found, pod.host.plan.gpu, not pod.host.plan.lies),
            Check("GPU count", str(pod.gpus), str(pod.gpus), True),
        ]

    def ensure_supervisor(self) -> None:
        """Start the worker unless it lives."""
        pod = self.knock()
        plan = pod.host.plan
        if pod.worker_at is None and plan.worker_s is not None:
            pod.worker_at = self._world.clock.now() + plan.worker_s
            self._world.note(f"worker of {self.row.name}", "started")

    def ensure_worker(self) -> None:
        """See that the worker is online. Raises PodLost when it never comes."""
        self._run.board.open_queue(self.row.name)
        self.ensure_supervisor()
        began = self._process.monotonic()
        while not self._run.board.worker_online(self.row.name):
            if self._process.monotonic() - began > WORKER_S:
                self.knock()
                raise PodLost(f"the worker of pod {self.row.name} did not come online in {WORKER_S:.0f} s")
            self._run.nap(2.0)

    def stop_services(self) -> None:
        """End what an earlier run left on the pod."""
        self.knock().worker_at = None

    def probe(self, attempt_id: object) -> Probe:
        """Whether the attempt's process runs."""
        self.knock()
        attempt = self._world.stages.by_id(attempt_id)
        alive = attempt.started_at is not None and attempt.dead_at is None
        return Probe.RUNNING if alive else Probe.GONE

    def shut_out(self) -> None:
        """Take the pod's way to Prefect away."""

    def upload(self, files: Sequence[tuple[Path, str]]) -> list[str]:
        """Put files on the pod."""
        self.knock()
        self._process.sleep(self._world.rng.uniform(0.5, 5))
        return [f"/root/{local.name}" for local, _ in files]

    def close(self) -> None:
        """End the connection."""
