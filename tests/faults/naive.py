"""A pipeline small enough to read at a glance, with guards that can be left out: what the invariants must catch.

It knows nothing of trainstack's own steering code. With all guards it carries one stage through a calm world and the
troubles that the tests bring; it is no match for a whole random schedule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import requests
from lium.sdk.exceptions import LiumError, LiumNotFoundError, LiumRentOutcomeUnknownError

from plugins.errors import ControlPlaneError
from plugins.lium.pods import PodRow, row_from_info
from tests.faults.invariants import Ending
from tests.faults.machines import HOUR, iso
from tests.faults.sim_board import SimBoard
from tests.faults.sim_link import open_link
from tests.faults.sim_lium import SimLium
from tests.faults.virtual_clock import Process
from tests.faults.world import World

T = TypeVar("T")

SILENT = (LiumError, requests.RequestException, ControlPlaneError)


@dataclass(frozen=True)
class Guards:
    """Each is a guard of a pipeline that spends money; False leaves it out."""

    looks_up_absent_pods: bool = True
    settles_lost_rents: bool = True
    adopts: bool = True
    minds_the_ceiling: bool = True
    minds_the_price_paid: bool = True
    extends: bool = True
    gives_back: bool = True
    minds_the_budget: bool = True
    matches_whole_names: bool = True
    survives_api_errors: bool = True
    says_why: bool = True


@dataclass(frozen=True)
class Order:
    """The part of a stage order that a board reads."""

    stage: str
    attempt: int


class Naive:
    """One start of the pipeline."""

    def __init__(self, world: World, process: Process, guards: Guards) -> None:
        self._world, self._process, self._guards = world, process, guards
        self._lium, self.board = SimLium(world, process), SimBoard(world, process)
        self._pod: PodRow | None = None

    def nap(self, seconds: float) -> None:
        """Wait."""
        self._process.sleep(seconds)

    def run(self) -> Ending:
        """Carry the world's first stage to its end."""
        if self._guards.extends:
            self._process.duty("extend", self._extend)
        try:
            ending = self._train()
        except KeyboardInterrupt:
            ending = Ending("CANCELLED", "it was stopped by Ctrl-C")
        finally:
            if self._guards.gives_back:
                self._give_back()
        return ending if self._guards.says_why else Ending(ending.state, "")

    def _train(self) -> Ending:
        stage = self._world.plan.stages[0].name
        for _ in range(self._world.plan.max_attempts):
            if not self._get_pod():
                return Ending("FAILED", "there is no host within the ceiling")
            assert self._pod is not None
            found = self._ask(lambda: self.board.attempts(stage))
            if found and found[0].pod == self._pod.name and not found[0].ended:
                attempt = found[0]
            else:
                order: Any = Order(stage, len(found) + 1)
                name = self._pod.name
                attempt = self._ask(lambda: self.board.submit(order, name))  # noqa: B023
            end = self._wait(attempt.id)
            if end is not None:
                return end
        return Ending("FAILED", "too many attempts were needed")

    def _wait(self, attempt_id: Any) -> Ending | None:
        """None: the pod is lost."""
        while True:
            self.nap(5.0)
            if self._guards.minds_the_budget and self._spent() > 0.85 * self._world.plan.budget:
                return Ending("FAILED", "the budget is used up")
            if self._ask(self.board.cancelling):
                return Ending("CANCELLED", "it was cancelled by somebody")
            attempt = self._ask(lambda: self.board.attempt(attempt_id))
            if attempt.ended:
                return Ending(attempt.state, f"the attempt ended {attempt.state}")
            if self._lost():
                self._give_back()
                return None

    def _lost(self) -> bool:
        assert self._pod is not None
        try:
            rows = self._own()
        except SILENT:
            return not self._guards.survives_api_errors
        if any(row.id == self._pod.id and not row.terminal for row in rows):
            return False
        return not self._guards.looks_up_absent_pods or not self._exists(self._pod.id)

    def _get_pod(self) -> bool:
        living = [row for row in self._ask(self._own) if not row.terminal] if self._guards.adopts else []
        self._pod = living[0] if living else self._rent()
        if self._pod is None:
            return False
        while self._pod.status != "RUNNING":
            self.nap(5.0)
            self._pod = next((row for row in self._ask(self._own) if row.id == self._pod.id), self._pod)
        if self._guards.minds_the_price_paid and self._over(self._pod):
            return False
        open_link(self._world, self._process, self, self._pod).ensure_worker()
        return True

    def _rent(self) -> PodRow | None:
        plan = self._world.plan
        hosts = sorted(self._ask(self._lium.ls), key=lambda host: host.price_per_gpu)
        if self._guards.minds_the_ceiling:
            hosts = [host for host in hosts if host.price_per_gpu <= plan.ceiling]
        number = 1 + sum(not pod.stranger for pod in self._world.market.pods.values())
        for host in hosts:
            name = f"ts-{self._world.run_id}-sft-a{number}"
            rent = {"executor_id": host.id, "name": name, "gpu_count": plan.gpus, "termination_hours": 1}
            try:
                pod_id = self._lium.up(**rent, confirmed_only=True)["id"]  # type: ignore[arg-type]
            except LiumRentOutcomeUnknownError as error:
                if not self._guards.settles_lost_rents:
                    number += 1
                    continue
                pod_id = self._settle(error)
            return PodRow(id=pod_id, name=name, status="PENDING", executor_id=host.id)
        return None

    def _settle(self, error: LiumRentOutcomeUnknownError) -> str:
        while True:
            try:
                return str(self._lium._replay_rent(error)["id"])
            except LiumRentOutcomeUnknownError:
                self.nap(10.0)

    def _give_back(self) -> None:
        for row in self._ask(self._own):
            self._ask(lambda row=row: self._delete(row))  # type: ignore[misc]
        self._pod = None

    def _delete(self, row: PodRow) -> None:
        if self._exists(row.id):
            self._lium.down(row)

    def _own(self) -> list[PodRow]:
        rows = [row_from_info(info) for info in self._lium.ps()]
        if self._guards.matches_whole_names:
            return [row for row in rows if self._world.own(row.name)]
        return [row for row in rows if row.name.startswith(f"ts-{self._world.run_id}")]

    def _exists(self, pod_id: str) -> bool:
        try:
            self._lium.pod(pod_id)
        except LiumNotFoundError:
            return False
        except SILENT:
            return True
        return True

    def _over(self, row: PodRow) -> bool:
        return (row.price_per_hour or 0.0) > self._world.plan.ceiling * self._world.plan.gpus + 1e-6

    def _spent(self) -> float:
        pods = [pod for pod in self._world.market.pods.values() if not pod.stranger]
        return sum(((pod.ended_at or self._process.now()) - pod.rented_at) / HOUR * pod.price for pod in pods)

    def _extend(self) -> float:
        if self._pod is not None:
            until = iso(self._process.now() + self._world.plan.dead_man_minutes * 60)
            try:
                self._lium.schedule_termination(self._pod.id, termination_time=until)  # type: ignore[arg-type]
            except SILENT:
                return 10.0
        return 60.0

    def _ask(self, call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except SILENT:
                self.nap(5.0)
