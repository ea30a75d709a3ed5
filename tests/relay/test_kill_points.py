"""Whatever dies, wherever it dies: what the next attempt takes is whole, and is the newest that was published.

`make faults` runs more of the same; here are enough for every change. A seed brings a breach back:

    .venv/bin/python -m tests.relay.part kill folder <seed> <points>
"""

import pytest

from tests.relay.figures import KILL_POINTS
from tests.relay.part import run_part

SEED = 1
ACTORS = {"claim", "restore", "rescue", "writer", "sealer", "upload", "retention", "damage"}


@pytest.mark.parametrize(("kind", "points"), [("folder", 65), ("volume", 50), ("s3", 11), ("hub", 11)])
def test_a_death_at_any_step_leaves_the_newest_checkpoint_whole_and_the_next_attempt_gets_through(
    kind: str, points: int
) -> None:
    figures = run_part("kill", kind, SEED, points)
    assert figures.breaches == []
    assert figures.counts[KILL_POINTS] >= points
    died = set(figures.kinds)
    if points < 50:  # so few that the upload's only death may be the one at its pointer
        died |= {"upload"} if "pointer" in died else set()
    else:
        assert "pointer" in died
    assert died >= ACTORS


@pytest.mark.parametrize("pair", ["folder+folder", "volume+folder"])
def test_a_store_that_was_silent_never_brings_back_the_line_that_was_left_behind(pair: str) -> None:
    figures = run_part("returning", pair, SEED, 14)
    assert figures.breaches == []
    assert figures.counts[KILL_POINTS] == 14
