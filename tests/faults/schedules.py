"""Draws schedules of faults: `schedule(seed)` is the same for a seed on every machine.

Only the plan is drawn here, so that a failing schedule can be printed and read; the world (`world.py`) lets it happen.
"""

from dataclasses import replace
from random import Random

from tests.faults.plan import CallFault, Death, HostPlan, Schedule, StagePlan, WarmPlan, Window

HOUR = 3600.0
MINUTE = 60.0

LIUM_TROUBLE = ("5xx", "connection", "timeout", "429", "empty", "missing", "status", "slow", "lost")
BOARD_TROUBLE = ("down", "lost")
TARGETS = ("all", "all", "list", "read", "change", "rent", "extend", "delete")
CRITICAL = ("rent", "rent", "delete", "extend")


def schedule(seed: int) -> Schedule:
    """Draw a schedule. About one in ten is nearly calm, so that the way without trouble is walked too."""
    rng = Random(f"schedule {seed}")
    harsh = rng.choice((0.1, 0.6, 1.0, 1.5, 2.0))
    gpus = rng.choice((1, 1, 8))
    ceiling = round(rng.uniform(1.5, 3.0), 2)
    stages = _stages(rng, harsh)
    hours = sum(stage.iterations * stage.iteration_s for stage in stages) / HOUR
    dead_man = rng.choice((10, 15, 30, 30, 30, 60))
    spare = rng.choice((0.6, 1.6, 3.0))  # budgets: too small for the whole run, just enough, plenty
    least = 1.05 - dead_man / 60  # a pod that nobody steers from its rent on ends an hour after its boot
    need = max(hours * spare, least, dead_man / 60)
    span_s = hours * HOUR * 2 + 20 * MINUTE
    outages = [_outage(rng, span_s) for _ in range(_some(rng, 0.4 * harsh))]
    return Schedule(
        seed=seed,
        gpus=gpus,
        ceiling=ceiling,
        budget=round(gpus * ceiling * need, 2),
        dead_man_minutes=dead_man,
        capacity_wait_minutes=rng.choice((0.0, 10.0, 30.0, 60.0)),
        ready_timeout_minutes=rng.choice((8.0, 15.0, 20.0)),
        unreachable_after_s=rng.choice((60.0, 180.0, 180.0)),
        bad_host_hours=rng.choice((2.0, 6.0)),
        max_attempts=rng.choice((3, 4, 6, 8)),
        tier=rng.choice(("any", "any", "any", "secure", "spot-first")),
        idle_release=rng.random() < 0.2,
        idle_minutes=rng.choice((10.0, 20.0)),
        hosts=_hosts(rng, gpus, ceiling, harsh),
        stages=stages,
        lium=(
            *(_window(rng, span_s, LIUM_TROUBLE, TARGETS) for _ in range(_some(rng, 2.5 * harsh))),
            *_lost_rents(rng, harsh),
            *(replace(outage, kind="connection") for outage in outages),
        ),
        calls=tuple(_call_fault(rng) for _ in range(_some(rng, 4 * harsh))),
        board=(*(_window(rng, span_s, BOARD_TROUBLE, ("all",)) for _ in range(_some(rng, 0.8 * harsh))), *outages),
        ssh=(
            *(_window(rng, span_s, ("down",), ("all",)) for _ in range(_some(rng, 0.4 * harsh))),
            *(replace(outage, end_s=outage.end_s + rng.uniform(0, 50)) for outage in outages),
        ),
        deaths=_deaths(rng, span_s, harsh),
        cancel_at_s=rng.uniform(0, span_s) if rng.random() < 0.12 else None,
        ctrl_c_at_s=rng.uniform(0, span_s) if rng.random() < 0.08 else None,
        naps=tuple(
            (rng.uniform(0, span_s), rng.uniform(10 * MINUTE, 3 * HOUR)) for _ in range(rng.random() < 0.12 * harsh)
        ),
        strangers=tuple(rng.sample(STRANGERS, rng.randint(0, 4))),
        warm=_warm(rng, gpus, ceiling) if rng.random() < 0.12 else None,
        keep_warm_minutes=rng.choice((5.0, 30.0)) if rng.random() < 0.12 else 0.0,
        reap_every_s=rng.choice((None, None, 600.0, 1800.0)),
    )


STRANGERS = ("notebook", "ts-{run}", "ts-{run}-2-sft-a1", "ts-{run}x-sftrl-a1", "ts-other-rl-a1", "x-ts-{run}-sft-a1")
"""Names of pods on the account that are not this run's; most look like it. {run} is its id."""


def _warm(rng: Random, gpus: int, ceiling: float) -> WarmPlan:
    return WarmPlan(
        gpus=rng.choice((gpus, gpus, gpus, 2)),
        price=round(ceiling * rng.choice((0.8, 1.0, 1.2)), 2),
        until_s=rng.uniform(0, 20 * MINUTE),
        rival_at_s=rng.choice((None, rng.uniform(0, 5))),
    )


def _some(rng: Random, mean: float) -> int:
    """A small count with this mean."""
    return sum(rng.random() < mean / 8 for _ in range(8))


def _hosts(rng: Random, gpus: int, ceiling: float, harsh: float) -> tuple[HostPlan, ...]:
    """Two to eight machines; mostly one of them is sound, so that a run that goes on trying comes to its end."""
    hosts = [_host(rng, number, gpus, ceiling, harsh) for number in range(rng.randint(2, 8))]
    if rng.random() < 0.85:
        sound = _host(rng, len(hosts), gpus, ceiling, 0.0)
        hosts.append(replace(sound, price=round(ceiling * rng.choice((0.9, 1.0)), 2)))
    return tuple(hosts)


