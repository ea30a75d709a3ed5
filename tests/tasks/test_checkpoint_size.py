"""What a pod's disk must hold, known before the first checkpoint."""

from types import SimpleNamespace
from typing import Any

import pytest

from blocks.recipe import Recipe
from plugins.errors import StoreError
from plugins.lium.preflight_rows import Limits, Said, _disk_space
from tasks.checkpoint_size import BYTES_PER_PARAMETER, checkpoint_gb, parameters_of, room_of


def recipe(**model: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", "model": model, "sft": {"data": "x.jsonl", "num_rollout": 2}})


@pytest.mark.parametrize(
    ("name", "billions"), [("qwen3-4B", 4.02), ("qwen2.5-0.5B", 0.494), ("qwen3-30B-A3B", 30.5), ("moonlight", 16.0)]
)
def test_a_model_of_slime_is_as_large_as_its_shape_says_without_slime(name: str, billions: float) -> None:
    assert parameters_of(recipe(name=name)) == pytest.approx(billions * 1e9, rel=0.01)


def test_another_model_is_as_large_as_its_name_says() -> None:
    assert parameters_of(recipe(name="mine-7B")) == 7e9


def test_a_shape_counts_more_than_a_name() -> None:
    args = {"num-layers": 2, "hidden-size": 10, "ffn-hidden-size": 20, "vocab-size": 100}
    assert parameters_of(recipe(name="mine-4B", args=args)) == 2 * (400 + 600) + 2 * 100 * 10
    deeper = parameters_of(recipe(name="qwen3-4B", args={"num-layers": 72}))
    assert deeper == pytest.approx(7.65e9, rel=0.01)


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
    run: Any = SimpleNamespace(run_id="r", recipe=recipe(name="mine-4B"), store=Store(SimpleNamespace(size_bytes=7e9)))
    assert checkpoint_gb(run) == 7.0
    for silent in (None, StoreError("down")):
        run.store = Store(silent)
        assert checkpoint_gb(run) == 4 * BYTES_PER_PARAMETER


def wanted(stages: dict[str, Any], **sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", "model": {"name": "mine-4B"}, **stages, **sections})


LONG = {"sft": {"data": "x.jsonl", "num_rollout": 100, "save_interval": 20}}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({}, "4 checkpoints of 64 GB (mine-4B)"),
        ({"checkpoint": {"keep": 9}}, "5 checkpoints of 64 GB (mine-4B)"),
        ({"checkpoint": {"optimizer": False}}, "4 checkpoints of 16 GB (mine-4B)"),
        ({"pod": {"nodes": 2, "gpu_count": 8}}, "4 checkpoints of 64 GB (mine-4B)"),
        ({"pod": {"nodes": 2, "gpu_count": 8, "shared_dir": "/shared"}}, "None"),
        ({"model": {"name": "mine"}}, "None"),
    ],
)
def test_room_is_for_the_checkpoints_that_there_will_be(sections: dict[str, Any], said: str) -> None:
    assert str(room_of(wanted({**LONG, **sections}))) == said


@pytest.mark.parametrize(
    ("length", "number"),
    [
        ({"num_rollout": 30, "save_interval": 20}, 2),
        ({"num_rollout": 5, "save_interval": 20}, 1),
        ({"num_rollout": 3, "save_interval": "auto"}, 3),
        ({"num_epoch": 1, "save_interval": 20}, 4),
    ],
)
def test_a_stage_makes_one_checkpoint_each_interval_and_the_last(length: dict[str, Any], number: int) -> None:
    room = room_of(wanted({"sft": {"data": "x.jsonl", **length}}))
    assert room and room.number == number


@pytest.mark.parametrize(("free_gb", "ok"), [(130, True), (120, False)])
def test_a_disk_that_cannot_hold_two_checkpoints_fails_with_the_size_that_is_needed(free_gb: int, ok: bool) -> None:
    limits = Limits(gpu=("H200",), gpu_count=1, min_disk_gb=50, checkpoint_gb=64)
    row = _disk_space({"disk": Said(f"{free_gb * 10**9} /root")}, limits)
    assert (row.ok, row.limit) == (ok, "at least 128 GB (2 checkpoints of 64 GB)")
