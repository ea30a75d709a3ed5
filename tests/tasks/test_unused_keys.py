"""Keys that nobody would read are named, wherever they stand; those that are read, or left alone, are not."""

from pathlib import Path
from typing import Any

import pytest

from blocks.recipe import Recipe, parse_recipe
from tasks.check_recipe import check_recipe
from tasks.stage_data import check_evaluation
from tasks.trainer_spec import stage_flags
from tasks.unused_keys import unused_keys, unused_stage_keys


def recipe(kind: str = "slime", **parts: Any) -> Recipe:
    sft = {"data": "/x.jsonl", "num_rollout": 1} | parts.pop("sft", {})
    rl = {"data": "/x.jsonl", "num_rollout": 1, "environment": {"task": "answer"}} | parts.pop("rl", {})
    raw = {"name": "small", "lium": {"base_url": "emulator"}, "trainer": {"kind": kind}, "sft": sft, "rl": rl, **parts}
    return parse_recipe(raw, source="test")


def named(lines: list[str]) -> list[str]:
    return [line.partition(":")[0] for line in lines]


SFT: dict[str, Any] = {
    "rollout": {"batch_size": 4, "temperature": 0.5, "reward": "math"},
    "optimisation": {"lr": 1e-5, "eps_clip": 0.1, "entropy_coef": 0.1},
    "engine": {"mem_fraction": 0.5},
    "evaluation": {"interval": 2, "data": {"a": "/nowhere.jsonl"}},
}


def test_what_an_sft_stage_never_reads_is_named() -> None:
    assert named(unused_stage_keys(recipe(sft=SFT), "sft")) == [
        "sft.rollout.temperature",
        "sft.rollout.reward",
        "sft.engine.mem_fraction",
        "sft.optimisation.eps_clip",
        "sft.optimisation.entropy_coef",
        "sft.evaluation",
    ]


def test_an_sft_stage_with_a_way_of_its_own_to_roll_out_is_not_judged() -> None:
    own = SFT | {"extra_args": {"rollout-function-path": "my.rollout"}}
    assert unused_stage_keys(recipe(sft=own), "sft") == []


def test_an_sft_stage_neither_uploads_evaluation_data_nor_gives_its_flags() -> None:
    plan = recipe(sft=SFT)
    assert check_evaluation(plan, "sft") == {}
    assert [flag for flag in stage_flags(plan, "sft") if "eval" in flag] == []
    assert "eval-interval" in stage_flags(recipe(rl={"evaluation": {"interval": 2}}), "rl")


def test_what_rl_reads_is_not_named() -> None:
    plain = {"rollout": {"temperature": 0.5}, "optimisation": {"kl_loss_type": "k2", "kl_loss_coef": 0.1}}
    assert unused_stage_keys(recipe(rl=plain), "rl") == []
    alone = {"optimisation": {"kl_loss_type": "k2"}}
    assert named(unused_stage_keys(recipe(rl=alone), "rl")) == ["rl.optimisation.kl_loss_type"]


def test_a_command_gets_none_of_the_sections() -> None:
    given = SFT | {"command": "true", "extra_args": {"x": 1}, "parallelism": {"tensor": 2}}
    assert named(unused_stage_keys(recipe("command", sft=given, rl={"command": "true"}), "sft")) == [
        "sft.rollout",
        "sft.optimisation",
        "sft.parallelism",
        "sft.engine",
        "sft.evaluation",
        "sft.extra_args",
    ]


@pytest.mark.parametrize(
    ("kind", "tracking", "keys"),
    [
        ("slime", {"wandb_team": "t"}, ["tracking.wandb_team"]),
        ("slime", {"wandb_team": "t", "wandb_project": "p"}, []),
        ("tinyslime", {"tensorboard": True}, ["tracking.tensorboard"]),
        ("command", {"wandb_project": "p"}, ["tracking.wandb_project"]),
        ("command", {}, []),
    ],
)
def test_tracking_that_nobody_is_told_of(kind: str, tracking: dict[str, Any], keys: list[str]) -> None:
    assert named(unused_keys(recipe(kind, tracking=tracking))) == keys


def test_a_recipe_that_came_through_a_form_with_every_key_gets_no_advice() -> None:
    plain = recipe()
    again = Recipe.model_validate(plain.model_dump())
    assert unused_keys(again) + unused_stage_keys(again, "sft") + unused_stage_keys(again, "rl") == []


def test_a_run_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIUM_BASE_URL", raising=False)
    monkeypatch.setenv("TRAINSTACK_DIR", str(tmp_path / "state"))
    store = {"store": f"folder:{tmp_path}/store"}
    sft = {"command": "true", "engine": {"concurrency": 2}}
    plan = recipe("command", sft=sft, rl={"command": "true"}, checkpoint=store)
    plan = plan.model_copy(update={"sft": plan.stage("sft").model_copy(update={"data": None})})
    assert named(check_recipe(plan, ["sft"]).advice) == ["sft.engine"]