def _host(rng: Random, number: int, gpus: int, ceiling: float, harsh: float) -> HostPlan:
    def bad(chance: float) -> bool:
        return rng.random() < chance * harsh

    boot = "fails" if bad(0.2) else "stuck" if bad(0.05) else "ok"
    slow = bad(0.15)
    bait = bad(0.12)  # listed cheap, charged dear
    life_s = rng.expovariate(1 / (6 * MINUTE)) if bad(0.45) else 1e9
    loss = rng.choice(("vanish", "broken", "stopped", "network", "network")) if life_s < 1e9 else "none"
    changes = tuple(sorted((_change(rng, ceiling) for _ in range(_some(rng, 1.2 * harsh))), key=lambda c: c[0]))
    return HostPlan(
        number=number,
        gpu="NVIDIA H200",
        gpus=8 if gpus == 8 else rng.choice((1, 2, 8)),
        price=round(ceiling * (0.75 if bait else rng.choice((0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.0, 1.01, 1.3))), 2),
        tier=rng.choice(("spot", "secure")),
        country=rng.choice(("US", "FI", "CA")),
        boot_s=rng.uniform(4 * MINUTE, 25 * MINUTE) if slow else rng.uniform(10, 180),
        boot=boot,
        lies=bad(0.15),
        life_s=life_s,
        loss=loss,
        surcharge=1.4 if bait else 1.0,
        worker_s=None if bad(0.05) else rng.uniform(5, 60),
        frequent_failures=rng.random() < 0.1,
        download_mbps=rng.choice((200.0, 1000.0, 5000.0)),
        changes=changes,
    )


def _change(rng: Random, ceiling: float) -> tuple[float, float | None, bool | None]:
    price = round(ceiling * rng.choice((0.7, 0.9, 1.0, 1.05, 1.5)), 2) if rng.random() < 0.5 else None
    return rng.uniform(0, 2 * HOUR), price, None if price else rng.random() < 0.4


def _stages(rng: Random, harsh: float) -> tuple[StagePlan, ...]:
    names = rng.choice((("sft",), ("rl",), ("sft", "rl")))
    long = rng.random() < 0.08  # longer than the end that comes with a rent: somebody must have pushed it forward
    worst = ("crashed", "failed", "killed", "hangs", "well", "well")
    return tuple(
        StagePlan(
            name=name,
            iterations=rng.randint(4, 20),
            iteration_s=rng.uniform(300, 600) if long else rng.choice((10.0, 20.0, 40.0)),
            save_every=rng.choice((2, 5, 10)),
            ends=tuple(rng.choice(worst) for _ in range(_some(rng, 0.5 * harsh))),
        )
        for name in names
    )


def _window(rng: Random, span_s: float, kinds: tuple[str, ...], targets: tuple[str, ...]) -> Window:
    start = rng.uniform(0, span_s) if rng.random() < 0.6 else rng.uniform(0, 60)
    length = min(rng.expovariate(1 / (4 * MINUTE)) + 10, 40 * MINUTE)
    return Window(start, start + length, rng.choice(kinds), rng.choice(targets), rng.choice((0.3, 1.0, 1.0)))


def _outage(rng: Random, span_s: float) -> Window:
    """The network of the machine that steers is gone: nothing answers it, and SSH comes back last."""
    start = rng.uniform(0, span_s)
    return Window(start, start + rng.uniform(10, 5 * MINUTE), "down", "all", 1.0)


def _call_fault(rng: Random) -> CallFault:
    if rng.random() < 0.4:
        return CallFault(rng.choice(CRITICAL), rng.randint(1, 4), rng.choice(LIUM_TROUBLE), rng.random() < 0.5)
    return CallFault("all", rng.randint(1, rng.choice((30, 300))), rng.choice(LIUM_TROUBLE), rng.random() < 0.5)


def _lost_rents(rng: Random, harsh: float) -> tuple[Window, ...]:
    """The first rents get no answer, and nobody knows whether they were carried out."""
    if rng.random() > 0.2 * harsh:
        return ()
    kind = rng.choice(("lost", "timeout", "5xx", "connection"))
    return (Window(0.0, rng.uniform(10, 5 * MINUTE), kind, "rent", rng.choice((0.5, 1.0))),)


def _deaths(rng: Random, span_s: float, harsh: float) -> tuple[Death, ...]:
    deaths: list[Death] = []
    while rng.random() < 0.5 * min(harsh, 1.3) and len(deaths) < 4:
        soon = rng.choice((rng.uniform(1, 20), rng.uniform(1, 60), rng.uniform(60, 900), rng.uniform(0, 2 * HOUR)))
        if rng.random() < 0.03:
            soon = rng.uniform(20 * HOUR, 30 * HOUR)  # Lium forgets a rent's key after a day
        again = None if rng.random() < 0.15 else soon
        how = rng.choice(("clock", "clock", "call", "call", "critical"))
        target, call = "all", None
        if how == "call":
            call = rng.choice((rng.randint(1, 30), rng.randint(1, 100), rng.randint(1, 400), rng.randint(1, 4000)))
        elif how == "critical":
            target, call = rng.choice(CRITICAL), rng.randint(1, 3)
        after_s = rng.uniform(0, span_s) if how == "clock" else None
        deaths.append(Death(target, call, after_s, rng.random() < 0.6, again))
    return tuple(deaths)
