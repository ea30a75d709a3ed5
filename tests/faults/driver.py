"""Runs one schedule to its end: starts the flow, starts it again when it was killed, lets the dead-man time pass.

What is started is a parameter: trainstack's own steering code (`product.py`), or a pipeline with a guard left out.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.invariants import Ending, Violation
from tests.faults.machines import HOUR
from tests.faults.plan import Schedule
from tests.faults.virtual_clock import START, Killed, Process
from tests.faults.world import World

Flow = Callable[[World, Process], Ending]
"""One start of the flow in a world; returns how it ended, raises Killed when it was killed."""
Reap = Callable[[World, Process], bool]
"""One pass of `reap-pods` by a process of its own; False when it could not be carried out."""

LONGEST_S = 100 * HOUR
LATE_POD_S = 60.0
REAP_AGAIN_S = 1200.0
MOST_PASSES = 8


@dataclass(frozen=True)
class Outcome:
    """What came of one schedule. real_s is not part of it: that depends on the machine."""

    seed: int
    rents: int
    kills: int
    endings: tuple[str, ...]
    virtual_s: float
    calls: int
    violations: tuple[Violation, ...]
    tail: tuple[str, ...]


def carry_out(plan: Schedule, flow: Flow, reap: Reap | None = None) -> Outcome:
    """Let one schedule happen."""
    return carry_out_in(World(plan), flow, reap)


def carry_out_in(world: World, flow: Flow, reap: Reap | None = None) -> Outcome:
    """Let one schedule happen in a world made for it."""
    plan, endings = world.plan, []
    if reap is not None and plan.reap_every_s is not None:
        _reap_regularly(world, reap, plan.reap_every_s)
    again_after_s: float | None = 0.0
    while again_after_s is not None:
        world.clock.sleep(again_after_s)
        process = world.start_process()
        ending = _one_start(world, process, flow)
        endings.append("KILLED" if ending is None else ending.state)
        if world.clock.monotonic() > LONGEST_S:
            world.watch.never_ended()
            break
        again_after_s = world.starts_again_after_s(process)
    over_at = world.clock.now()
    world.clock.sleep(max(plan.dead_man_minutes * 60.0, 0.0 if reap is not None else HOUR) + LATE_POD_S)
    if reap is not None and world.watch.living():
        _reap_to_the_end(world, reap)
    world.watch.all_over()
    return Outcome(
        seed=plan.seed,
        rents=world.watch.rents,
        kills=sum(process.killed for process in world.processes),
        endings=tuple(endings),
        virtual_s=over_at - START,
        calls=sum(process.calls for process in world.processes),
        violations=tuple(world.watch.violations),
        tail=tuple(world.tail()) if world.watch.violations else (),
    )


def _one_start(world: World, process: Process, flow: Flow) -> Ending | None:
    """How this start ended; None: it was killed."""
    world.clock.at(START + LONGEST_S, process.kill)
    ending = None
    try:
        ending = flow(world, process)
    except Killed:
        assert process.killed, "only the world kills"
    except Exception as error:
        ending = Ending("RAISED", f"{type(error).__name__}: {error}")
    if process.alive:
        process.end()
    world.note("flow", f"{ending.state}: {ending.message}" if ending else "killed")
    world.endings.append(ending)
    world.watch.flow_over(process, ending)
    return ending


def _reap_once(world: World, reap: Reap) -> bool:
    reaper = Process(world.clock)
    try:
        return reap(world, reaper)
    finally:
        reaper.end()


def _reap_to_the_end(world: World, reap: Reap) -> None:
    """The first pass finds out that the run is dead, the second ends its pods; passes that fail do not count."""
    passes = 0
    for _ in range(MOST_PASSES):
        passes += _reap_once(world, reap)
        if passes == 2:
            return
        world.clock.sleep(REAP_AGAIN_S)


def _reap_regularly(world: World, reap: Reap, every_s: float) -> None:
    def turn() -> None:
        _reap_once(world, reap)
        world.clock.after(every_s, turn)

    world.clock.after(every_s, turn)
