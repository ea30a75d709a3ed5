"""Which stores a run opens where, and which credentials leave this machine for a pod."""

from typing import Any

import pytest

from blocks.recipe import Recipe
from plugins.errors import UserError
from tasks.assets import asset_key
from tasks.stores import SECRET_NAMES, store_env, stores_here, stores_on_pod


def recipe(store: Any, **changes: Any) -> Recipe:
    raw = {"name": "r", "checkpoint": {"store": store}, "sft": {"data": "x", "num_rollout": 2}, **changes}
    return Recipe.model_validate(raw)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    monkeypatch.setenv("HF_TOKEN", "hf_token")


def test_a_pod_gets_the_credentials_of_its_stores_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert store_env(recipe("folder:/x")) == {}
    assert store_env(recipe("s3://bucket/x")) == {
        "AWS_ACCESS_KEY_ID": "the-id",
        "AWS_SECRET_ACCESS_KEY": "the-secret",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    }
    assert store_env(recipe("hub://me/repo")) == {"HF_TOKEN": "hf_token"}
    assert store_env(recipe("folder:/x", milestones={"push_to": "hub://me/repo"})) == {"HF_TOKEN": "hf_token"}


def test_what_the_recipe_hands_over_itself_is_left_to_it() -> None:
    assert store_env(recipe("s3://bucket", secrets=["AWS_ACCESS_KEY_ID"])) == {}


def test_every_credential_that_may_be_handed_over_is_kept_out_of_logs() -> None:
    handed = store_env(recipe(["s3://bucket", "hub://me/repo"]))
    assert {name for name, value in handed.items() if value in ("the-id", "the-secret", "hf_token")} <= {*SECRET_NAMES}


@pytest.mark.parametrize(
    ("store", "missing", "words"),
    [
        ("s3://bucket", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], "no S3 credentials here"),
        ("hub://me/repo", ["HF_TOKEN"], "needs a token with the right to write"),
    ],
)
def test_a_store_without_credentials_is_an_error_before_anything_is_rented(
    store: str, missing: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in missing:
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=words):
        store_env(recipe(store))


def test_a_volume_is_opened_on_the_pod_only_and_does_not_do_alone(tmp_path) -> None:
    both = recipe([f"volume:{tmp_path}/mnt", f"folder:{tmp_path}/far"])
    assert stores_here(both).uri == f"folder:{tmp_path}/far"
    assert [store.uri.partition(":")[0] for store in stores_on_pod(both, print).members] == ["volume", "folder"]
    with pytest.raises(UserError, match="a Lium volume alone will not do"):
        stores_here(recipe(f"volume:{tmp_path}/mnt"))


@pytest.mark.parametrize("store", [[], ["folder:/x", "folder:/x"], ""])
def test_a_recipe_names_at_least_one_store_and_each_once(store: Any) -> None:
    with pytest.raises(ValueError, match="name at least one store, each once"):
        recipe(store)


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("folder:/a b/run/sft/iter_0000019", "file://a_b/run/sft/iter_0000019"),
        ("s3://bucket/x?endpoint=http://h", "s3://bucket/x_endpoint=http://h"),
        ("hub://me/repo@main", "hub://me/repo@main"),
    ],
)
def test_a_store_uri_becomes_an_asset_key_that_prefect_takes(uri: str, key: str) -> None:
    from prefect.assets import Asset

    assert Asset(key=asset_key(uri)).key == key
