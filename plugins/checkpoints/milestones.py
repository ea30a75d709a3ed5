"""Which checkpoints are milestones: kept for good, and pushed to the Hub when the recipe says so.

A milestone is worked out from the manifests there are and the rule, never remembered elsewhere: what decides (the
iteration, its figures) is in each manifest, so every attempt and every machine comes to the same answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from plugins.checkpoints.manifest import Manifest

LOWER_IS_BETTER = ("loss", "perplexity", "error", "kl")


@dataclass(frozen=True)
class MilestoneRule:
    """interval: every so many iterations (iteration + 1 divides by it). best: name of the figure whose best value marks
    one, e.g. `reward` or `eval/aime`; loss-like names are better when lower. last: the stage's last iteration number.
    """

    interval: int | None = None
    best: str | None = None
    last: int | None = None


def milestones(manifests: Sequence[Manifest], rule: MilestoneRule) -> dict[int, str]:
    """Iterations that are milestones, with the reason in words."""
    found: dict[int, str] = {}
    for manifest in manifests:
        if rule.interval and (manifest.iteration + 1) % rule.interval == 0:
            found[manifest.iteration] = f"every {rule.interval} iterations"
    if rule.best and (best := _best(manifests, rule.best)) is not None:
        value = best.metrics[rule.best]
        found[best.iteration] = f"best {rule.best} so far ({value:g})"
    if rule.last is not None and any(manifest.iteration == rule.last for manifest in manifests):
        found[rule.last] = "end of the stage"
    return found


def lower_is_better(figure: str) -> bool:
    """Whether a smaller value of this figure is the better one, by its name."""
    return any(word in figure.lower() for word in LOWER_IS_BETTER)


def _best(manifests: Iterable[Manifest], figure: str) -> Manifest | None:
    known = [manifest for manifest in manifests if figure in manifest.metrics]
    sign = -1.0 if lower_is_better(figure) else 1.0
    return max(known, key=lambda one: (sign * one.metrics[figure], one.iteration), default=None)
