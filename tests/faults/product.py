"""Trainstack's own steering code as the flow of a simulated world: its chain, its account, its reaper.

Nothing of it is replaced but what it takes as a parameter: clock, SDK client, board, link to a pod, store. Prefect's
engine is not there, so the tasks' functions are called with the retries that the tasks declare.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from blocks.recipe import Recipe
from plugins.errors import ControlPlaneError, StoreError, TrainstackError
from plugins.lium.client import LiumAccount, LiumSettings
from tasks.chain import Verbs, carry_stages
from tasks.check_recipe import Checked, StageData
from tasks.provision_pod import drop_pod, provision_pod
from tasks.reap import judge_all
from tasks.release_pod import release_pods
from tasks.run import Run, RunCancelled, RunEnded
from tasks.sync_checkpoint import sync_checkpoint
from tests.faults.invariants import Ending
from tests.faults.plan import Schedule
from tests.faults.sim_board import SimBoard
from tests.faults.sim_link import open_link
from tests.faults.sim_lium import SimLium
from tests.faults.virtual_clock import Process
from tests.faults.world import World


@dataclass(frozen=True)
class Parts:
    """What a test may leave a guard out of: the account's class, the recipe, and the verbs of the chain."""

    account: type[LiumAccount] = LiumAccount
    recipe: Callable[[Schedule], Recipe] | None = None
    verbs: Callable[[Verbs], Verbs] = lambda verbs: verbs


SETTINGS = LiumSettings("http://127.0.0.1:1/api", "sim", Path("/nowhere/id_ed25519"))
PASSING = (ControlPlaneError, StoreError)  # what the tasks' own retry conditions let through


def flow(world: World, process: Process, parts: Parts = Parts()) -> Ending:
    """One start of the pipeline; the endings are `tasks.pipeline.carry_through`'s."""
    recipe = (parts.recipe or recipe_of)(world.plan)
    data = StageData(Path("/data/prompts.jsonl"), 100, "0" * 64)
    stages: Any = [stage.name for stage in world.plan.stages]
    last: Any = {stage.name: stage.iterations - 1 for stage in world.plan.stages}
    checked = Checked(data=dict.fromkeys(stages, data), last=last)
    try:
        with (
            contextlib.redirect_stderr(io.StringIO()),
            Run(
                world.run_id,
                recipe,
                board=SimBoard(world, process),
                account=parts.account(SETTINGS, clock=process, lium=SimLium(world, process)),
                store=SimStore(world, process),  # type: ignore[arg-type]
                log=lambda message: world.note("log", message),
                open_link=lambda run, row: open_link(world, process, run, row),
                clock=process,
            ) as run,
        ):
            _, cost = carry_stages(run, stages, checked, parts.verbs(_verbs(process)))
            return Ending("COMPLETED", f"it is done and cost ${cost:.2f}")
    except RunCancelled as cancelled:
        return Ending("CANCELLED", str(cancelled))
    except KeyboardInterrupt:
        return Ending("CANCELLED", f"Run {world.run_id} was stopped by Ctrl-C")
    except RunEnded as ended:
        return Ending("FAILED", str(ended))
    except TrainstackError as error:
        return Ending("FAILED", f"{type(error).__name__}: {error}")


def reap(world: World, process: Process) -> bool:
    """One pass of `reap-pods`, by a process of its own; False when a service did not answer."""
    account = LiumAccount(SETTINGS, clock=process, lium=SimLium(world, process))
    try:
        pods, warm = account.pods(), SimBoard(world, process).warm_pods()
        pipelines: Any = {world.run_id: list(_pipelines(world, process))}
        now = datetime.fromtimestamp(process.now(), UTC)
        for judged in judge_all(pods, pipelines, warm, now):
            if judged.keep is None:
                world.note(f"reap {judged.pod.name}", judged.why)
                account.release(judged.pod.name, [judged.pod.id])
    except ControlPlaneError as error:
        world.note("reap", str(error))
        return False
    return True


def recipe_of(plan: Schedule) -> Recipe:
    """The recipe of a schedule."""
    pod = {
        "gpu": "H200",
        "gpu_count": plan.gpus,
        "tier": plan.tier,
        "max_price_per_gpu_hour": plan.ceiling,
        "budget_usd": plan.budget,
        "dead_man_minutes": plan.dead_man_minutes,
        "capacity_wait_minutes": plan.capacity_wait_minutes,
        "ready_timeout_minutes": plan.ready_timeout_minutes,
        "unreachable_after_s": plan.unreachable_after_s,
        "bad_host_hours": plan.bad_host_hours,
        "idle_minutes": plan.idle_minutes,
        "idle_release": plan.idle_release,
        "keep_warm_minutes": plan.keep_warm_minutes,
    }
    sections: dict[str, Any] = {}
    for stage in plan.stages:
        section: dict[str, Any] = {"data": "/data/prompts.jsonl", "num_rollout": stage.iterations}
        if stage.name == "rl":
            section |= {"environment": {"task": "answer"}, "init": "sft" if len(plan.stages) == 2 else None}
        sections[stage.name] = section
    return Recipe.model_validate({"name": "sim", "pod": pod, "max_attempts": plan.max_attempts, **sections})


class SimStore:
    """The checkpoint store: it has what the attempts made durable, and never fails."""

    uri = "sim:store"

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process

    def latest(self, run_id: str, stage: str) -> Any:
        """The newest checkpoint, as far as the chain reads one."""
        call = self._process.enter()
        self._process.sleep(0.05)
        durable = self._world.stages.durable(stage)
        self._process.leave(call)
        if not durable:
            return None
        names = {"run_id": run_id, "stage": stage, "iteration": durable - 1}
        return SimpleNamespace(**names, lineage={}, files=(), digest=lambda: "0" * 64)

    def uri_of(self, newest: Any) -> str:
        """Where a checkpoint is."""
        return f"{self.uri}/{newest.run_id}/{newest.stage}/{newest.iteration}"


def _verbs(process: Process) -> Verbs:
    tasks = {"provision": provision_pod, "release": release_pods, "drop": drop_pod, "sync": sync_checkpoint}
    return Verbs(**{name: _with_retries(task, process) for name, task in tasks.items()})


def _with_retries(task: Any, process: Process) -> Callable[..., Any]:
    delays = task.retry_delay_seconds

    def call(*arguments: Any) -> Any:
        for delay_s in delays[: task.retries]:
            try:
                return task.fn(*arguments)
            except PASSING:
                process.sleep(delay_s)
        return task.fn(*arguments)

    return call


def _pipelines(world: World, reaper: Process) -> Iterator[SimpleNamespace]:
    """The starts of the pipeline as their flow runs show them. One that was killed is noticed by the first reaper."""
    for process, ending in zip(world.processes, [*world.endings, None], strict=False):
        if process.killed and process not in world.buried:
            world.buried[process] = reaper.now()
        over = not process.alive
        end = world.buried.get(process, process.ended_at)
        yield SimpleNamespace(
            state=SimpleNamespace(is_final=lambda over=over: over, is_crashed=lambda p=process: p.killed),
            state_name=ending.state if ending else "CRASHED" if over else "RUNNING",
            end_time=datetime.fromtimestamp(end, UTC) if end is not None else None,
        )
