"""What time does to pods and machines: an hour, the money or the luck of a pod is out, a planned change is due.

One look every 0.2 seconds. How a pod ends is in `pods.py`; here is when.
"""

import asyncio
import traceback

from plugins.lium.emulator.pods import Pods
from plugins.lium.emulator.state import Pod

FAILED_ROW_KEPT_S = 180.0
EVERY_S = 0.2
RECLAIMED = "spot reclaim: the host took its GPUs back"


class Patrol:
    """The watch over one emulator's pods; the `changes` of its machines count from `began_s`."""

    def __init__(self, pods: Pods) -> None:
        self.pods = pods
        self.began_s = pods.now()
        plans = [
            (change["after_s"], machine.id, change) for machine in pods.machines.values() for change in machine.changes
        ]
        self.plans = sorted(plans, key=lambda plan: plan[0])

    async def watch(self) -> None:
        """Look again and again; ends when cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.look()
            except Exception:  # a full disk, say; the watch over money and time must go on
                traceback.print_exc()

    async def look(self) -> None:
        """Do what is due now."""
        now = self.pods.now()
        while self.plans and self.plans[0][0] <= now - self.began_s:
            _, executor_id, change = self.plans.pop(0)
            self._change(executor_id, change)
        for pod in self.pods.state.present():
            await self._end_if_due(pod, now)
            if not pod.removed:
                await self._lose_network_if_due(pod, now)

    def _change(self, executor_id: str, change: dict[str, object]) -> None:
        order = {name: value for name, value in change.items() if name != "after_s"}
        if isinstance(order.get("free"), int):
            # What is rented here by now cannot be free; a plan must not fail for that.
            held = self.pods.market.rented(executor_id)
            order["free"] = min(int(str(order["free"])), self.pods.machines[executor_id].gpu_count - held)
        self.pods.market.order(executor_id, order)

    async def _end_if_due(self, pod: Pod, now: float) -> None:
        pods = self.pods
        if pod.removal_at_s is not None and pod.removal_at_s <= now:
            await pods.remove(pod, "scheduled termination")
        elif pod.status == "CREATION_FAILED" and pod.updated_at_s + FAILED_ROW_KEPT_S <= now:
            await pods.remove(pod, "creation failed", status="DELETED")
        elif pod.billed_from_s is not None and pods.market.balance(pods.state.accounts[pod.account]) <= 0:
            await pods.remove(pod, "insufficient balance")
        elif pod.id in pods.live and pod.billed_from_s is not None:
            machine = pods.machines[pod.executor_id]
            after_s = machine.reclaimed_after_s(pod.id)
            if after_s is not None and pod.billed_from_s + after_s <= now:
                await pods.reclaim(pod, RECLAIMED, machine.reclaim_how)

    async def _lose_network_if_due(self, pod: Pod, now: float) -> None:
        after_s = self.pods.machines[pod.executor_id].network_lost_after_s
        if after_s is None or pod.network_timed or pod.billed_from_s is None or pod.billed_from_s + after_s > now:
            return
        pod.network_timed = True
        await self.pods.set_network(pod, "refuse")
