"""`python -m tests.faults`: trainstack's steering code through random fault schedules, then its relay, at any size.

SCHEDULES (1000) says how many, SEED (1) where they begin, WORKERS (2) how many processes share them. A line sums up;
before it stand the breaches, each with the seed that brings it back:

    SCHEDULES=1 SEED=<seed> python -m tests.faults

Then the relay (`tests/relay`): KILL_POINTS (600) is how often a writer, sealer, uploader, restore or retention is
killed, LOSSES (12) how many runs lose their pods, with two attempts alive at once besides. The last line sums it up.
"""

import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.faults import product
from tests.faults.driver import Outcome, carry_out
from tests.faults.invariants import COUNTED
from tests.faults.schedules import schedule
from tests.faults.virtual_clock import START
from tests.relay.figures import Figures
from tests.relay.run import parts, results

CHUNK = 10
MOST_SHOWN = 20


def one(seed: int) -> Outcome:
    """The product in one schedule."""
    return carry_out(schedule(seed), product.flow, product.reap)


def outcomes(seeds: range, workers: int) -> Iterator[Outcome]:
    """All outcomes, as they come."""
    if workers == 1:
        yield from map(one, seeds)
        return
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield from pool.imap_unordered(one, seeds, CHUNK)


def summary(found: list[Outcome]) -> str:
    """The one line that sums up. A schedule counts once for each invariant it breaches."""
    counts = _breached(found)
    figures = {"schedules": len(found), "rents": sum(o.rents for o in found), "kills": sum(o.kills for o in found)}
    figures |= {name: counts[name] for name in COUNTED}
    return " ".join(f"{name}={value}" for name, value in figures.items())


def show(outcome: Outcome) -> None:
    """A breach with the journal's end."""
    for violation in outcome.violations:
        print(f"seed {outcome.seed}: {violation.invariant} at {violation.at - START:.1f} s: {violation.text}")
    print("\n".join(f"    {line[:200]}" for line in outcome.tail), flush=True)


def main() -> int:
    """Run them all; 1 when an invariant was breached."""
    first, workers = int(os.environ.get("SEED", "1")), int(os.environ.get("WORKERS", "2"))
    steering = steer(int(os.environ.get("SCHEDULES", "1000")), first, workers)
    relay = relayed(first, workers)
    return 1 if steering or relay.bad else 0


def relayed(first: int, workers: int) -> Figures:
    """The relay part; prints its line."""
    todo = parts(first, int(os.environ.get("KILL_POINTS", "600")), int(os.environ.get("LOSSES", "12")))
    total = Figures()
    with _bar("relay") as progress:
        bar = progress.add_task("", total=len(todo))
        for figures in results(todo, workers):
            total.add(figures)
            progress.advance(bar)
    for breach in total.breaches[:MOST_SHOWN]:
        print(breach)
    print("relay: " + ", ".join(f"{number} {what}" for what, number in sorted(total.kinds.items())))
    print(total.line())
    return total


def steer(count: int, first: int, workers: int) -> int:
    """The steering code; prints its line and gives the number of schedules with a breach."""
    workers = min(workers, count)
    found = []
    bad = 0
    with _bar("fault schedules") as progress:
        bar = progress.add_task("", total=count)
        for outcome in outcomes(range(first, first + count), workers):
            found.append(outcome)
            progress.advance(bar)
            bad += bool(outcome.violations)
            if outcome.violations and bad <= MOST_SHOWN:
                show(outcome)
    endings = Counter(outcome.endings[-1].lower() for outcome in found)
    print("ended: " + ", ".join(f"{number} {state}" for state, number in endings.most_common()))
    others = {name: number for name, number in _breached(found).items() if name not in COUNTED}
    if others:
        print("also breached: " + ", ".join(f"{name}={number}" for name, number in others.items()))
    print(summary(found), flush=True)
    return bad


def _bar(title: str) -> Progress:
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), redirect_stdout=False)


def _breached(found: list[Outcome]) -> Counter[str]:
    return Counter(name for outcome in found for name in {violation.invariant for violation in outcome.violations})


if __name__ == "__main__":
    sys.exit(main())
