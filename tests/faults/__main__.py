"""`python -m tests.faults`: trainstack's steering code through random fault schedules, at any size.

SCHEDULES (1000) says how many, SEED (1) where they begin, WORKERS (2) how many processes share them. The last line
sums up; before it stand the breaches, each with the seed that brings it back:

    SCHEDULES=1 SEED=<seed> python -m tests.faults
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
    count, first = int(os.environ.get("SCHEDULES", "1000")), int(os.environ.get("SEED", "1"))
    workers = min(int(os.environ.get("WORKERS", "2")), count)
    columns = (TextColumn("fault schedules"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    found = []
    bad = 0
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as progress:
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
    print(summary(found))
    return 1 if bad else 0


def _breached(found: list[Outcome]) -> Counter[str]:
    return Counter(name for outcome in found for name in {violation.invariant for violation in outcome.violations})


if __name__ == "__main__":
    sys.exit(main())
