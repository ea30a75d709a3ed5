"""When and how an attempt is lost, drawn from a seed.

pod       everything is killed at once; the next attempt has an empty pod
reboot    the same, but the next attempt finds the disk again
engine    only the stage engine is killed, its trainer trains on until the next attempt stops it
trainer   only the trainer is killed; its stage seals what is complete and ends
notice    the stage is told to end (SIGTERM), then the pod is gone or stays
"""

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["pod", "reboot", "engine", "trainer", "notice"]
KINDS: tuple[Kind, ...] = ("pod", "pod", "reboot", "engine", "trainer", "notice")
TRIGGERS = ("batch", "batch", "batch", "saving", "tracker", "sealed", "durable", "start")


@dataclass(frozen=True)
class Fate:
    """The first `trigger` (or `batches` trained batches), and `delay_s` later, the loss."""

    kind: Kind
    trigger: str
    batches: int
    delay_s: float
    keeps_disk: bool


@dataclass(frozen=True)
class Losses:
    """One schedule. stores: how many. silent: attempt during which the last store is silent, and seconds it is."""

    seed: int
    stage: Literal["sft", "rl"]
    save_interval: int
    asynchronous: bool
    stores: int
    silent: tuple[int, float] | None
    fates: tuple[Fate, ...]


def losses(seed: int) -> Losses:
    """The schedule of a seed."""
    rng = random.Random(f"losses/{seed}")
    stores = rng.choice((1, 1, 2))
    fates = tuple(_fate(rng) for _ in range(rng.randint(2, 4)))
    return Losses(
        seed=seed,
        stage="rl" if seed % 6 == 5 else "sft",
        save_interval=rng.randint(1, 4),
        asynchronous=rng.random() < 0.3,
        stores=stores,
        silent=(rng.randint(1, len(fates)), rng.uniform(0.5, 4)) if stores > 1 else None,
        fates=fates,
    )


def _fate(rng: random.Random) -> Fate:
    kind = rng.choice(KINDS)
    keeps_disk = kind in ("reboot", "engine") or (kind in ("trainer", "notice") and rng.random() < 0.5)
    return Fate(kind, rng.choice(TRIGGERS), rng.randint(1, 6), rng.uniform(0, 0.1), keeps_disk)
