"""Two attempts are alive at once: only the newer one publishes, and the older one is told and ends.

.venv/bin/python -m tests.relay.part split folder <seed> <schedules>
"""

import pytest

from tests.relay.part import run_part

SEED = 1


@pytest.mark.parametrize(("kind", "schedules"), [("folder", 60), ("volume", 40), ("s3", 2), ("hub", 2)])
def test_nothing_of_an_older_attempt_becomes_visible_after_a_newer_one_has_claimed(kind: str, schedules: int) -> None:
    figures = run_part("split", kind, SEED, schedules)
    assert figures.breaches == []
    assert figures.kinds[f"split {kind}"] == schedules


@pytest.mark.parametrize("kind", ["folder", "volume", "s3"])
def test_the_stage_of_an_older_attempt_ends_as_fenced_with_its_trainer_stopped(kind: str) -> None:
    figures = run_part("stages", kind)
    assert figures.breaches == []
    assert figures.kinds[f"split stages {kind}"] == 1
