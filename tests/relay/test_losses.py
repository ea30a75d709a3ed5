"""A run that loses its pod again and again ends with the weights of one that did not, and trains every batch once.

.venv/bin/python -m tests.relay.part losses <seed> 1
"""

import json
from pathlib import Path

from tests.relay.lineage import Batches, read_batches
from tests.relay.part import run_part

SEED = 1


def test_a_run_that_loses_its_pods_trains_every_batch_once_and_ends_with_the_same_weights() -> None:
    figures = run_part("losses", SEED, 1)
    assert figures.breaches == []
    assert sum(number for kind, number in figures.kinds.items() if kind.startswith("lost")) >= 2


def batches(folder: Path, *lines: tuple[int, int, list[int]], restored: dict[int, int | None]) -> Batches:
    """The kept batches of a log; each line: attempt, rollout, numbers of its prompts (rows are the same here)."""
    log = folder / "batches.jsonl"
    records = ({"attempt": str(one), "rollout": number, "rows": rows, "groups": rows} for one, number, rows in lines)
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_batches(log, restored)


def uncut(folder: Path) -> Batches:
    return batches(folder, (1, 0, [0, 1]), (1, 1, [2, 3]), (1, 2, [4, 5]), restored={1: None})


def test_batches_that_were_given_up_and_trained_again_count_once(tmp_path: Path) -> None:
    lines = [(1, 0, [0, 1]), (1, 1, [2, 3]), (2, 1, [2, 3]), (2, 2, [4, 5])]
    kept = batches(tmp_path, *lines, restored={1: None, 2: 0})
    assert (kept.lost(uncut(tmp_path)), kept.repeated(uncut(tmp_path)), kept.backwards) == ([], [], "")


def test_a_resume_that_begins_its_data_anew_is_seen(tmp_path: Path) -> None:
    lines = [(1, 0, [0, 1]), (2, 1, [0, 1]), (2, 2, [2, 3])]
    kept = batches(tmp_path, *lines, restored={1: None, 2: 0})
    assert kept.lost(uncut(tmp_path)) == [2]
    assert kept.repeated(uncut(tmp_path)) == [0, 1, 2]


def test_a_resume_that_skips_a_batch_is_seen(tmp_path: Path) -> None:
    kept = batches(tmp_path, (1, 0, [0, 1]), (2, 2, [4, 5]), restored={1: None, 2: 1})
    assert kept.lost(uncut(tmp_path)) == [1]
    assert kept.backwards == "attempt 2 started from 1, which was not trained before"


def test_a_batch_that_one_attempt_trains_twice_is_seen(tmp_path: Path) -> None:
    lines = [(1, 0, [0, 1]), (1, 1, [2, 3]), (1, 1, [2, 3]), (1, 2, [4, 5])]
    kept = batches(tmp_path, *lines, restored={1: None})
    assert (kept.lost(uncut(tmp_path)), kept.repeated(uncut(tmp_path))) == ([], [1])
