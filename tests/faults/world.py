"""One simulated world for one schedule: time, market, board, pods, troubles, the journal, and who watches it all.

Everything here outlives the flow's processes. What a process gets of it are its own seams: `sim_lium.SimLium`,
`sim_board.SimBoard`, `sim_link.open_link` and the `Process` as its clock.
"""

import re
from collections import deque
from dataclasses import replace
from random import Random
from typing import Any

from tasks.board import WarmPod
from tests.faults.invariants import Ending, Watch
from tests.faults.machines import SimHost
from tests.faults.market import Market
from tests.faults.plan import HostPlan, Schedule
from tests.faults.sim_stage import Stages
from tests.faults.virtual_clock import START, Process, VirtualClock
from tests.faults.weather import Weather

PLAIN_START = "default volume none"  # what `warm_pods.start_of` says of a recipe with neither image nor volume
STRANGERS_HOST = HostPlan(
    99, "NVIDIA H200", 64, 1.0, "secure", "US", 1.0, "ok", False, 1e9, "none", 1.0, 5.0, False, 1e3
)


class World:
    """Everything there is, and the plan by which it goes wrong."""

    def __init__(self, plan: Schedule) -> None:
        self.plan = plan
        self.run_id = f"sim{plan.seed}"
        self.clock = VirtualClock()
        self.rng = Random(f"world {plan.seed}")
        self.journal: list[tuple[float, str, str]] = []
        self.market = Market(self.clock, Random(f"market {plan.seed}"), plan.hosts)
        self.lium_weather = Weather(self.clock, self.rng, plan.lium, plan.calls)
        self.board_weather = Weather(self.clock, self.rng, plan.board)
        self.ssh_weather = Weather(self.clock, self.rng, plan.ssh)
        # From the newest on, so that a beat that falls into one goes back to before the one it follows.
        self.way_down = sorted(self.board_weather.spells() + self.ssh_weather.spells(surely=True), reverse=True)
        self.listings: deque[float] = deque()
        self.templates: list[Any] = []
        self.volumes: list[Any] = []
        self.processes: list[Process] = []
        self.endings: list[Ending | None] = []
        self.buried: dict[Process, float] = {}
        self.stages = Stages(self)
        self.watch = Watch(self)
        self.market.before_end = self.watch.scheduled_end
        self.market.after_rent = self.watch.rented
        self._own = re.compile(rf"ts-{re.escape(self.run_id)}-(?:sft|rl|sftrl)-a\d+")
        home = SimHost(STRANGERS_HOST, "strangers", 1.0)
        for name in plan.strangers:
            self.market.place(name.format(run=self.run_id), home, 1, 1.0, None, stranger=True)
        self._place_warm_pod(home)
        self._plan_disturbances()

    @property
    def process(self) -> Process | None:
        """The newest start of the flow, dead or alive."""
        return self.processes[-1] if self.processes else None

    def own(self, name: str) -> bool:
        """Whether a pod of this name is this run's."""
        return self._own.fullmatch(name) is not None

    def note(self, call: str, outcome: str) -> None:
        """Write a line of the journal."""
        self.journal.append((self.clock._now, call, outcome))

    def start_process(self) -> Process:
        """Start the flow (again); the schedule says how this start ends."""
        number = len(self.processes)
        death = self.plan.deaths[number] if number < len(self.plan.deaths) else None
        process = Process(self.clock)
        if death is not None:
            process = Process(self.clock, death.at_call, target=death.target, after_effect=death.after_effect)
        if death is not None and death.after_s is not None:
            self.clock.after(death.after_s, process.kill)
        self.processes.append(process)
        self.stages.cancelling = False  # another start is another flow run
        self.note(f"process {number + 1}", "starts")
        return process

    def starts_again_after_s(self, process: Process) -> float | None:
        """How long after its death the next start comes; None: it ended by itself, or nobody starts it again."""
        number = self.processes.index(process)
        if not process.killed or number >= len(self.plan.deaths):
            return None
        return self.plan.deaths[number].again_after_s

    def tail(self, lines: int = 40) -> list[str]:
        """The last lines of the journal, readable."""
        return [f"{time - START:10.1f} {call}: {outcome}" for time, call, outcome in self.journal[-lines:]]

    def _place_warm_pod(self, host: SimHost) -> None:
        plan = self.plan.warm
        if plan is None:
            return
        until = START + plan.until_s
        pod = self.market.place("ts-earlier-sft-a1", host, plan.gpus, plan.price * plan.gpus, None, stranger=True)
        self.market.schedule_end(pod, until)
        price, gpu = plan.price * plan.gpus, host.plan.gpu
        self.stages.warm[pod.name] = WarmPod(pod.name, pod.id, gpu, plan.gpus, PLAIN_START, price, until)
        if plan.rival_at_s is not None:
            self.clock.after(plan.rival_at_s, lambda: self._rival_takes(pod.name))

    def _rival_takes(self, name: str) -> None:
        warm = self.stages.warm.get(name)
        if warm is not None and warm.claimed_by is None:
            self.stages.warm[name] = replace(warm, claimed_by="rival")

    def _plan_disturbances(self) -> None:
        plan, at = self.plan, self.clock.at
        if plan.cancel_at_s is not None:
            at(START + plan.cancel_at_s, self._cancel)
        if plan.ctrl_c_at_s is not None:
            at(START + plan.ctrl_c_at_s, self._interrupt)
        for after_s, length_s in plan.naps:
            at(START + after_s, lambda length_s=length_s: self._suspend(length_s))  # type: ignore[misc]

    def _cancel(self) -> None:
        if self.process is not None and self.process.alive:
            self.note("cancel", "asked for")
            self.stages.cancelling = self.stages.was_cancelled = True
            self.stages.cancelled_at = self.clock.now()

    def _interrupt(self) -> None:
        if self.process is not None and self.process.alive:
            self.note("Ctrl-C", "pressed")
            self.process.interrupt()

    def _suspend(self, length_s: float) -> None:
        if self.process is not None and self.process.alive:
            self.note("laptop", f"closed for {length_s:.0f} s")
            self.process.suspend(length_s)
