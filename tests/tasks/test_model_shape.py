"""A checkpoint of another architecture is never offered to a trainer; other settings of the model may change."""

import json
from typing import Any

import pytest

from blocks.recipe import Recipe
from plugins.checkpoints.manifest import FileEntry, Manifest
from plugins.errors import UserError
from tasks.model_shape import SHAPE, check_same_model, shape_of


def recipe(**args: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", "model": {"args": args}, "sft": {"data": "x", "num_rollout": 1}})


def checkpoint(shape: str | None) -> Manifest:
    entry = FileEntry(path="iter_0000019/w", size_bytes=1, sha256="0" * 64)
    lineage = {} if shape is None else {SHAPE: shape}
    names = {"run_id": "r", "stage": "sft", "iteration": 19, "attempt": 1, "token": 1, "kind": "plain"}
    return Manifest(**names, files=(entry,), lineage=lineage)


def test_another_width_is_named_with_both_values_and_the_remedy() -> None:
    before = checkpoint(shape_of(recipe(**{"hidden-size": 32, "num-layers": 2})))
    with pytest.raises(
        UserError, match=r"go on from iteration 19 of r/sft.*hidden-size is 32 there, 64 in.*Use a new id"
    ):
        check_same_model(before, recipe(**{"hidden-size": 64, "num-layers": 2}), "it would go on from", "Use a new id.")


@pytest.mark.parametrize("shape", [None, json.dumps({"name": None, "hidden-size": 32, "seq-length": 64})])
def test_a_sequence_length_may_change_and_an_old_manifest_says_nothing(shape: str | None) -> None:
    check_same_model(checkpoint(shape), recipe(**{"hidden-size": 32, "seq-length": 128}), "it", "")
