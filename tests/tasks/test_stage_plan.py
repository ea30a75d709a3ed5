"""A plan refuses what a run would refuse, by the same checks, and shows as lines what only this machine lacks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from blocks.recipe import Recipe, parse_recipe
from plugins.errors import ControlPlaneError, UserError
from tasks.stage_plan import plan_recipe, recipe_view
from tests.hub_server.app import Limits
from tests.hub_server.running import running_hub
from tests.tasks.test_wrong_recipes import CHAT, PROMPT, WRONG, changed

Make = Callable[[dict[str, Any]], Recipe]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The right recipe with these changes, on a machine with no account and no credentials."""
    for name in ("LIUM_BASE_URL", "LIUM_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "H8_UNSET_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRAINSTACK_DIR", str(tmp_path / "state"))
    (tmp_path / "rl.jsonl").write_text((json.dumps(PROMPT) + "\n") * 40)
    (tmp_path / "sft.jsonl").write_text((json.dumps(CHAT) + "\n") * 40)
    return lambda changes: parse_recipe(changed(changes), source="recipe.yaml", folder=tmp_path)


def shown(recipe: Recipe) -> str:
    console = Console(width=300)
    with console.capture() as captured:
        console.print(recipe_view(plan_recipe(recipe), commands=False))
    return captured.get()


@pytest.mark.parametrize(("what", "changes", "said"), WRONG, ids=[what for what, _, _ in WRONG])
def test_a_plan_refuses_what_a_run_refuses(what: str, changes: dict[str, Any], said: str, make: Make) -> None:
    with pytest.raises(UserError) as caught:
        plan_recipe(make(changes))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trainer": {"kind": "command"}}, "rl.command: missing"),
        ({"trainer": {"kind": "tinyslime"}, "rl.extra_args": {"no-flag-of-it": 1}}, "rl.extra_args: "),
        (
            {"rl.evaluation": {"interval": 5, "data": {"held-out": "/nowhere.jsonl"}}},
            "/nowhere.jsonl: the data file does not exist",
        ),
        ({"rl.init": "run:never-was/sft"}, "has no checkpoint of never-was/sft"),
        ({"checkpoint": {"store": "volume:/mnt/x"}}, "a Lium volume alone will not do"),
    ],
)
def test_a_plan_refuses_more_that_used_to_be_found_by_a_run_only(
    changes: dict[str, Any], said: str, make: Make, tmp_path: Path
) -> None:
    base = {"checkpoint": {"store": f"folder:{tmp_path}/store"}}
    with pytest.raises(UserError) as caught:
        plan_recipe(make(base | changes))
    assert said in str(caught.value)


def test_a_plan_writes_nothing_into_the_store(make: Make, tmp_path: Path) -> None:
    plan_recipe(make({"checkpoint": {"store": f"folder:{tmp_path}/store"}}))
    assert not (tmp_path / "store").exists()


def test_secrets_that_are_not_set_here_are_a_line_and_no_refusal(make: Make) -> None:
    said = shown(make({"secrets": ["H8_UNSET_TOKEN"]}))
    assert "before `run`: Recipe 'right': secrets: H8_UNSET_TOKEN not set" in said
    assert "rl: 10 rollouts, 40 rows of data" in said


def test_credentials_of_a_store_that_are_missing_here_are_a_line(make: Make) -> None:
    said = shown(make({"checkpoint": {"store": "hub://ann/kept"}, "rl.init": "run:first/sft"}))
    assert "before `run`: Recipe 'right': a hub:// store or push needs a token" in said
    assert "note: rl.init not looked at: run:first/sft" in said


def test_a_hub_that_is_silent_is_a_line(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> Path:
        raise ControlPlaneError("the Hub does not answer")

    monkeypatch.setattr("plugins.datasets.hub.fetch_dataset", silent)
    sets = {"held-out": "hf://datasets/a/b/c.parquet"}
    said = shown(make({"rl.evaluation": {"interval": 5, "data": sets}}))
    assert "40 rows of data; evaluation data not looked at: hf://datasets/a/b/c.parquet: the Hub does not" in said
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _s: None)
    said = shown(make({"model.hf_checkpoint": "ann/base"}))
    assert "note: WARNING the base model ann/base could not be looked at" in said


def test_a_model_that_the_hub_keeps_from_us_is_no_refusal_while_its_token_is_not_set(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running_hub(tmp_path / "hub", Limits()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.fault("GET /api/models", status=403, headers={"X-Error-Code": "GatedRepo"})
        model = {"model.hf_checkpoint": "ann/base"}
        assert "note: model not looked at without HF_TOKEN: " in shown(make(model | {"secrets": ["HF_TOKEN"]}))
        hub.fault("GET /api/models", status=403, headers={"X-Error-Code": "GatedRepo"})
        with pytest.raises(UserError, match="ask for access on its page"):
            plan_recipe(make(model))


def test_data_that_the_hub_keeps_from_us_is_no_refusal_while_its_token_is_not_set(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running_hub(tmp_path / "hub", Limits()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        data = {"rl.data": "hf://datasets/ann/private/rows.jsonl"}
        said = shown(make(data | {"secrets": ["HF_TOKEN"]}))
        assert "data not looked at: hf://datasets/ann/private/rows.jsonl: not without HF_TOKEN: " in said
        with pytest.raises(UserError, match="ann/private"):
            plan_recipe(make(data))


def test_keys_that_do_nothing_are_shown(make: Make) -> None:
    said = shown(make({"rl.optimisation": {"kl_loss_type": "k2"}, "tracking": {"wandb_team": "t"}}))
    assert "advice: rl.optimisation.kl_loss_type: does nothing without optimisation.kl_loss_coef" in said
    assert "note: tracking.wandb_team: does nothing without tracking.wandb_project" in said
