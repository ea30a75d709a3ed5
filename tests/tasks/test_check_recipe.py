"""Bad input is found before anything is started or paid, and the message says where it stands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocks.recipe import Recipe, parse_recipe
from plugins.errors import Refused, StoreError, UserError
from tasks.check_recipe import Checked, check_recipe
from tasks.lium_account import check_money, open_account
from tasks.stage_data import check_data

CHAT = {"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]}
PROMPT = {"prompt": "1+1", "label": "2"}
Check = Callable[..., Checked]


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No account, no key pair, no environment of the person who runs the tests."""
    for name in ("LIUM_BASE_URL", "LIUM_API_KEY", "LIUM_API_API_KEY", "LIUM_SSH_KEY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRAINSTACK_DIR", str(tmp_path / "state"))


def rows(file: Path, *lines: object) -> str:
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(file)


def recipe(tmp_path: Path, **changes: Any) -> Recipe:
    sft = {"data": rows(tmp_path / "sft.jsonl", *[CHAT] * 8), "num_rollout": 4, "extra_args": {"rollout-batch-size": 4}}
    rl = {
        "data": rows(tmp_path / "rl.jsonl", *[PROMPT] * 8),
        "num_rollout": 2,
        "environment": {"task": "arithmetic"},
        "extra_args": {"rollout-batch-size": 2, "n-samples-per-prompt": 4},
    }
    raw: dict[str, Any] = {
        "name": "small",
        "lium": {"base_url": "emulator"},
        "trainer": {"kind": "tinyslime"},
        "sft": sft | changes.pop("sft", {}),
        "rl": rl | changes.pop("rl", {}),
        **changes,
    }
    return parse_recipe(raw, source="test")


@pytest.fixture
def check(tmp_path: Path) -> Check:
    def run(*stages: Any, **changes: Any) -> Checked:
        return check_recipe(recipe(tmp_path, **changes), list(stages or ("sft", "rl")))

    return run


def test_a_good_recipe_gives_rows_and_digest_of_its_data(check: Check, tmp_path: Path) -> None:
    checked = check()
    assert {name: data.rows for name, data in checked.data.items()} == {"sft": 8, "rl": 8}
    assert checked.data["sft"].path == tmp_path / "sft.jsonl" and len(checked.data["sft"].sha256) == 64


def test_only_the_stages_that_will_run_are_checked(check: Check) -> None:
    assert list(check("sft", rl={"data": "/nowhere.jsonl"}).data) == ["sft"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"sft": {"extra_args": {"rollout-batch-sise": 4}}},
            r"'small': sft\.extra_args: .*rollout-batch-sise \(did you mean rollout-b",
        ),
        ({"model": {"args": {"hidden-sizes": 4}}}, r"'small': model\.args: .*hidden-sizes \(did you mean hidden-size"),
        ({"sft": {"extra_args": {"save": "/x"}}}, r"'small': sft\.extra_args\.save: --save cannot be set"),
        (
            {"sft": {"extra_args": {"rollout-batch-size": 4, "global-batch-size": 3}}},
            r"'small': sft: batch sizes do not add up",
        ),
        (
            {"sft": {"extra_args": {"n-samples-per-prompt": 2}}},
            r"'small': sft\.extra_args\.n-samples-per-prompt: must be 1 for SFT",
        ),
        ({"sft": {"num_rollout": None}}, r"'small': sft: .*exactly one of `num_rollout` and `num_epoch`"),
        ({"sft": {"num_rollout": None, "num_epoch": 1, "extra_args": {}}}, r"'small': sft: .*8 rows in batches of 128"),
        ({"sft": {"data": None}}, r"'small': sft\.data: missing"),
        ({"sft": {"command": "true"}}, r"'small': sft\.command: only for trainer\.kind 'command'"),
        ({"rl": {"environment": None}}, r"'small': rl\.environment: missing"),
        ({"trainer": {"kind": "command"}}, r"'small': sft\.command: missing"),
        ({"secrets": ["H8_UNSET_TOKEN"]}, r"'small': secrets: H8_UNSET_TOKEN not set"),
        ({"checkpoint": {"store": "gopher:/x"}}, r"there is no store 'gopher'"),
    ],
)
def test_a_wrong_key_is_named_with_what_would_be_right(check: Check, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(**changes)


NO_TOKEN = {"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": ""}]}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "has no rows"),
        (["", "  "], "has no rows"),
        ([CHAT, NO_TOKEN], ":2: has no trainable token"),
        ([CHAT, "", "{half"], ":3: not a JSON object on one line"),
        ([{"text": "x"}], ":1: has no 'messages'; its keys are text"),
        ([CHAT, {"messages": "x"}], ":2: 'messages' must be a list of chat messages"),
    ],
)
def test_bad_data_is_named_by_file_and_row(check: Check, tmp_path: Path, lines: list[object], said: str) -> None:
    file = rows(tmp_path / "bad.jsonl", *lines)
    with pytest.raises(UserError) as caught:
        check("sft", sft={"data": file})
    assert file in str(caught.value) and said in str(caught.value)


