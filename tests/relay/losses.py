"""Losses in earnest: the real stage and the real stand-in trainer as processes, killed again and again until done.

At the end the weights must be those of a run that nobody cut, bit for bit, and the trainer's own log of batches must
show each batch once: see `lineage`. To be run in a process of its own, because `engines` forks.
"""

from dataclasses import dataclass
from pathlib import Path

from plugins.checkpoints.stores.folder import FolderStore
from plugins.slime import layout
from tests.relay.engines import ROLLOUTS, RUN, Relay, lines_of
from tests.relay.fates import Losses, losses
from tests.relay.figures import LOST, REPEATED, STALE, Figures
from tests.relay.lineage import Batches, read_batches


def weights_of(relay: Relay) -> bytes:
    """The export of the last checkpoint, from the first store that has it."""
    for root in relay.stores:
        store, last = FolderStore(root), ROLLOUTS[relay.plan.stage] - 1
        for manifest in store.list(RUN, relay.plan.stage):
            if manifest.iteration == last:
                target = relay.folder / "weights"
                store.get(manifest, target, only=lambda path: path.startswith("hf/"))
                return (layout.export_dir(target, last) / "model.safetensors").read_bytes()
    return b""


@dataclass(frozen=True)
class Uncut:
    """What a run gives that nobody cuts."""

    weights: bytes
    batches: Batches


def uncut(stage: str, folder: Path) -> Uncut:
    """Train without any loss."""
    calm = Losses(0, stage, 4, False, 1, None, ())  # type: ignore[arg-type]
    relay = Relay(folder, calm)
    if not relay.run():
        raise RuntimeError(f"an uncut run does not end well: {relay.log}\n{(folder / 'said-1.txt').read_text()}")
    true = Uncut(weights_of(relay), read_batches(relay.batches, {1: None}))
    if not true.weights or len(true.batches.kept) != ROLLOUTS[stage]:
        raise RuntimeError(f"an uncut run left {len(true.weights)} bytes, batches {sorted(true.batches.kept)}")
    return true


def compare(relay: Relay, complete: bool, true: Uncut, figures: Figures) -> None:
    """Count what differs from the uncut run."""
    told = f"[losses {relay.plan.seed}, {relay.plan}] {'; '.join(relay.log)}"
    if not complete:
        figures.breach(LOST, f"{told}: never complete\n{_last_words(relay)}")
        return
    restored = {beat.attempt: beat.restored for beat in relay.heard()}
    kept = read_batches(relay.batches, restored)
    lost, repeated = kept.lost(true.batches), kept.repeated(true.batches)
    if lost:
        figures.breach(LOST, f"{told}: batches {lost} are not in the run that was kept", len(lost))
    if repeated:
        figures.breach(REPEATED, f"{told}: batches {repeated} were trained on other rows or twice", len(repeated))
    if weights_of(relay) != true.weights:
        figures.breach(LOST, f"{told}: the weights are not those of the uncut run")
    if kept.backwards:
        figures.breach(STALE, f"{told}: {kept.backwards}")


def _last_words(relay: Relay) -> str:
    return "\n".join(lines_of(relay.folder / f"said-{relay.attempt}.txt")[-8:])


def lose(first: int, count: int, folder: Path) -> Figures:
    """So many schedules from a seed on."""
    figures, true = Figures(), {}
    for seed in range(first, first + count):
        plan = losses(seed)
        if plan.stage not in true:
            true[plan.stage] = uncut(plan.stage, folder / f"uncut-{plan.stage}")
        relay = Relay(folder / f"{seed}", plan)
        compare(relay, relay.run(), true[plan.stage], figures)
        figures.kinds[f"losses {plan.stage}"] += 1
        for line in relay.log:
            figures.kinds[f"lost: {line.split(': ')[1].split()[0]}" if "lost at" in line else "ended"] += 1
    return figures
