"""Milestones on the Hub, against a Hub of ours that the unmodified `huggingface_hub` talks to (`tests/hub_server`)."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download

from plugins.checkpoints.disk import sha256_of
from plugins.checkpoints.hub.card import BEGIN, END
from plugins.checkpoints.manifest import FileEntry, Manifest
from plugins.checkpoints.push import ModelCard, Pushed, push_export
from plugins.errors import StoreError, TornCheckpoint, UserError
from plugins.slime import layout
from tests.hub_server.app import Limits
from tests.hub_server.running import Running, running_hub

REPO, TARGET, TOKEN = "ann/milestones", "hub://ann/milestones@run-1", "hf_secret0of0ann"
COMMIT = "POST .*/commit/"
CARD = ModelCard(
    run_id="run-1",
    stage="sft",
    iteration=19,
    attempt=2,
    base_model="Qwen/Qwen3-0.6B",
    recipe_digest="sha256:aa",
    git_commit="0123abc",
    image_digest="sha256:bb",
    data_hash="cc",
    parent="s3://bucket/run-0/sft/iter_0000009",
    pod="ts-run-1-sft-a2",
    reason="best reward so far (0.5)",
    metrics={"reward": 0.5, "loss": 1.25},
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_hub(tmp_path_factory.mktemp("hub"), Limits(multipart_over=100_000, part_bytes=60_000)) as hub:
        hub.token(TOKEN, "ann")
        yield hub


@pytest.fixture
def hub(running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Running:
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    running.clear()
    HfApi(running.url, token=TOKEN).delete_repo(REPO, missing_ok=True)
    return running


@pytest.fixture
def api(hub: Running) -> HfApi:
    return HfApi(hub.url, token=TOKEN)


@pytest.fixture
def manifest(trainer) -> Manifest:
    return trainer.sealed(19, export=True)


def push(trainer, manifest: Manifest, card: ModelCard = CARD, **more) -> Pushed:
    more = {"sleep": lambda _s: None, **more}
    return push_export(trainer.save_dir, manifest.files, more.pop("target", TARGET), card, **more)


def read(api: HfApi, path: str, revision: str, folder: Path) -> str:
    return Path(api.hf_hub_download(REPO, path, revision=revision, cache_dir=folder / "cache")).read_text()


def write(api: HfApi, path: str, text: str, branch: str = "run-1") -> str:
    change = CommitOperationAdd(path, text.encode())
    return str(api.create_commit(REPO, [change], commit_message="by hand", revision=branch).oid)


def test_the_export_lies_at_the_root_with_card_and_list(hub, api, trainer, manifest, tmp_path) -> None:
    done: list[int] = []
    pushed = push(trainer, manifest, progress=done.append)
    assert (pushed.repo, pushed.branch) == (REPO, "run-1") and pushed.url == f"{hub.url}/{REPO}/tree/{pushed.revision}"
    assert {entry.path for entry in pushed.files} == {"config.json", "model.safetensors"}
    assert sum(done) == sum(entry.size_bytes for entry in pushed.files)
    got = Path(snapshot_download(REPO, revision=pushed.revision, endpoint=hub.url, cache_dir=tmp_path / "got"))
    names = {path.name for path in got.iterdir()}
    assert names == {".gitattributes", "README.md", "config.json", "model.safetensors", "trainstack_manifest.json"}
    for entry in pushed.files:
        assert sha256_of((got / entry.path).read_bytes()) == entry.sha256
    listed = json.loads((got / "trainstack_manifest.json").read_text())
    assert listed["files"] == [entry.model_dump() for entry in pushed.files]
    assert (listed["run"], listed["iteration"], listed["git commit"]) == ("run-1", "19", "0123abc")
    card = (got / "README.md").read_text()
    assert card.startswith(
        "---\nbase_model: Qwen/Qwen3-0.6B\nlibrary_name: transformers\ntags:\n- trainstack\n- sft\n---"
    )
    for fact in (
        "run-1",
        "| attempt | 2 |",
        "sha256:aa",
        "0123abc",
        "sha256:bb",
        "iter_0000009",
        "metric reward | 0.5",
    ):
        assert fact in card
    assert "license" not in card and api.repo_info(REPO).private
    assert api.list_repo_files(REPO) == [".gitattributes"]  # main is as it was
    assert hub.commits(REPO) >= 1


def test_pushing_again_makes_no_commit_and_sends_nothing(hub, trainer, manifest) -> None:
    first = push(trainer, manifest)
    commits, sent, done = hub.commits(REPO), hub.state()["received_bytes"], []
    assert push(trainer, manifest, progress=done.append) == first
    assert push(trainer, manifest, replace(CARD, reason=None, source="s3://bucket/run-1/sft/iter_0000019")) == first
    assert (hub.commits(REPO), hub.state()["received_bytes"]) == (commits, sent)
    assert sum(done) == sum(entry.size_bytes for entry in first.files)


def test_the_next_milestone_replaces_what_we_pushed_and_nothing_else(hub, api, trainer, manifest, tmp_path) -> None:
    save_dir = trainer.save_dir
    (layout.export_dir(save_dir, 9)).mkdir(parents=True)
    (layout.export_dir(save_dir, 9) / "vocab.json").write_text("{}")
    entry = FileEntry(path="hf/9/vocab.json", size_bytes=2, sha256=sha256_of(b"{}"))
    first = push_export(save_dir, [*manifest.files, entry], TARGET, CARD)
    assert "vocab.json" in api.list_repo_files(REPO, revision=first.revision)
    write(api, "notes.txt", "a person's")
    second = push(trainer, trainer.sealed(39, seed="x", export=True), replace(CARD, iteration=39))
    files = api.list_repo_files(REPO, revision="run-1")
    assert "notes.txt" in files and "vocab.json" not in files
    assert second.revision != first.revision
    assert "| iteration | 19 |" in read(api, "README.md", first.revision, tmp_path)
    assert "| iteration | 39 |" in read(api, "README.md", second.revision, tmp_path)


def test_what_a_person_wrote_in_the_card_stays(hub, api, trainer, manifest, tmp_path) -> None:
    first = push(trainer, manifest)
    card = read(api, "README.md", first.revision, tmp_path)
    write(
        api, "README.md", card.replace("# run-1", "# My model\n\nWords of mine.\n\n## run-1").replace("- sft", "- mine")
    )
    second = push(trainer, manifest, replace(CARD, iteration=39, base_model="other/model"))
    card = read(api, "README.md", second.revision, tmp_path)
    assert "Words of mine." in card and "- mine" in card and "base_model: Qwen/Qwen3-0.6B" in card
    assert "| iteration | 39 |" in card and "| iteration | 19 |" not in card and card.count(BEGIN) == 1
    write(api, "README.md", f"Only this.\n{END}\n")
    third = push(trainer, manifest)
    card = read(api, "README.md", third.revision, tmp_path)
    assert card.startswith("Only this.\n\n" + BEGIN) and card.count(END) == 1
    assert push(trainer, manifest) == third


def test_a_card_that_nobody_touched_is_written_anew_with_its_front_matter(api, trainer, manifest, tmp_path) -> None:
    push(trainer, manifest)
    changed = replace(CARD, base_model="/mnt/models/x", license="apache-2.0", tags=("tiny",), pod="a|b\n" + END)
    second = push(trainer, manifest, changed)
    card = read(api, "README.md", second.revision, tmp_path)
    assert card.startswith(
        "---\nlicense: apache-2.0\nlibrary_name: transformers\ntags:\n- trainstack\n- sft\n- tiny\n---"
    )
    assert r"| pod | a\|b &lt;!-- trainstack:end --&gt; |" in card and card.count(END) == 1


def test_the_whole_checkpoint_and_rollouts_go_along_when_asked(api, trainer, manifest, tmp_path) -> None:
    (tmp_path / "r.jsonl").write_text("{}\n")
    pushed = push(trainer, manifest, whole=True, extra={"rollouts/a2/r.jsonl": tmp_path / "r.jsonl"})
    files = set(api.list_repo_files(REPO, revision=pushed.revision))
    assert {"checkpoint/iter_0000019/common.pt", "checkpoint/iter_0000019/.metadata", "rollouts/a2/r.jsonl"} <= files
    assert len(pushed.files) == len(manifest.files) + 1
    weights = push(trainer, manifest)
    assert not [path for path in api.list_repo_files(REPO, revision=weights.revision) if "/" in path]
    for name in ("r.jsonl", "rollouts/../config.json", "rollouts/"):
        with pytest.raises(UserError, match="go under rollouts/"):
            push(trainer, manifest, extra={name: tmp_path / "r.jsonl"})


@pytest.mark.parametrize("public", [True, False])
def test_a_repository_is_public_only_if_it_was_said_when_it_was_made(api, trainer, manifest, public: bool) -> None:
    push(trainer, manifest, target="hub://ann/milestones", public=public)
    push(trainer, manifest, target="hub://ann/milestones", public=not public)
    assert api.repo_info(REPO).private is not public


def test_a_commit_whose_answer_is_lost_counts_as_made(hub, trainer, manifest, api) -> None:
    hub.fault(COMMIT, cut="after")
    pushed = push(trainer, manifest)
    assert hub.commits(REPO) == 1 and api.repo_info(REPO, revision="run-1").sha == pushed.revision
    hub.fault(COMMIT, cut="after")
    hub.fault("GET .*/commits/", status=404, times=9)  # it cannot be looked for either
    changed = replace(CARD, iteration=39)
    with pytest.raises(StoreError, match="did not answer"):
        push(trainer, manifest, changed)
    hub.clear()
    assert push(trainer, manifest, changed).revision == api.repo_info(REPO, revision="run-1").sha
    assert hub.commits(REPO) == 2


def test_a_commit_of_somebody_else_in_between_is_built_upon(hub, api, trainer, manifest) -> None:
    push(trainer, manifest)
    written: list[str] = []

    def meanwhile(_bytes: int) -> None:
        if not written:
            written.append(write(api, "notes.txt", "between"))

    other = trainer.sealed(39, seed="x", export=True)
    pushed = push(trainer, other, replace(CARD, iteration=39), progress=meanwhile)
    assert written and "notes.txt" in api.list_repo_files(REPO, revision=pushed.revision)


def test_a_hub_that_lists_something_else_than_was_pushed_is_an_error(hub, trainer, manifest) -> None:
    weights = next(entry for entry in manifest.files if entry.path.endswith("model.safetensors"))
    push(trainer, manifest)
    hub.fault("GET .*/tree/", times=2, replace={weights.sha256: "0" * 64})
    with pytest.raises(StoreError, match=r"revision [0-9a-f]{40} does not hold what was pushed: model.safetensors"):
        push(trainer, manifest)
    assert push(trainer, manifest).files


def test_a_file_that_changed_after_the_seal_is_not_pushed(hub, api, trainer, manifest) -> None:
    path = layout.export_dir(trainer.save_dir, 19) / "model.safetensors"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(TornCheckpoint, match=r"model\.safetensors.*changed after it was sealed"):
        push(trainer, manifest)
    assert hub.commits(REPO) == 0 and api.list_repo_files(REPO, revision="run-1") == [".gitattributes"]


def test_the_usual_mistakes_are_the_users_errors_without_the_token(
    hub, trainer, manifest, monkeypatch, tmp_path, caplog
) -> None:
    caplog.set_level(logging.DEBUG)
    shown = []
    hub.token("hf_reader", "ann", "read")
    cases = [
        (TOKEN, {"target": "hub://bob/his"}, "forbidden"),
        (TOKEN, {"target": "hub://ann/m/folder"}, "root of a repository"),
        (TOKEN, {"target": "ann/m"}, "write hub://user/repo"),
        ("hf_reader", {}, "forbidden"),
        ("hf_wrong", {}, "token was refused"),
    ]
    for token, more, says in cases:
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(UserError, match=says) as caught:
            push(trainer, manifest, **more)
        shown.append(str(caught.value))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no Hugging Face token"):
        push(trainer, manifest)
    with pytest.raises(UserError, match="no Hugging Face export"):
        push_export(trainer.save_dir, trainer.sealed(9).files, TARGET, CARD)
    assert not any(token in text for token in (TOKEN, "hf_reader", "hf_wrong") for text in (*shown, caplog.text))


def test_transformers_loads_a_pushed_model_by_its_revision(hub, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from plugins.tinyslime import export
    from plugins.tinyslime.config import ModelConfig
    from plugins.tinyslime.model import TinyLlama

    torch.manual_seed(1)
    config = ModelConfig(1, 32, 48, 4, 4, max_position_embeddings=64, norm_epsilon=1e-6, tie=True)
    export.write_folder(TinyLlama(config), tmp_path / "hf" / "19")
    contents = {path.name: path.read_bytes() for path in (tmp_path / "hf" / "19").iterdir()}
    entries = [
        FileEntry(path=f"hf/19/{name}", size_bytes=len(content), sha256=sha256_of(content))
        for name, content in contents.items()
    ]
    pushed = push_export(tmp_path, entries, TARGET, CARD)
    code = f"""
import transformers
where = dict(revision={pushed.revision!r})
model = transformers.AutoModelForCausalLM.from_pretrained({REPO!r}, **where)
print(model.config.model_type, len(transformers.AutoTokenizer.from_pretrained({REPO!r}, **where)) > 256)
"""
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": f"{tmp_path}/hf_home",
        "PATH": os.environ["PATH"],
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["llama", "True"], done.stderr