def test_a_data_file_that_is_missing_or_of_another_kind(check: Check, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/nowhere\.jsonl: the data file does not exist"):
        check("sft", sft={"data": "/nowhere.jsonl"})
    with pytest.raises(UserError, match=r"rows\.csv: slime reads \.jsonl and \.parquet files only"):
        check("sft", sft={"data": rows(tmp_path / "rows.csv", "a,b")})


def test_rl_data_needs_the_label_that_the_trainer_reads(check: Check, tmp_path: Path) -> None:
    file = rows(tmp_path / "bad.jsonl", PROMPT, {"prompt": "2+2"})
    with pytest.raises(UserError, match=r"bad\.jsonl:2: has no 'label'"):
        check("rl", rl={"data": file})


def test_columns_that_the_recipe_names_and_the_data_lacks_are_refused(check: Check, tmp_path: Path) -> None:
    file = rows(tmp_path / "named.jsonl", *[CHAT] * 8)
    for key in ("metadata_key", "tool_key"):
        with pytest.raises(UserError, match=r"named\.jsonl: no row has 'metdata'"):
            check("sft", sft={"data": {"path": file, key: "metdata"}})
    with pytest.raises(UserError, match=r"named\.jsonl:1: has no 'answer', and slime reads it from every row"):
        check("sft", sft={"data": {"path": file, "label_key": "answer"}})


def test_metadata_that_is_text_is_refused_where_the_recipe_names_no_column_too(check: Check, tmp_path: Path) -> None:
    file = rows(tmp_path / "text.jsonl", *[PROMPT | {"metadata": "level 3"}] * 8)
    with pytest.raises(UserError, match=r"text\.jsonl:1: 'metadata' must be a JSON object, not str: level 3"):
        check("rl", rl={"data": file})


CHAT_PROMPT = {"prompt": [{"role": "user", "content": "1+1"}], "label": "2"}


@pytest.mark.parametrize(
    ("data", "rollout", "fine"),
    [
        ({}, {"reward": "math"}, False),
        ({}, {"reward_function": "my.reward"}, False),
        ({"chat_template": True}, {"reward": "math"}, True),
        ({}, {"reward_function": "my.reward", "generate": "my.generate"}, True),
        ({}, {}, True),
    ],
)
def test_chats_need_a_template_or_a_generate_that_takes_them(
    tmp_path: Path, data: dict[str, Any], rollout: dict[str, Any], fine: bool
) -> None:
    where = rows(tmp_path / "chats.jsonl", *[CHAT_PROMPT] * 8)
    plan = recipe(tmp_path, trainer={"kind": "slime"}, rl={"data": {"path": where, **data}, "rollout": rollout})
    if fine:
        found = check_data(plan, "rl")
        assert found is not None and found.rows == 8
        return
    with pytest.raises(UserError, match=r"chats\.jsonl:1: .* set data\.chat_template to true"):
        check_data(plan, "rl")


def test_a_command_trainer_needs_neither_data_nor_known_flags(check: Check) -> None:
    trainer = {"kind": "command"}
    sft = {"data": None, "command": ["true"], "extra_args": {"anything": 1}}
    assert check("sft", trainer=trainer, sft=sft).data == {}


def test_a_store_that_cannot_be_written_is_found_before_a_pod_is_paid(check: Check, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(StoreError, match=str(in_the_way)):
        check(checkpoint={"store": f"folder:{in_the_way}/store"})


def key_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("")
    (tmp_path / "key.pub").write_text("")
    monkeypatch.setenv("LIUM_SSH_KEY_PATH", str(tmp_path / "key"))


LIMITS = {"max_price_per_gpu_hour": 2.0, "budget_usd": 5.0}


@pytest.mark.parametrize(
    ("key", "pod", "lacks"),
    [
        ("", LIMITS, "an API key"),
        ("k", {**LIMITS, "max_price_per_gpu_hour": None}, "a price ceiling"),
        ("k", {**LIMITS, "budget_usd": None}, "a budget"),
        ("", {}, "an API key, a price ceiling, a budget"),
    ],
)
def test_real_money_is_refused_without_key_ceiling_and_budget_before_any_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, pod: dict[str, Any], lacks: str
) -> None:
    key_pair(tmp_path, monkeypatch)
    monkeypatch.setenv("LIUM_API_KEY", key)
    # A request to this host could only end in ControlPlaneError.
    plan = recipe(tmp_path, lium={"base_url": "https://lium.invalid/api"}, pod=pod)
    for look in (lambda: check_recipe(plan, ["sft"]), lambda: open_account(plan)):
        with pytest.raises(Refused, match=rf"https://lium\.invalid/api costs real money: .* lack {lacks}$"):
            look()


def test_without_a_base_url_the_real_marketplace_is_guarded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_pair(tmp_path, monkeypatch)
    with pytest.raises(Refused, match=r"https://lium\.io/api costs real money"):
        check_money(recipe(tmp_path, lium={}))


def test_key_ceiling_and_budget_together_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key_pair(tmp_path, monkeypatch)
    monkeypatch.setenv("LIUM_API_KEY", "k")
    check_money(recipe(tmp_path, lium={"base_url": "https://lium.invalid/api"}, pod=LIMITS))


def test_the_key_is_also_found_where_the_lium_command_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key_pair(tmp_path, monkeypatch)
    config = tmp_path / "home" / ".lium" / "config.ini"
    config.parent.mkdir(parents=True)
    config.write_text("[api]\napi_key = k\n")
    plan = recipe(tmp_path, lium={"base_url": "https://lium.invalid/api"}, pod=LIMITS)
    check_money(plan)
    config.write_text("api_key = k\n")
    with pytest.raises(UserError, match=r"config\.ini cannot be read"):
        check_money(plan)


def test_a_real_rent_needs_a_key_pair(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No SSH key pair found .*ssh-keygen"):
        check_money(recipe(tmp_path, lium={"base_url": "https://lium.invalid/api"}, pod=LIMITS))


def test_the_wish_for_the_emulator_is_never_overridden_by_another_address(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIUM_BASE_URL", "https://lium.invalid/api")
    with pytest.raises(UserError, match=r"says lium\.base_url: emulator, but LIUM_BASE_URL is https://lium\.invalid"):
        check("sft")
    monkeypatch.setenv("LIUM_BASE_URL", "http://127.0.0.1:9/api")
    assert check("sft").data
