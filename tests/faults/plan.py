"""What goes wrong in one run, as plain data: hosts, troubles, deaths of the flow, cancels.

`schedules.py` draws such plans, `world.py` lets them happen. Times ending in `_s` are seconds after the run's first
start, unless they say otherwise; prices are USD per GPU-hour.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class HostPlan:
    """One machine of the market. `boot`: ok, fails, stuck. `loss`: vanish, broken, stopped, network, none.

    surcharge: what a rent really costs over the listed price. worker_s: until the pod's worker is online, None: never.
    changes: (time, new price or None, on offer or None).
    """

    number: int
    gpu: str
    gpus: int
    price: float
    tier: str
    country: str
    boot_s: float
    boot: str
    lies: bool
    life_s: float
    loss: str
    surcharge: float
    worker_s: float | None
    frequent_failures: bool
    download_mbps: float
    changes: tuple[tuple[float, float | None, bool | None], ...] = ()


@dataclass(frozen=True)
class StagePlan:
    """One training stage. ends: of its first attempts: well, crashed, failed, killed, hangs; later ones end well."""

    name: str
    iterations: int
    iteration_s: float
    save_every: int
    ends: tuple[str, ...]


@dataclass(frozen=True)
class Window:
    """A time in which calls to `target` meet a trouble with this chance."""

    start_s: float
    end_s: float
    kind: str
    target: str
    chance: float


@dataclass(frozen=True)
class CallFault:
    """The n-th call to `target` of the whole run (from 1) meets a trouble. done: a changing call was carried out."""

    target: str
    call: int
    kind: str
    done: bool


@dataclass(frozen=True)
class Death:
    """How one start of the flow is killed: at its n-th call to `target` (before or after the effect), or by the clock.

    after_s: so long after its start. again_after_s: when the next start comes; None: nobody ever starts it again.
    """

    target: str
    at_call: int | None
    after_s: float | None
    after_effect: bool
    again_after_s: float | None


@dataclass(frozen=True)
class WarmPlan:
    """A pod that an earlier run left for the next one. rival_at_s: when another run would take it."""

    gpus: int
    price: float
    until_s: float
    rival_at_s: float | None


@dataclass(frozen=True)
class Schedule:
    """Everything that will happen to one run."""

    seed: int
    gpus: int
    ceiling: float
    budget: float
    dead_man_minutes: int
    capacity_wait_minutes: float
    ready_timeout_minutes: float
    unreachable_after_s: float
    bad_host_hours: float
    max_attempts: int
    tier: str
    idle_release: bool
    idle_minutes: float
    hosts: tuple[HostPlan, ...]
    stages: tuple[StagePlan, ...]
    lium: tuple[Window, ...]
    calls: tuple[CallFault, ...]
    board: tuple[Window, ...]
    ssh: tuple[Window, ...]
    deaths: tuple[Death, ...]
    cancel_at_s: float | None
    ctrl_c_at_s: float | None
    naps: tuple[tuple[float, float], ...]
    strangers: tuple[str, ...]
    warm: WarmPlan | None
    keep_warm_minutes: float
    reap_every_s: float | None

    def show(self) -> str:
        """The whole plan, one part a line."""
        lines = [f"seed {self.seed}: {self.gpus} GPUs, ceiling ${self.ceiling}, budget ${self.budget}"]
        for name, value in vars(self).items():
            rows = value if isinstance(value, tuple) else (value,)
            lines += [f"  {name}: {row}" for row in rows]
        return "\n".join(lines)


def calm(seed: int = 0) -> Schedule:
    """A schedule in which nothing goes wrong: one stage, two good hosts."""
    host = HostPlan(0, "NVIDIA H200", 8, 2.0, "secure", "US", 60.0, "ok", False, 1e9, "none", 1.0, 20.0, False, 2000.0)
    return Schedule(
        seed=seed,
        gpus=1,
        ceiling=2.5,
        budget=20.0,
        dead_man_minutes=30,
        capacity_wait_minutes=0.0,
        ready_timeout_minutes=30.0,
        unreachable_after_s=180.0,
        bad_host_hours=6.0,
        max_attempts=4,
        tier="any",
        idle_release=False,
        idle_minutes=20.0,
        hosts=(host, replace(host, number=1, price=2.2)),
        stages=(StagePlan("sft", 20, 30.0, 5, ()),),
        lium=(),
        calls=(),
        board=(),
        ssh=(),
        deaths=(),
        cancel_at_s=None,
        ctrl_c_at_s=None,
        naps=(),
        strangers=(),
        warm=None,
        keep_warm_minutes=0.0,
        reap_every_s=None,
    )
