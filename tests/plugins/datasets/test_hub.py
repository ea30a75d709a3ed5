"""A file of a data set on a Hub of ours: found, fetched once, bound to its commit, used when the Hub is silent."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins.datasets.hub import DatasetFile, fetch_dataset, source_of
from plugins.errors import ControlPlaneError, UserError
from plugins.slime.prompt_data import inspect
from tests.hub_server.app import Limits
from tests.hub_server.filling import fill
from tests.hub_server.running import Running, running_hub

TOKEN, REPO = "hf_ann0of0data", "ann/sums"
URI = f"hf://datasets/{REPO}/data/train.jsonl"
ROWS = b"".join(json.dumps({"prompt": f"{n}+1", "label": str(n + 1)}).encode() + b"\n" for n in range(5))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_hub(tmp_path_factory.mktemp("hub"), Limits()) as hub:
        hub.token(TOKEN, "ann")
        fill(hub, TOKEN, REPO, {"README.md": b"a model of the same name"})
        yield hub


@pytest.fixture
def hub(running: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    running.clear()
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda _s: None)
    fill(running, TOKEN, REPO, {"data/train.jsonl": ROWS}, kind="dataset", private=True)
    running.clear()
    return running


def test_a_file_is_fetched_once_and_tells_its_commit(hub: Running, tmp_path: Path) -> None:
    path = fetch_dataset(URI, tmp_path)
    assert path.read_bytes() == ROWS and inspect(path, "rl", label_key="label").rows == 5
    source = source_of(path)
    assert source is not None
    of = DatasetFile.of(source)
    assert (of.repo, of.path, len(of.revision)) == (REPO, "data/train.jsonl", 40)
    hub.clear()
    assert fetch_dataset(URI, tmp_path) == path
    assert not hub.calls("/resolve/")
    hub.clear()
    assert fetch_dataset(source, tmp_path) == path  # a commit never changes
    assert hub.calls() == []


def test_a_data_set_that_changes_makes_a_new_file(hub: Running, tmp_path: Path) -> None:
    before = fetch_dataset(URI, tmp_path)
    fill(hub, TOKEN, REPO, {"data/train.jsonl": ROWS + b"{}\n"}, kind="dataset")
    after = fetch_dataset(URI, tmp_path)
    assert after != before and after.read_bytes() == ROWS + b"{}\n" and before.read_bytes() == ROWS


def test_when_the_hub_is_silent_the_commit_of_last_time_is_taken(
    hub: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = fetch_dataset(URI, tmp_path)
    hub.fault(".*", times=500, status=503)
    assert fetch_dataset(URI, tmp_path) == path
    assert "the Hub does not answer; taking commit" in caplog.text
    with pytest.raises(ControlPlaneError, match="could not be fetched"):
        fetch_dataset(URI, tmp_path / "empty")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("hf://datasets/ann/sums", "is no file of a data set"),
        ("hf://datasets/ann/../x/a.jsonl", "is no file of a data set"),
        ("hf://datasets/ann/sums/../a.jsonl", "is no file of a data set"),
        ("hf://models/ann/sums/a.jsonl", "is no file of a data set"),
        ("hf://datasets/ann/sums/a.csv", r"data files end in \.jsonl or \.parquet"),
        ("hf://datasets/ann/sums/absent.jsonl", "there is no such file in the data set"),
        ("hf://datasets/ann/sums@nowhere/data/train.jsonl", "there is no such revision"),
        ("hf://datasets/ann/others/data/train.jsonl", "no such repository"),
    ],
)
def test_what_is_no_file_of_a_data_set_is_refused(hub: Running, tmp_path: Path, uri: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fetch_dataset(uri, tmp_path)


def test_a_uri_names_revision_and_path() -> None:
    of = DatasetFile.of("hf://datasets/ann/sums@refs~convert~parquet/default/train/0000.parquet")
    assert (of.revision, of.path) == ("refs/convert/parquet", "default/train/0000.parquet")
    assert DatasetFile.of("hf://datasets/ann/sums/x.jsonl").revision == "main"


def test_other_files_have_no_source_on_the_hub(tmp_path: Path) -> None:
    assert source_of(tmp_path / "rows.jsonl") is None
