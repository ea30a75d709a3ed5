"""Pushing a sealed checkpoint to a real Hub server, from a pod's save dir and from a store."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins.checkpoints.manifest import local_manifest_file
from plugins.checkpoints.stores.folder import FolderStore
from plugins.errors import TornCheckpoint, UserError
from plugins.slime import layout
from tasks.push_files import push_from_save_dir, push_from_store
from tests.hub_server.running import Running, running_hub
from tests.plugins.checkpoints.conftest import RUN, Trainer


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    with running_hub(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token("hf_writes", "me"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield server


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """A pod's folder with two sealed checkpoints of SFT."""
    trainer = Trainer(tmp_path / "pod" / "runs" / RUN / "sft" / "save")
    for iteration in (19, 39):
        trainer.sealed(iteration, export=True)
    return tmp_path / "pod"


def files_at(hub: Running, repo: str, revision: str) -> set[str]:
    from huggingface_hub import HfApi

    return set(HfApi(endpoint=hub.url, token="hf_writes").list_repo_files(repo, revision=revision))


def test_inside_a_pod_the_newest_sealed_checkpoint_is_pushed(hub: Running, pod: Path) -> None:
    pushed = push_from_save_dir(pod, RUN, None, None, "hub://me/model")
    assert {"config.json", "model.safetensors", "README.md"} <= files_at(hub, "me/model", pushed.revision)
    again = push_from_save_dir(pod, RUN, None, None, "hub://me/model")
    assert again.revision == pushed.revision, "pushing what is there makes no commit"
    older = push_from_save_dir(pod, RUN, "sft", 19, "hub://me/model@old")
    assert older.revision != pushed.revision and older.branch == "old"


def test_what_was_damaged_since_it_was_sealed_is_not_pushed(hub: Running, pod: Path) -> None:
    weights = layout.export_dir(pod / "runs" / RUN / "sft" / "save", 39) / "model.safetensors"
    weights.write_bytes(bytes(reversed(weights.read_bytes())))
    with pytest.raises(TornCheckpoint):
        push_from_save_dir(pod, RUN, None, None, "hub://me/model")


def test_a_pod_without_such_a_checkpoint_says_so(hub: Running, pod: Path) -> None:
    local_manifest_file(pod / "runs" / RUN / "sft" / "save", 19).unlink()
    for run_id, stage, iteration in ((RUN, "rl", None), (RUN, "sft", 19), ("other", None, None)):
        with pytest.raises(UserError, match="holds no sealed checkpoint"):
            push_from_save_dir(pod, run_id, stage, iteration, "hub://me/model")


def test_with_no_pod_left_it_comes_from_the_store_with_its_lineage(hub: Running, trainer, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    for iteration in (19, 39):
        store.put(trainer.sealed(iteration, export=True), trainer.save_dir)
    pushed = push_from_store(store, RUN, None, None, "hub://me/model", reason="by hand")
    assert {"config.json", "model.safetensors"} <= files_at(hub, "me/model", pushed.revision)
    whole = push_from_store(store, RUN, "sft", 19, "hub://me/whole", whole=True)
    assert any(name.startswith("checkpoint/iter_0000019/") for name in files_at(hub, "me/whole", whole.revision))
    with pytest.raises(UserError, match="has no checkpoint of run-1, iteration 5"):
        push_from_store(store, RUN, None, 5, "hub://me/model")


def test_a_checkpoint_without_an_export_cannot_be_pushed(hub: Running, trainer, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put(trainer.sealed(19), trainer.save_dir)
    with pytest.raises(UserError, match="no Hugging Face export"):
        push_from_store(store, RUN, None, None, "hub://me/model")


@pytest.mark.parametrize("known", [True, False])
def test_the_pods_half_answers_with_one_json_line_and_keeps_the_token_to_itself(
    hub: Running, pod: Path, known: bool
) -> None:
    pod.rename(pod.parent / "trainstack")
    order = {
        "wanted": [RUN if known else "other", None, None],
        "to": "hub://me/model",
        "how": {"public": False, "whole": False, "base_model": None},
        "env": {"HF_TOKEN": "hf_writes", "HF_ENDPOINT": hub.url},
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-m", "tasks.push_here"],
        input=json.dumps(order),
        env={**kept, "HOME": str(pod.parent), "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert ("revision" in answer) if known else ("holds no sealed checkpoint" in answer["error"])
    assert "hf_writes" not in done.stdout + done.stderr


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path / "save")


def test_the_model_card_names_the_checkpoint_that_the_weights_came_from(hub: Running, trainer, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    from tasks.push_files import push_sealed

    sealed = trainer.sealed(19, export=True)
    source = "s3://bucket/other/sft/iter_0000059"
    manifest = sealed.model_copy(update={"lineage": {"init": source}})
    pushed = push_sealed(trainer.save_dir, manifest, "hub://me/card")
    api = HfApi(endpoint=hub.url, token="hf_writes")
    card = Path(api.hf_hub_download("me/card", "README.md", revision=pushed.revision, cache_dir=tmp_path / "cache"))
    assert f"| weights from | {source} |" in card.read_text()
