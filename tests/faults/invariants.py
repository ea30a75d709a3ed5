"""What must hold in every schedule, watched while it happens and once more at the end.

The watch knows the truth of the world, which the flow's processes do not: whether an attempt was healthy, what a pod
really cost, who steered. So an excuse (a cancel, the budget, a service that was down) must be true, not just believed.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.faults.machines import HOUR, SimHost, SimPod
from tests.faults.virtual_clock import Process

if TYPE_CHECKING:
    from tests.faults.sim_stage import SimAttempt
    from tests.faults.world import World

PRICE_TOLERANCE = 1e-6
MONEY_SHORT = 0.78  # of the budget: from here on a run may end itself, in time for a last sync
LAST_SYNC_S = 320.0
QUIET_S = 300.0  # so long without trouble, and a steering process must have got its calls through
GIVE_BACK_S = 60.0
CANCEL_S = 120.0
ROUNDING_S = 1.0
LAST_PROBE_S = 40.0  # a look over SSH that began while it was down may end so much later

ORPHAN, DOUBLE, HEALTHY, CEILING = "orphans", "double_rents", "healthy_killed", "over_ceiling"
BUDGET, STATE, STRANGER, DUTY = "over_budget", "no_word", "strangers_touched", "dead_duties"
COUNTED = (ORPHAN, DOUBLE, HEALTHY, CEILING)

Spell = tuple[float, float]


@dataclass(frozen=True)
class Violation:
    """One breach. at: virtual epoch seconds."""

    invariant: str
    at: float
    text: str


@dataclass(frozen=True)
class Ending:
    """How a start of the flow that was not killed ended: the final state's type and message."""

    state: str
    message: str


