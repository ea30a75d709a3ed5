"""The whole relay suite at any size, its parts side by side: what `make faults` runs after the steering code."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

from tests.relay.figures import STALE, Figures
from tests.relay.part import run_part

SHARES = {"folder": 0.38, "volume": 0.3, "s3": 0.08, "hub": 0.06}
PAIRS = {"folder+folder": 0.06, "folder+volume": 0.06, "volume+folder": 0.06}
SPLITS = {"folder": 100, "volume": 60, "s3": 10, "hub": 6}
CHUNK = 3
Part = tuple[object, ...]


def parts(seed: int, points: int, losses: int) -> list[Part]:
    """Names and arguments of all parts, the longest first."""
    chunks = range(seed, seed + losses, CHUNK)
    todo: list[Part] = [
        *(("losses", first, min(CHUNK, seed + losses - first)) for first in chunks),
        *(("kill", kind, seed, share(points, part)) for kind, part in reversed(SHARES.items())),
        *(("returning", pair, seed, share(points, part)) for pair, part in PAIRS.items()),
        *(("split", kind, seed, count) for kind, count in SPLITS.items()),
        *(("stages", kind) for kind in SPLITS),
    ]
    return todo if points else todo[: len(chunks)]


def share(points: int, part: float) -> int:
    """So many of all points, rounded up."""
    return -(-round(points * part * 1000) // 1000)


def results(todo: list[Part], workers: int) -> Iterator[Figures]:
    """The figures of each part, as they come; a part that cannot be carried out counts as a breach."""
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(run_part, str(part[0]), *part[1:]): part for part in todo}
        for done in as_completed(running):
            try:
                yield done.result()
            except RuntimeError as error:
                failed = Figures()
                failed.breach(STALE, f"{running[done]}: {error}")
                yield failed
