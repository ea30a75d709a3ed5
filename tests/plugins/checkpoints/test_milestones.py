"""Milestones follow from the manifests and the rule, on every machine alike."""

import pytest

from plugins.checkpoints.manifest import FileEntry, Manifest
from plugins.checkpoints.milestones import MilestoneRule, lower_is_better, milestones


def manifest(iteration: int, **metrics: float) -> Manifest:
    entry = FileEntry(path=f"iter_{iteration:07d}/w", size_bytes=1, sha256="0" * 64)
    return Manifest(
        run_id="r", stage="rl", iteration=iteration, attempt=1, token=1, kind="plain", files=(entry,), metrics=metrics
    )


def test_without_a_rule_nothing_is_a_milestone() -> None:
    assert milestones([manifest(19)], MilestoneRule()) == {}


def test_an_interval_counts_iterations_from_one() -> None:
    found = milestones([manifest(number) for number in (9, 19, 29, 39)], MilestoneRule(interval=20))
    assert found == {19: "every 20 iterations", 39: "every 20 iterations"}


@pytest.mark.parametrize(
    ("figure", "values", "best"),
    [
        ("reward", {9: 0.1, 19: 0.7, 29: 0.5}, 19),
        ("loss", {9: 3.0, 19: 1.5, 29: 2.0}, 19),
        ("reward", {9: 1, 19: 1}, 19),
    ],
)
def test_the_best_value_of_a_figure_marks_one_and_the_later_of_equals(figure, values, best) -> None:
    found = milestones([manifest(n, **{figure: value}) for n, value in values.items()], MilestoneRule(best=figure))
    assert list(found) == [best] and f"best {figure}" in found[best]


def test_a_checkpoint_without_the_figure_is_never_the_best() -> None:
    assert milestones([manifest(9)], MilestoneRule(best="reward")) == {}


def test_the_end_of_the_stage_is_one_once_it_is_there() -> None:
    rule = MilestoneRule(last=29)
    assert milestones([manifest(19)], rule) == {}
    assert milestones([manifest(19), manifest(29)], rule) == {29: "end of the stage"}


def test_losses_are_better_when_lower_and_rewards_when_higher() -> None:
    assert lower_is_better("eval/perplexity") and lower_is_better("train/loss") and not lower_is_better("eval/aime")
