"""What travels through Prefect: it survives JSON, and what is not ours is not taken for ours."""

import json
import math

import pytest
from pydantic import ValidationError

from blocks.recipe import Recipe
from tasks.artifacts import picture, table_data
from tasks.stage_contract import (
    Heartbeat,
    InitFrom,
    StageOrder,
    StageResult,
    artifact_key,
    parse_heartbeat,
    stage_tags,
)

BEAT = Heartbeat(stage="rl", attempt=2, phase="train", iteration=3, of=8, loss=0.5, reward=0.25, sealed=3, durable=1)
RECIPE = Recipe.model_validate({"name": "small", "sft": {"data": "/d.jsonl", "num_rollout": 2}})


def test_an_order_survives_the_way_through_flow_parameters() -> None:
    order = StageOrder(
        run_id="r-1",
        stage="rl",
        attempt=3,
        pod="ts-r-1-rl-a1",
        recipe=RECIPE,
        data_path="/data",
        data_rows=4,
        init=InitFrom(run_id="r-1", stage="sft", iteration=7),
        lineage={"git_commit": "abc"},
    )
    assert StageOrder.model_validate(json.loads(json.dumps(order.model_dump(mode="json")))) == order


def test_attempts_count_from_one_because_they_are_fencing_tokens() -> None:
    with pytest.raises(ValidationError, match="attempt"):
        StageOrder(run_id="r", stage="sft", attempt=0, pod="p", recipe=RECIPE)


def test_a_result_survives_the_way_through_a_state_message() -> None:
    result = StageResult(
        run_id="r",
        stage="sft",
        attempt=1,
        outcome="completed",
        first_iteration=0,
        last_iteration=7,
        checkpoint_uri="folder:/s/r/sft/iter_0000007",
        first={"loss": 2.0},
        last={"loss": 1.0},
        seconds={"train": 3.5},
    )
    assert StageResult.model_validate_json(result.model_dump_json()) == result


def test_a_heartbeat_is_read_back_from_the_table_it_is_stored_in() -> None:
    row = BEAT.model_dump(mode="json")
    assert parse_heartbeat(table_data([row])) == BEAT
    assert parse_heartbeat([row]) == BEAT


@pytest.mark.parametrize("data", [None, "", "[]", "{}", "not json", [], [1], '[{"stage": "sft"}]', 3.0])
def test_what_is_no_heartbeat_is_none(data: object) -> None:
    assert parse_heartbeat(data) is None


def test_a_figure_that_is_not_a_number_becomes_null_in_a_table() -> None:
    beat = BEAT.model_copy(update={"loss": math.nan})
    read = parse_heartbeat(table_data([beat.model_dump()]))
    assert read is not None and read.loss is None


def test_tags_and_keys_name_run_stage_and_attempt() -> None:
    assert stage_tags("r-1", "sft", 2) == ["run:r-1", "stage:sft", "attempt:2"]
    assert artifact_key("r-1", "sft", "curves") == "r-1-sft-curves"


def test_a_picture_is_carried_inside_its_markdown() -> None:
    assert picture(b"\x89PNG", "loss") == "![loss](data:image/png;base64,iVBORw==)"