class Watch:
    """The invariants of one world. Its methods are called by the world at the moment of the effect."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._listed: dict[str, float] = {}
        self.violations: list[Violation] = []
        self.rents = 0

    # -- while it happens -----------------------------------------------------------------------------------------

    def host_listed(self, host: SimHost) -> None:
        """The process was told this price."""
        self._listed[host.id] = host.price

    def rent_sent(self, executor_id: str) -> None:
        """A rent is about to be carried out for the first time."""
        price = self._listed.get(executor_id)
        if price is None or price > self._world.plan.ceiling + PRICE_TOLERANCE:
            self._breach(CEILING, f"a rent was sent for a host listed at {price}")

    def rented(self, pod: SimPod) -> None:
        """A pod exists from now on."""
        if pod.stranger:
            return
        self.rents += 1
        if not self._world.own(pod.name):
            self._breach(STRANGER, f"{pod.name} was rented, a name that is not this run's")
        self._check_alone(pod)

    def claimed(self, pod: SimPod) -> None:
        """A warm pod of an earlier run is this run's from now on."""
        pod.stranger, pod.charged_from = False, self._world.clock.now()
        self._check_alone(pod)

    def handed_on(self, pod: SimPod, until: float) -> None:
        """A pod is left to the next run until a time."""
        pod.handed_on_at = self._world.clock.now()
        if pod.living and (pod.removal_at is None or pod.removal_at > until + ROUNDING_S):
            self._breach(ORPHAN, f"{pod.name} is held warm and outlives its time")

    def touched(self, pod: SimPod, how: str) -> None:
        """Something was done to a pod by id."""
        if pod.stranger:
            self._breach(STRANGER, f"{pod.name} was {how}")

    def submitted(self, attempt: "SimAttempt") -> None:
        """An attempt was given to a pod."""
        pod = attempt.pod
        if pod.price / pod.gpus > self._world.plan.ceiling + PRICE_TOLERANCE:
            self._breach(CEILING, f"{pod.name} costs {pod.price / pod.gpus:.2f} per GPU-hour and was given an attempt")
        for other in self._world.stages.attempts:
            if other is not attempt and other.plan.name == attempt.plan.name and other.number == attempt.number:
                self._breach(DOUBLE, f"attempt {attempt.number} of {attempt.plan.name} is on two pods")

    def ended_by_us(self, pod: SimPod, how: str) -> None:
        """The flow ends a pod, or cuts it off."""
        attempt = self._world.stages.on_pod(pod)
        if attempt is not None and attempt.healthy and not self._excused():
            self._breach(HEALTHY, f"{pod.name} was {how} while attempt {attempt.number} of {attempt.plan.name} trained")

    def attempt_ended_by_us(self, attempt: "SimAttempt", how: str) -> None:
        """The flow ends an attempt."""
        if attempt.healthy and not self._excused():
            self._breach(HEALTHY, f"attempt {attempt.number} of {attempt.plan.name} was {how} while it trained")

    def scheduled_end(self, pod: SimPod, how: str) -> None:
        """The server ends a pod at its scheduled time: right when nobody steered, wrong when somebody did."""
        attempt = self._world.stages.on_pod(pod)
        if pod.stranger or attempt is None or not attempt.healthy:
            return
        now = self._world.clock.now()
        if self._money_short() and self._was_quiet(now - LAST_SYNC_S, now, LAST_SYNC_S - ROUNDING_S):
            self._breach(HEALTHY, f"{pod.name} reached the budget's hard end, not the graceful one before it")
        if self._excused():
            return
        began = max(now - self._world.plan.dead_man_minutes * 60, attempt.started_at or now)
        if self._was_quiet(began, now, QUIET_S):
            self._breach(HEALTHY, f"{pod.name} reached its scheduled end while it trained and was steered")

    # -- at the end -----------------------------------------------------------------------------------------------

    def flow_over(self, process: Process, ending: Ending | None) -> None:
        """A start of the flow is over; None: it was killed."""
        for text in process.dead_duties:
            self._breach(DUTY, text)
        if ending is None:
            return
        if ending.state not in ("COMPLETED", "FAILED", "CANCELLED") or len(ending.message.split()) < 3:
            self._breach(STATE, f"the run ended {ending.state}: {ending.message!r}")
        now = self._world.clock.now()
        for pod in self._own():
            # Whose a pod is that was taken over warm, only the board knows; Lium is enough for all others.
            targets = None if pod.charged_from else ("list", "read", "change", "delete")
            if pod.ours and self._was_quiet(now - GIVE_BACK_S, now, GIVE_BACK_S, targets):
                self._breach(ORPHAN, f"{pod.name} outlived a flow that ended by itself in quiet times")
        asked = self._world.stages.cancelled_at
        if asked is None or not self._world.stages.cancelling or ending.state == "CANCELLED":
            return
        if self._was_quiet(asked, now, CANCEL_S):
            self._breach(STATE, f"the run was cancelled {now - asked:.0f} s ago and ended {ending.state}")

    def all_over(self) -> None:
        """The last start is over and the dead-man time has passed."""
        now = self._world.clock.now()
        for pod in self._own():
            if pod.ours:
                self._breach(ORPHAN, f"{pod.name} still lives ({pod.status}) and nobody steers")
            self._check_overpriced(pod)
        cost, plan = sum(pod.cost_of_run(now) for pod in self._own()), self._world.plan
        grace = max((pod.price * self._unsteered_h(pod) for pod in self._own()), default=0.0)
        if cost > plan.budget + grace + 0.01:
            self._breach(
                BUDGET, f"the run cost ${cost:.2f}; its budget is ${plan.budget:.2f}, a dead-man period ${grace:.2f}"
            )

    def never_ended(self) -> None:
        """The flow was still running after more time than it can need."""
        self._breach(STATE, "the run came to no end")

    def _unsteered_h(self, pod: SimPod) -> float:
        """How long this pod can have lived without anybody, in hours.

        At boot Lium sets the end that came with the rent, which is an hour away or more, over any end set before; until
        somebody pushes it again, that end is its dead-man switch.
        """
        dead_man_h = self._world.plan.dead_man_minutes / 60
        if pod.termination_hours is None or pod.running_at is None:
            return dead_man_h
        alone_until = pod.pushed_at or pod.ended_at or self._world.clock.now()
        return max(dead_man_h, min(pod.termination_hours, (alone_until - pod.running_at) / HOUR))

    def _check_alone(self, pod: SimPod) -> None:
        others = [other.name for other in self._own() if other.ours and other is not pod]
        if others:
            self._breach(DOUBLE, f"{pod.name} was taken while {', '.join(others)} lived")

    def _check_overpriced(self, pod: SimPod) -> None:
        if pod.price / pod.gpus <= self._world.plan.ceiling + PRICE_TOLERANCE or pod.running_at is None:
            return
        end = pod.ended_at or self._world.clock.now()
        if self._was_quiet(pod.running_at, end, QUIET_S):
            self._breach(CEILING, f"{pod.name} costs too much and was kept for {end - pod.running_at:.0f} s")

    def living(self) -> list[str]:
        """Names of the pods that live and that this run answers for."""
        return [pod.name for pod in self._own() if pod.ours]

    # -- what is true ---------------------------------------------------------------------------------------------

    def _own(self) -> list[SimPod]:
        return [pod for pod in self._world.market.pods.values() if not pod.stranger]

    def _excused(self) -> bool:
        """Whether healthy training may be ended now: cancelled, money short, out of reach, or nobody there to ask."""
        world = self._world
        if world.stages.was_cancelled or any(process.interrupted for process in world.processes):
            return True
        process = world.process
        return process is None or not process.alive or self._money_short() or self._out_of_reach()

    def _out_of_reach(self) -> bool:
        """Whether SSH was down for so long that DESIGN 5.1 calls a pod lost whose heartbeat is old."""
        now, patience_s = self._world.clock.now(), self._world.plan.unreachable_after_s
        spells = self._world.ssh_weather.spells(surely=True)
        return any(start + patience_s <= now and end >= now - LAST_PROBE_S for start, end in spells)

    def _money_short(self) -> bool:
        """Counted from the rent, as a careful run counts: never less than the bill."""
        now, plan = self._world.clock.now(), self._world.plan
        spent = sum(pod.spent_since_rent(now) for pod in self._own())
        rate = sum(pod.price for pod in self._own() if pod.ours)
        return spent + rate * LAST_SYNC_S / HOUR >= plan.budget or spent >= MONEY_SHORT * plan.budget

    def _was_quiet(self, start: float, end: float, length_s: float, targets: Collection[str] | None = None) -> bool:
        """Whether nothing could keep a steering process from its work for `length_s` seconds on end in that time."""
        return _longest_gap(self._troubled(start, end, targets), start, end) >= length_s

    def _troubled(self, start: float, end: float, targets: Collection[str] | None = None) -> list[Spell]:
        """When steering could fail without fault: a service in trouble, no process, or one that slept.

        targets: calls to Lium that count; None: all that steering needs, and board and SSH too.
        """
        world = self._world
        spells = world.lium_weather.spells(targets or ("list", "read", "change", "extend", "delete"))
        if targets is None:
            spells += world.board_weather.spells() + world.ssh_weather.spells()
        awake_from = start
        for process in world.processes:
            spells += [(awake_from, process.started_at), *process.naps]
            awake_from = end if process.ended_at is None else process.ended_at
        spells.append((awake_from, end))
        return sorted(spell for spell in spells if spell[1] > start and spell[0] < end and spell[1] > spell[0])

    def _breach(self, invariant: str, text: str) -> None:
        self._world.note(f"VIOLATION {invariant}", text)
        self.violations.append(Violation(invariant, self._world.clock.now(), text))


def _longest_gap(spells: Sequence[Spell], start: float, end: float) -> float:
    """The longest time between `start` and `end` that no spell covers, in seconds."""
    longest, covered = 0.0, start
    for begins, ends in spells:
        longest = max(longest, begins - covered)
        covered = max(covered, ends)
    return max(longest, end - covered)
