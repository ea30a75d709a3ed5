"""Milestones that the stage pushes: what was pushed, what was not, and that the result and the summary name both."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plugins.checkpoints.manifest import FileEntry, Manifest
from plugins.checkpoints.milestones import MilestoneRule
from plugins.checkpoints.stores.several import SeveralStores
from tasks import stage_publish
from tasks.pipeline import _summarise, sources_of
from tasks.stage_contract import StageResult
from tasks.stage_publish import Pusher
from tests.hub_server.running import Running, running_hub
from tests.plugins.checkpoints.conftest import Trainer
from tests.tasks.test_train_stage import Bench

LONG_S = 60.0


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    with running_hub(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token("hf_writes", "me"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setattr(stage_publish, "PUSH_PAUSES_S", (0.0,))
        yield server


@pytest.fixture
def pushing(tmp_path: Path, hub: Running) -> Iterator[Any]:
    """A pusher for one stage, and the trainer whose save dir it pushes from."""
    bench = Bench(tmp_path)
    made: list[Pusher] = []

    def make(to: str = "hub://me/model-{stage}", **milestones: Any) -> SimpleNamespace:
        stage = bench.stage(milestones={"push_to": to, **milestones})
        pusher = Pusher(stage, SeveralStores([bench.store]), MilestoneRule(interval=4))
        made.append(pusher)
        return SimpleNamespace(stage=stage, pusher=pusher, trainer=Trainer(stage.save_dir), said=bench.said)

    yield make
    for pusher in made:
        pusher.stop()


def test_a_milestone_is_pushed_once_however_many_stores_got_it(pushing, hub: Running) -> None:
    here = pushing()
    manifest = here.trainer.sealed(3, export=True)
    for uri in ("folder:/near", "s3://far"):
        here.pusher.landed(manifest, uri)
    here.pusher.landed(here.trainer.sealed(5, export=True), "folder:/near")  # no milestone
    assert here.pusher.wait(LONG_S)
    assert [one.iteration for one in here.pusher.done] == [3] and here.pusher.missed == []
    assert here.pusher.done[0].url.startswith(f"{hub.url}/me/model-sft/tree/")


def test_a_push_that_cannot_succeed_is_named_and_the_next_one_goes_on(pushing) -> None:
    here = pushing()
    broken = here.trainer.sealed(3, export=True)
    weights = here.stage.save_dir / "hf" / "3" / "model.safetensors"
    weights.write_bytes(bytes(reversed(weights.read_bytes())))
    here.pusher.landed(broken, "folder:/x")
    here.pusher.landed(here.trainer.sealed(7, export=True), "folder:/x")
    assert here.pusher.wait(LONG_S)
    assert [one.iteration for one in here.pusher.done] == [7]
    assert len(here.pusher.missed) == 1 and here.pusher.missed[0].startswith("milestone 3 (every 4 iterations) was not")
    assert here.pusher.warning == here.pusher.missed[0]


def test_a_hub_that_fails_once_gets_the_milestone_at_the_second_try(pushing, hub: Running) -> None:
    here = pushing()
    hub.fault("/api/", times=6, status=500)
    here.pusher.landed(here.trainer.sealed(3, export=True), "folder:/x")
    assert here.pusher.wait(LONG_S)
    assert [one.iteration for one in here.pusher.done] == [3] and here.pusher.missed == []


def test_rollouts_that_grow_while_they_are_pushed_go_along(pushing) -> None:
    here = pushing(rollouts=True)
    file = here.stage.attempt_dir / "rollouts" / "progress.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("one\n")
    here.pusher.landed(here.trainer.sealed(3, export=True), "folder:/x")
    with file.open("a") as growing:
        growing.write("two\n")
    assert here.pusher.wait(LONG_S) and here.pusher.missed == []


def test_what_there_was_no_time_to_push_is_missed_and_not_forgotten(pushing, hub: Running) -> None:
    here = pushing()
    hub.fault("/api/", times=10_000, status=500)
    here.pusher.landed(here.trainer.sealed(3, export=True), "folder:/x")
    here.pusher.stop()
    assert here.pusher.missed == ["milestone 3 was not pushed: there was no time"]


def test_an_asset_is_made_from_the_checkpoint_before_the_data_and_the_weights_it_began_with() -> None:
    entry = FileEntry(path="iter_0000003/w", size_bytes=1, sha256="0" * 64)
    names = {"run_id": "r", "stage": "rl", "iteration": 3, "attempt": 1, "token": 1, "kind": "plain"}
    later = Manifest(**names, files=(entry,), parent="s3://b/r/rl/iter_1", lineage={"init": "s3://b/r/sft/iter_9"})
    assert sources_of(later, Path("/d.jsonl"), "/hf") == ["s3://b/r/rl/iter_1", "file:/d.jsonl", "s3://b/r/sft/iter_9"]
    assert sources_of(later.model_copy(update={"parent": None, "lineage": {}}), None, "/hf") == ["file:/hf"]
    based = later.model_copy(update={"parent": None, "lineage": {"base_model": "Qwen/Qwen3-4B@abc"}})
    assert sources_of(based, None, "Qwen/Qwen3-4B") == ["hub://Qwen/Qwen3-4B@abc"]


def test_the_summary_names_what_was_pushed_and_what_was_not() -> None:
    shown: dict[str, str] = {}
    board = SimpleNamespace(show_markdown=lambda name, text: shown.update({name: text}))
    names = {"run_id": "r", "stage": "sft", "attempt": 1, "outcome": "completed", "last_iteration": 7}
    pushed = {"iteration": 3, "reason": "every 4 iterations", "url": "http://hub/me/model", "revision": "abc"}
    result = StageResult(
        **names, checkpoint_uri="folder:/x", milestones=[pushed], missed=["milestone 7 was not pushed"]
    )
    _summarise(SimpleNamespace(run_id="r", board=board), [result], 0.0)  # type: ignore[arg-type]
    assert "pushed: http://hub/me/model (every 4 iterations)" in shown["summary"]
    assert "**milestone 7 was not pushed**" in shown["summary"]
