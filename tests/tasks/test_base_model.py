"""The base model of a recipe is looked at on the Hub before renting, and bound to one commit for the whole run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blocks.recipe import Recipe, parse_recipe
from plugins.checkpoints.stores.folder import FolderStore
from plugins.errors import UserError
from plugins.slime.weights import HubModel
from tasks.base_model import KEY, BaseModel, check_base_model, known_commit
from tests.hub_server.app import Limits
from tests.hub_server.filling import fill
from tests.hub_server.running import Running, running_hub
from tests.plugins.checkpoints.conftest import RUN, Trainer
from tests.plugins.slime.hf_folders import CONFIG, write_hf

TOKEN, REPO = "hf_ann0of0base", "ann/base"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = write_hf(tmp_path_factory.mktemp("base") / "hf")
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {"pytorch_model.bin": b"x" * 999}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> Iterator[Running]:
    with running_hub(tmp_path_factory.mktemp("hub"), Limits()) as hub:
        hub.token(TOKEN, "ann")
        hub.commit = fill(hub, TOKEN, REPO, files)  # type: ignore[attr-defined]
        yield hub


@pytest.fixture
def hub(running: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    running.clear()
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda _s: None)
    return running


def recipe(where: str | None = REPO, *, kind: str = "tinyslime", **model: Any) -> Recipe:
    raw = {
        "name": "small",
        "model": {**({"hf_checkpoint": where} if where else {}), **model},
        "trainer": {"kind": kind},
        "sft": {"data": "x.jsonl", "num_rollout": 1},
    }
    return parse_recipe(raw, source="test")


def commit_of(hub: Running) -> str:
    return str(hub.commit)  # type: ignore[attr-defined]


def test_a_model_on_the_hub_is_described(hub: Running, files: dict[str, bytes]) -> None:
    found = check_base_model(recipe())
    assert found is not None
    weights = sum(len(content) for name, content in files.items() if name.endswith(".safetensors"))
    assert (found.repo, found.revision, found.model_type, found.config) == (REPO, commit_of(hub), "qwen3", CONFIG)
    assert found.parameters == weights * 8 // 16
    assert found.size_bytes == sum(len(content) for name, content in files.items() if name != "pytorch_model.bin")
    assert found.lineage == {KEY: f"{REPO}@{commit_of(hub)}"}


def test_a_revision_names_the_commit(hub: Running, files: dict[str, bytes]) -> None:
    fill(hub, TOKEN, REPO, {"README.md": b"---\nlicense: mit\n---\nnewer"})
    newest, old = check_base_model(recipe()), check_base_model(recipe(f"{REPO}@{commit_of(hub)}"))
    assert newest is not None and newest.revision != commit_of(hub)
    assert old is not None and old.revision == commit_of(hub)


def test_folders_and_no_model_are_nobodys_matter(hub: Running) -> None:
    assert check_base_model(recipe("/root/models/x")) is None
    assert check_base_model(recipe(None)) is None
    assert hub.calls() == []


def test_without_a_network_there_is_a_warning_and_no_error(hub: Running) -> None:
    hub.fault(".*", times=100, status=503)
    said: list[str] = []
    assert check_base_model(recipe(), said.append) is None
    (line,) = said
    assert line.startswith(f"WARNING the base model {REPO} could not be looked at")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("ann/other", "no such repository"),
        (f"{REPO}@nowhere", "no such revision"),
        ("gpt2", r"write /root/models/\.\.\., user/name"),
    ],
)
def test_what_is_not_there_is_an_error_that_names_the_key(hub: Running, where: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"model\.hf_checkpoint.*{words}"):
        check_base_model(recipe(where))


def test_a_gated_model_tells_what_to_do(hub: Running) -> None:
    hub.fault("GET /api/models", status=403, headers={"X-Error-Code": "GatedRepo"})
    with pytest.raises(UserError, match="ask for access on its page"):
        check_base_model(recipe())


def test_weights_that_are_not_safetensors_are_refused(hub: Running) -> None:
    fill(hub, TOKEN, "ann/bins", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(UserError, match="slime needs weights in safetensors"):
        check_base_model(recipe("ann/bins"))


def test_a_type_that_slime_does_not_know_is_refused_before_renting(hub: Running) -> None:
    files = {"config.json": b'{"model_type": "olmo"}', "model.safetensors": b"x" * 64}
    fill(hub, TOKEN, "ann/olmo", files)
    with pytest.raises(UserError, match="can neither load nor convert a model of type 'olmo'; it knows deepseek_v3"):
        check_base_model(recipe("ann/olmo", kind="slime"))
    found = check_base_model(recipe("ann/olmo"))
    assert found is not None and found.model_type == "olmo"


def test_flags_that_contradict_the_model_are_refused_before_renting(hub: Running) -> None:
    with pytest.raises(UserError, match=r"hidden_size is 10 in the model's config\.json, --hidden-size is 64"):
        check_base_model(recipe(args={"hidden-size": 64, "num-layers": 2}))
    assert check_base_model(recipe(args={"hidden-size": 10, "num-layers": 2})) is not None


def test_the_newest_commit_of_a_run_is_the_one_it_began_with(hub: Running, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    model = HubModel(REPO)
    assert known_commit(store, RUN, model) is None
    trainer = Trainer(tmp_path / "save")
    manifest = trainer.sealed(3).model_copy(update={"lineage": BaseModel(REPO, "b" * 40, 1, "x", {}).lineage})
    store.put(manifest, trainer.save_dir)
    assert json.loads(manifest.to_json())["lineage"] == {KEY: f"{REPO}@{'b' * 40}"}
    assert known_commit(store, RUN, model) == "b" * 40
    assert known_commit(store, RUN, HubModel("ann/other")) is None
