"""The life of emulated pods: boot, reboot, scheduled end, reclaim, and what is left of them after a restart.

    rent -> PENDING -boot-> RUNNING -reboot-> REBOOT_PENDING -> RUNNING -> removed (row gone, events and record stay)
                 `-> CREATION_FAILED, row gone after 3 minutes

State is in `state.py`, the rent desk in `market.py`, processes in `pod_process.py` and `ssh_server.py`; `patrol.py`
finds what is due. Runs on one event loop; `now` is a parameter so that a test can let time pass.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugins.lium.emulator import billing, pod_process, ssh_server
from plugins.lium.emulator.faults import Faults
from plugins.lium.emulator.machine import Machine
from plugins.lium.emulator.market import Market, NotFound, Unprocessable
from plugins.lium.emulator.pod_files import PodFiles, lay_out, write_gpus
from plugins.lium.emulator.state import Account, Pod, State, StateFile
from plugins.lium.emulator.templates import template_of

PENDING = ("PENDING", "REBOOT_PENDING")
NETWORKS = ("up", "refuse", "hang")
PHASES = ("preparing node", "pulling image", "starting container", "configuring ssh")


@dataclass(frozen=True)
class Settings:
    """How pods are run and billed. `shares` are visible in every pod at the same path; `env` is in every process."""

    mode: str
    shares: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    boot_delay_s: float = 0.0
    billing_scale: float = 1.0

    def boot_delay_of(self, machine: Machine) -> float:
        """Seconds a pod stays PENDING on the machine."""
        return self.boot_delay_s if machine.boot_delay_s is None else machine.boot_delay_s


@dataclass
class Live:
    """The running side of a pod."""

    container: pod_process.Container
    listener: ssh_server.Listener


class Pods:
    """All pods of the emulator. Changing methods save the state before they return."""

    def __init__(
        self,
        file: StateFile,
        machines: list[Machine],
        settings: Settings,
        faults: Faults,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.file = file
        self.market = Market(file.state, machines, faults, now, billing_scale=settings.billing_scale)
        self.machines = self.market.machines
        self.settings = settings
        self.faults = faults
        self.now = now
        self.live: dict[str, Live] = {}
        self.logs: dict[str, list[str]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def state(self) -> State:
        """What is remembered."""
        return self.file.state

    def rent(self, account: Account, machine: Machine, gpu_count: int, body: Mapping[str, Any]) -> Pod:
        """Rent (see `Market.rent`, also for what it raises) and begin to boot."""
        pod = self.market.rent(account, machine, gpu_count, body)
        self.boot_later(pod)
        self.file.save()
        return pod

    def get(self, account: Account, pod_id: str, *, removed: bool = False) -> Pod:
        """A pod of the account; with `removed` also one that is gone. Raises NotFound."""
        pod = self.state.pods.get(pod_id)
        if pod is None or pod.account != account.id or (pod.removed and not removed):
            raise NotFound(f"Pod {pod_id} not found")
        return pod

    def boot_later(self, pod: Pod) -> None:
        """Begin to boot a pod whose row is written."""
        self._tasks[pod.id] = asyncio.create_task(self._boot(pod))

    async def booted(self, pod: Pod) -> None:
        """Wait until the boot that is under way, if one is, has ended well or badly."""
        if task := self._tasks.get(pod.id):
            await asyncio.wait([task])

    async def _boot(self, pod: Pod) -> None:
        machine = self.machines[pod.executor_id]
        failure = None
        if machine.boot_fail:
            failure = "this machine fails every boot"
        elif self.faults.take("boot_fail"):
            failure = "the emulator was asked to fail this boot"
        self.log(pod, f"booting {pod.name} on {pod.executor_id}")
        for phase in PHASES:
            pod.phase = phase
            await asyncio.sleep(self.settings.boot_delay_of(machine) / len(PHASES))
        if failure is None:
            try:
                await self._start(pod)
            except Exception as error:  # whatever it is, a pod must not stay PENDING for ever
                failure = str(error) or type(error).__name__
        pod.phase = None
        now = self.now()
        if failure:
            self.log(pod, failure)
            first = pod.status == "PENDING"
            pod.move(
                "CREATION_FAILED" if first else "REBOOT_FAILED", now, reason="container start failed", error=failure
            )
        else:
            pod.move("RUNNING", now)
            if pod.billed_from_s is None:
                pod.billed_from_s = now
                if pod.termination_hours:
                    # Lium counts termination_hours from the boot, and then it replaces an earlier schedule.
                    pod.removal_at_s = now + pod.termination_hours * billing.HOUR_S
            self.log(pod, "running")
        self.file.save()

    async def _start(self, pod: Pod) -> None:
        template = template_of(self.state, pod.template_id, pod.account) or {}
        files = self._lay_out(pod, self._gpus(pod))
        extra = {**template.get("environment", {}), **self.settings.env}
        env = files.environment(pod.id, pod.name, {name: str(value) for name, value in extra.items()})
        container = await pod_process.start(pod.id, files, env, mode=self.settings.mode)
        try:
            listener = await ssh_server.listen(container, pod.public_keys, pod.ssh_port)
        except BaseException:  # also a cancel: no process may stay
            await container.end()
            raise
        pod.ssh_port = listener.port
        if pod.network != "up":
            listener.cut(pod.network)
        self.live[pod.id] = Live(container, listener)

    def _gpus(self, pod: Pod) -> list[dict[str, object]]:
        machine = self.machines[pod.executor_id]
        return machine.nvidia_smi(pod.gpu_indices, pod.gpu_utilization, pod.gpu_memory_used_mib)

    def _lay_out(self, pod: Pod, gpus: list[dict[str, object]]) -> PodFiles:
        namespace = self.settings.mode == "namespace"
        shares = self.settings.shares
        return lay_out(self.file.folder, pod.id, pod.volume_id, gpus, shares=shares, namespace=namespace)

    async def _end_processes(self, pod: Pod) -> None:
        """Stop a boot that is under way and end every process of the pod."""
        task = self._tasks.pop(pod.id, None)
        if task and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        live = self.live.pop(pod.id, None)
        if live:
            await live.container.end()
            live.listener.close()

    async def reboot(self, account: Account, pod: Pod, volume_id: str | None) -> None:
        """A new container on the same directories; `volume_id` swaps the volume."""
        self.market.check_volume(account, volume_id, pod)
        pod.volume_id = volume_id or pod.volume_id
        pod.move("REBOOT_PENDING", self.now(), reason="reboot asked for")
        await self._end_processes(pod)
        if not pod.removed and pod.id not in self._tasks:  # somebody else was faster
            self.boot_later(pod)
        self.file.save()

    async def remove(self, pod: Pod, reason: str, *, status: str = "DELETED") -> None:
        """End the pod for good: processes, directories (not the volume), listing. The bill is settled here."""
        if pod.removed:
            return
        now = self.now()
        pod.removed_at_s, pod.close_reason = now, reason
        pod.move(status, now, reason=reason)
        account = self.state.accounts[pod.account]
        account.spent_usd += billing.cost(pod, now)
        self.file.save()
        await self._end_processes(pod)
        files = self._lay_out(pod, [])
        await asyncio.to_thread(files.remove)
        self._drop_one_time_template(pod)

    def _drop_one_time_template(self, pod: Pod) -> None:
        template = self.state.templates.get(pod.template_id, {})
        if template.get("one_time_template") and not any(
            p.template_id == pod.template_id for p in self.state.present()
        ):
            del self.state.templates[pod.template_id]
            self.file.save()

    async def reclaim(self, pod: Pod, reason: str, how: str) -> None:
        """End a pod as a lost host does.

        `how`: "vanish" (row gone), "broken" (row stays, BROKEN), "silent" (row goes on saying RUNNING).
        """
        if how == "vanish":
            await self.remove(pod, reason, status="STOPPED")
            return
        if how == "broken":
            pod.move("BROKEN", self.now(), reason=reason)
        elif how != "silent":
            raise Unprocessable(f"how={how!r}: expected vanish, broken or silent")
        self.file.save()
        await self._end_processes(pod)

    async def set_network(self, pod: Pod, network: str) -> None:
        """Take the network from a pod ("refuse", "hang": how new SSH connections fail) or give it back ("up").

        The row goes on as it was, and so do the processes. Raises Unprocessable for another word.
        """
        if network not in NETWORKS:
            raise Unprocessable(f"network {network!r}: expected one of {', '.join(NETWORKS)}")
        before, pod.network = pod.network, network
        self.file.save()
        live = self.live.get(pod.id)
        if live is None or network == before:
            return
        self.log(pod, f"network: {network}")
        if network == "up":
            await live.listener.serve(pod.ssh_port)
            pod.ssh_port = live.listener.port
        else:
            live.listener.cut(network)

    def set_gpu(self, pod: Pod, utilization: int | None, memory_used_mib: int | None) -> None:
        """What the pod's `nvidia-smi` says from now on: percent and MiB, on each GPU; None leaves it as it is."""
        if utilization is not None:
            pod.gpu_utilization = utilization
        if memory_used_mib is not None:
            pod.gpu_memory_used_mib = memory_used_mib
        self.file.save()
        if live := self.live.get(pod.id):
            write_gpus(live.container.files, self._gpus(pod))

    def schedule(self, pod: Pod, at_s: float | None) -> None:
        """Set or (None) take back the time at which the pod ends by itself."""
        if at_s is not None and at_s <= self.now():
            raise Unprocessable("removal_scheduled_at is in the past")
        pod.removal_at_s = at_s
        self.file.save()

    def log(self, pod: Pod, line: str) -> None:
        """Add a line to the container's log (kept in memory, the last 1000)."""
        lines = self.logs.setdefault(pod.id, [])
        lines.append(line)
        del lines[:-1000]

    async def start(self) -> None:
        """Boot again what ran before a restart, and end what an emulator killed with -9 left."""
        await asyncio.to_thread(pod_process.sweep, [pod.id for pod in self.state.present()])
        for pod in self.state.present():
            if pod.executor_id not in self.machines:
                await self.remove(pod, "its machine is no longer in the inventory", status="FAILED")
            elif pod.status in ("RUNNING", *PENDING):
                if pod.status == "RUNNING":
                    pod.move("REBOOT_PENDING", self.now(), reason="the emulator was restarted")
                self.boot_later(pod)
        self.file.save()

    async def stop(self) -> None:
        """End all processes; the rows stay, and the next start boots them again."""
        await asyncio.gather(*(self._end_processes(pod) for pod in self.state.present()))
        self.file.save()
