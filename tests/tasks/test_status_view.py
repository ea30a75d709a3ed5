"""`trainstack status` for people: every figure of the JSON stands in the tables, unknown ones leave a gap."""

import io
from typing import Any

from rich.console import Console, RenderableType

from tasks.status_view import runs_table, status_view

UNKNOWN = {"first": None, "last": None}
STAGE: dict[str, Any] = {
    "stage": "sft",
    "state": "Running",
    "attempts": 2,
    "last_iteration": 4,
    "of": 12,
    "loss": {"first": None, "last": 1.25},
    "reward": UNKNOWN,
    "checkpoint": 3,
    "store_uri": None,
}
POD = {"name": "ts-r-sft-a1", "state": "RUNNING", "gpu": "1x NVIDIA H200", "price_per_hour": 1.89, "cost_usd": 0.0123}
RUN: dict[str, Any] = {
    "run_id": "r-1",
    "state": "Running",
    "message": None,
    "cost_usd": 0.0123,
    "stages": [STAGE],
    "pods": [POD],
}


def shown(view: RenderableType) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text()


def test_a_run_shows_its_stages_and_pods() -> None:
    text = shown(status_view(RUN))
    for words in ("run r-1", "Running", "$0.0123", "5/12", "1.250", "iteration 3 durable", "ts-r-sft-a1", "1.89"):
        assert words in text


def test_a_finished_stage_shows_the_way_of_its_loss_and_where_the_checkpoint_is() -> None:
    done = {**STAGE, "state": "Completed", "loss": {"first": 2.0, "last": 1.0}, "store_uri": "folder:/s/iter_0000011"}
    text = shown(status_view({**RUN, "stages": [done]}))
    assert "2.000 → 1.000" in text and "folder:/s/iter_0000011" in text


def test_a_failed_run_shows_why_also_with_brackets_in_the_text() -> None:
    text = shown(status_view({**RUN, "state": "Failed", "message": "bad file [/tmp/x] and [red]"}))
    assert "bad file [/tmp/x] and [red]" in text


def test_what_is_not_known_leaves_a_gap() -> None:
    empty = {**STAGE, "last_iteration": None, "of": None, "loss": UNKNOWN, "checkpoint": None, "state": None}
    pod = {**POD, "price_per_hour": None, "cost_usd": None}
    text = shown(status_view({**RUN, "state": None, "stages": [empty], "pods": [pod]}))
    assert "unknown" in text and "None" not in text


def test_the_list_of_runs() -> None:
    rows = [{"run_id": "r-1", "state": "Completed", "started_at": "2030-01-01T00:00:00+00:00"}]
    assert "r-1" in shown(runs_table([*rows, {"run_id": "r-2", "state": None, "started_at": None}]))
    assert "no runs yet" in shown(runs_table([]))
