"""What a pod's disk must hold, known before the first checkpoint."""

from types import SimpleNamespace
from typing import Any

import pytest

from blocks.recipe import Recipe
from plugins.errors import StoreError
from plugins.lium.preflight_rows import Limits, Said, _disk_space
from tasks.checkpoint_size import BYTES_PER_PARAMETER, checkpoint_gb, parameters_of


def recipe(**model: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", "model": model, "sft": {"data": "x.jsonl", "num_rollout": 2}})


@pytest.mark.parametrize(("name", "billions"), [("qwen3-4B", 4.0), ("qwen2.5-0.5B", 0.5), ("qwen3-30B-A3B", 30.0)])
def test_a_model_is_as_large_as_its_name_says(name: str, billions: float) -> None:
    assert parameters_of(recipe(name=name)) == billions * 1e9


def test_a_shape_counts_more_than_a_name() -> None:
    args = {"num-layers": 2, "hidden-size": 10, "ffn-hidden-size": 20, "vocab-size": 100}
    assert parameters_of(recipe(name="qwen3-4B", args=args)) == 2 * (400 + 600) + 2 * 100 * 10


def test_an_unknown_model_is_not_guessed() -> None:
    assert parameters_of(recipe()) is None and parameters_of(recipe(name="mine")) is None


class Store:
    def __init__(self, newest: Any) -> None:
        self.newest = newest

    def latest(self, _run_id: str, _stage: str) -> Any:
        if isinstance(self.newest, Exception):
            raise self.newest
        return self.newest


def test_a_checkpoint_in_the_store_counts_more_than_an_estimate() -> None:
    run: Any = SimpleNamespace(run_id="r", recipe=recipe(name="qwen3-4B"), store=Store(SimpleNamespace(size_bytes=7e9)))
    assert checkpoint_gb(run) == 7.0
    for silent in (None, StoreError("down")):
        run.store = Store(silent)
        assert checkpoint_gb(run) == 4 * BYTES_PER_PARAMETER


@pytest.mark.parametrize(("free_gb", "ok"), [(130, True), (120, False)])
def test_a_disk_that_cannot_hold_two_checkpoints_fails_with_the_size_that_is_needed(free_gb: int, ok: bool) -> None:
    limits = Limits(gpu=("H200",), gpu_count=1, min_disk_gb=50, checkpoint_gb=64)
    row = _disk_space({"disk": Said(f"{free_gb * 10**9} /root")}, limits)
    assert (row.ok, row.limit) == (ok, "at least 128 GB (2 checkpoints of 64 GB)")
