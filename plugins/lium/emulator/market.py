"""The rent desk: which GPUs are free, who may rent them, and what is left on the account.

It writes the row of a new pod; `pods.py` boots it and gives it a life, `rent.py` makes the HTTP answers.
"""

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from plugins.lium.emulator import billing
from plugins.lium.emulator.capacity import Capacity, ordered
from plugins.lium.emulator.faults import Faults
from plugins.lium.emulator.inventory import NothingFits, choose
from plugins.lium.emulator.machine import Machine
from plugins.lium.emulator.state import Account, Pod, State
from plugins.lium.emulator.templates import DEFAULT_TEMPLATE_ID, template_of

NOT_HOLDING = ("CREATION_FAILED", "BROKEN")  # listed pods in these statuses have given their GPUs back


class NotFound(Exception):
    """No such pod, volume, template or machine on this account (404)."""


class Unprocessable(Exception):
    """The request makes no sense; the text says why (400)."""


class VolumeBusy(Exception):
    """The volume is attached to another pod (409)."""


class BalanceTooLow(Exception):
    """The account cannot pay for the pod (403, in the words that the SDK reads the figures from)."""


class Market:
    """The machines and the accounts' money; all figures are taken from the state at the moment of asking."""

    def __init__(
        self,
        state: State,
        machines: list[Machine],
        faults: Faults,
        now: Callable[[], float],
        *,
        billing_scale: float = 1.0,
    ) -> None:
        self.state = state
        self.machines = {machine.id: machine for machine in machines}
        self.capacity = {machine.id: Capacity() for machine in machines}
        self.faults = faults
        self.now = now
        self.billing_scale = billing_scale

    def free_gpus(self) -> dict[str, int]:
        """Machine id -> GPUs to rent now; none on a machine that is offline."""
        free = {}
        for machine in self.machines.values():
            capacity = self.capacity[machine.id]
            left = machine.gpu_count - capacity.others - self.rented(machine.id)
            free[machine.id] = 0 if capacity.offline else max(0, left)
        return free

    def rented(self, executor_id: str) -> int:
        """How many GPUs of a machine are rented here."""
        return sum(len(pod.gpu_indices) for pod in self._holding() if pod.executor_id == executor_id)

    def _holding(self) -> list[Pod]:
        return [pod for pod in self.state.present() if pod.status not in NOT_HOLDING]

    def machine(self, executor_id: str) -> Machine:
        """A machine by its id. Raises NotFound."""
        if executor_id not in self.machines:
            raise NotFound(f"Executor {executor_id} not found")
        return self.machines[executor_id]

    def order(self, executor_id: str, order: Mapping[str, Any]) -> None:
        """Change what a machine offers (see `capacity.ordered`). Raises NotFound, UserError."""
        machine = self.machine(executor_id)
        self.machines[machine.id], self.capacity[machine.id] = ordered(
            machine, self.capacity[machine.id], self.rented(machine.id), order
        )

    def pick(self, spec: Mapping[str, Any]) -> list[Machine]:
        """Machines for a rent by spec, best first. Raises NothingFits."""
        if self.faults.take("no_capacity"):
            raise NothingFits(
                f"gpu_count={spec.get('gpu_count') or 1}: none of the 0 node(s); rentable GPU counts: none now"
            )
        return choose(list(self.machines.values()), self.free_gpus(), spec)

    def rent(self, account: Account, machine: Machine, gpu_count: int, body: Mapping[str, Any]) -> Pod:
        """Take GPUs of a machine: the row of a new pod, PENDING. `body` is the rent request (lium.md 4.3).

        Raises Unprocessable, NotFound, VolumeBusy, BalanceTooLow.
        """
        keys = [str(key) for key in body.get("user_public_key") or []]
        if not keys:
            raise Unprocessable("user_public_key: at least one SSH public key is needed")
        template = template_of(self.state, str(body.get("template_id") or DEFAULT_TEMPLATE_ID), account.id)
        if template is None:
            raise NotFound(f"Template {body.get('template_id')} not found")
        self.check_volume(account, body.get("volume_id"))
        self.check_balance(account, machine.price_per_gpu * gpu_count)
        now = self.now()
        pod = Pod(
            id=str(uuid.uuid4()),
            account=account.id,
            name=str(body.get("pod_name") or "pod"),
            executor_id=machine.id,
            gpu_indices=self._free_indices(machine)[:gpu_count],
            price_per_gpu=machine.price_per_gpu,
            template_id=template["id"],
            public_keys=keys,
            created_at_s=now,
            updated_at_s=now,
            image=f"{template['docker_image']}:{template['docker_image_tag']}",
            billing_scale=self.billing_scale,
            volume_id=body.get("volume_id"),
            termination_hours=body.get("termination_hours"),
        )
        pod.move("PENDING", now)
        self.state.pods[pod.id] = pod
        return pod

    def _free_indices(self, machine: Machine) -> list[int]:
        taken = {index for pod in self._holding() if pod.executor_id == machine.id for index in pod.gpu_indices}
        return [index for index in range(machine.gpu_count) if index not in taken]

    def check_volume(self, account: Account, volume_id: str | None, for_pod: Pod | None = None) -> None:
        """Whether a pod of the account may have the volume. Raises NotFound, VolumeBusy."""
        if volume_id is None:
            return
        volume = self.state.volumes.get(volume_id)
        if volume is None or volume.account != account.id:
            raise NotFound(f"Volume {volume_id} not found")
        for pod in self.state.present():
            if pod.volume_id == volume_id and pod is not for_pod:
                raise VolumeBusy(
                    f"Volume {volume.name} is attached to pod {pod.name}; a volume serves one pod at a time"
                )

    def check_balance(self, account: Account, price_per_hour: float) -> None:
        """Whether the account can pay a pod, or pods, of this price in USD. Raises BalanceTooLow."""
        needed = price_per_hour * billing.FLOOR_HOURS
        left = self.balance(account)
        if left < needed:
            raise BalanceTooLow(
                f"Insufficient balance: this pod requires at least ${needed:.2f}, your balance is ${left:.2f}"
            )

    def balance(self, account: Account) -> float:
        """USD left on the account now."""
        return billing.balance(account, self.state.present(account.id), self.now())
