"""The weights an attempt starts from, with a Hub of ours, a real store and stand-ins of slime's tools."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugins.checkpoints.seal import seal
from plugins.checkpoints.stores.several import SeveralStores
from plugins.errors import UserError
from plugins.slime import layout
from plugins.slime.convert import check_converted
from plugins.slime.weights import Weights
from tasks import stage_weights
from tasks.base_model import KEY
from tasks.stage_attempt import Stage, StageEnded
from tasks.stage_contract import InitFrom
from tasks.stage_weights import find_weights
from tasks.train_stage import train_stage
from tests.hub_server.app import Limits
from tests.hub_server.filling import fill
from tests.hub_server.running import Running, running_hub
from tests.plugins.checkpoints.conftest import Trainer
from tests.plugins.slime.hf_folders import CONFIG, write_hf
from tests.plugins.slime.stand_in_tools import write_tools
from tests.tasks.test_train_stage import RUN, Bench, ScriptedJobs

TOKEN, REPO = "hf_ann0of0stage", "ann/base"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_hub(tmp_path_factory.mktemp("hub"), Limits()) as hub:
        hub.token(TOKEN, "ann")
        yield hub


@pytest.fixture
def hub(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(stage_weights, "LOOK_S", 0.01)
    publish(running, write_hf(tmp_path / "published"))
    running.clear()
    return running


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def another(folder: Path) -> Bench:
    folder.mkdir()
    return Bench(folder)


def publish(hub: Running, folder: Path) -> str:
    return fill(hub, TOKEN, REPO, {path.name: path.read_bytes() for path in folder.iterdir()}, private=True)


def stage(bench: Bench, attempt: int = 1, *, name: str = "sft", **changes: Any) -> Stage:
    trainer = {"kind": changes.pop("kind", "slime"), "python": sys.executable}
    trainer |= {"slime_dir": str(bench.folder / "slime"), "megatron_dir": str(bench.folder / "megatron")}
    made = bench.stage(attempt, name=name, trainer=trainer, **changes)
    made.attempt_dir.mkdir(parents=True, exist_ok=True)
    return made


def find(bench: Bench, one: Stage) -> Weights:
    found = find_weights(one, SeveralStores([bench.store]))
    assert found is not None
    return found


def from_hub(**model: Any) -> dict[str, Any]:
    return {"hf_checkpoint": REPO, **model}


def test_a_base_model_is_fetched_once_for_all_stages_of_the_pod(hub: Running, bench: Bench, tmp_path: Path) -> None:
    first = stage(bench, model=from_hub())
    weights = find(bench, first)
    name, _, commit = weights.origin.partition("@")
    assert (name, len(commit)) == (REPO, 40) and first.order.lineage[KEY] == weights.origin
    assert weights.hf_checkpoint == weights.ref_load == bench.root / "models" / f"ann--base@{commit}"
    there = {path.name for path in weights.hf_checkpoint.iterdir()}
    assert there == {path.name for path in (tmp_path / "published").iterdir()}
    assert any("MB/s" in line for line in bench.said)
    hub.clear()
    second = stage(bench, name="rl", model=from_hub(), section={"environment": {"task": "arithmetic"}})
    second.order.lineage.update(first.order.lineage)
    assert find(bench, second) == weights
    assert hub.calls() == []  # not even asked: another pod may have no other way to know the commit


def test_the_commit_stays_that_of_the_run_although_the_model_changes(
    hub: Running, bench: Bench, tmp_path: Path
) -> None:
    first = stage(bench, model=from_hub(), kind="tinyslime")
    before = find(bench, first)
    Trainer(first.save_dir).save(3, export=True)
    manifest = seal(
        first.save_dir, 3, run_id=RUN, stage="sft", attempt=1, token=1, export=True, lineage=first.order.lineage
    )
    bench.store.put(manifest, first.save_dir)
    changed = write_hf(tmp_path / "changed", {**CONFIG, "changed": True})
    publish(hub, changed)
    other_pod = stage(bench, 2, root=tmp_path / "pod-2", model=from_hub(), kind="tinyslime")
    other_pod.order.lineage[KEY] = f"{REPO}@{'c' * 40}"  # what the steering process of a later day found
    after = find(bench, other_pod)
    assert after.origin == before.origin == other_pod.order.lineage[KEY]
    assert "changed" not in json.loads((after.hf_checkpoint / "config.json").read_text())
    fresh = another(tmp_path / "another-run")
    assert find(fresh, stage(fresh, model=from_hub(), kind="tinyslime")).origin != before.origin


def test_the_order_binds_the_commit_before_there_is_a_checkpoint(hub: Running, bench: Bench, tmp_path: Path) -> None:
    old = publish(hub, tmp_path / "published")
    publish(hub, write_hf(tmp_path / "changed", {**CONFIG, "changed": True}))
    one = stage(bench, model=from_hub())
    one.order.lineage[KEY] = f"{REPO}@{old}"
    assert find(bench, one).origin == f"{REPO}@{old}"


def test_a_fetch_that_ended_early_is_gone_on_with_and_never_taken_for_whole(hub: Running, bench: Bench) -> None:
    hub.fault("GET .*/resolve/.*/tokenizer.json", status=403)
    with pytest.raises(UserError, match=r"could not download tokenizer\.json: the token may not read it"):
        find(bench, stage(bench, model=from_hub()))
    (folder,) = (bench.root / "models").iterdir()  # and nothing beside it says that it is whole
    assert not (folder / "tokenizer.json").exists()
    weights = find(bench, stage(bench, 2, model=from_hub()))
    assert weights.hf_checkpoint == folder and (folder / "tokenizer.json").exists()


def test_files_that_were_damaged_after_the_fetch_are_fetched_again(hub: Running, bench: Bench) -> None:
    weights = find(bench, stage(bench, model=from_hub()))
    shard = weights.hf_checkpoint / "model-00001-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-7])
    assert find(bench, stage(bench, 2, model=from_hub())) == weights
    assert shard.read_bytes() == whole


def test_a_cancel_is_heard_during_the_fetch(hub: Running, bench: Bench) -> None:
    hub.fault("GET .*/resolve/.*/tokenizer.json", slow_s=3)
    one = stage(bench, model=from_hub())
    bench.ear.ended.set()
    with pytest.raises(StageEnded):
        find(bench, one)
    assert any(beat.phase.startswith("fetching ann/base: ") for beat in bench.ear.beats)


def test_a_model_type_that_slime_cannot_load_is_converted_once(hub: Running, bench: Bench, tmp_path: Path) -> None:
    write_tools(bench.folder / "slime")
    publish(hub, write_hf(tmp_path / "olmo", {**CONFIG, "model_type": "olmo"}))
    model = from_hub(args={"num-layers": 2, "hidden-size": 10})
    weights = find(bench, stage(bench, model=model))
    assert weights.ref_load == weights.hf_checkpoint.with_name(f"{weights.hf_checkpoint.name}.torch_dist")
    check_converted(weights.ref_load)
    log = (bench.root / f"runs/{RUN}/sft/attempt-1/convert.log").read_text()
    assert "tracker says release" in log
    assert find(bench, stage(bench, 2, model=model)) == weights
    assert not (bench.root / f"runs/{RUN}/sft/attempt-2/convert.log").exists()
    for kind in ("tinyslime", "command"):
        assert find(bench, stage(bench, 3, model=model, kind=kind)).ref_load == weights.hf_checkpoint


def test_a_conversion_that_fails_ends_the_stage_with_its_last_lines(
    hub: Running, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tools(bench.folder / "slime")
    publish(hub, write_hf(tmp_path / "olmo", {**CONFIG, "model_type": "olmo"}))
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(UserError, match=r"convert\.log\. Its last lines:\n(.*\n)*ValueError: no such layer"):
        find(bench, stage(bench, model=from_hub(args={"num-layers": 2})))


def test_a_folder_on_the_pod_is_proved_before_slime_starts_on_it(bench: Bench) -> None:
    folder = write_hf(bench.folder / "mine")
    weights = find(bench, stage(bench, model={"hf_checkpoint": str(folder)}))
    assert weights == Weights(folder, folder, str(folder))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.hf_checkpoint .*mine cannot be trained from: .*00002-of-00002"):
        find(bench, stage(bench, model={"hf_checkpoint": str(folder)}))
    own = {"extra_args": {"rollout-batch-size": 4, "ref-load": "/root/converted"}}
    weights = find(bench, stage(bench, model={"hf_checkpoint": str(folder)}, section=own))
    assert weights.ref_load == Path("/root/converted")


def test_no_model_means_no_weights(bench: Bench) -> None:
    assert find_weights(stage(bench, kind="tinyslime"), SeveralStores([bench.store])) is None


def sealed_sft(bench: Bench, config: dict[str, Any], *, tokenizer: bool = True) -> InitFrom:
    trainer = Trainer(bench.folder / "sft-save")
    trainer.save(7)
    write_hf(layout.export_dir(trainer.save_dir, 7), config, tokenizer=tokenizer)
    who: dict[str, Any] = {"run_id": RUN, "stage": "sft", "attempt": 1, "token": 1}
    manifest = seal(trainer.save_dir, 7, **who, export=True)
    bench.store.put(manifest, trainer.save_dir)
    return InitFrom(run_id=RUN, stage="sft", iteration=7, revision=manifest.digest())


def rl(bench: Bench, attempt: int = 1, **changes: Any) -> Stage:
    return stage(bench, attempt, name="rl", section={"environment": {"task": "arithmetic"}}, **changes)


def test_rl_starts_from_the_export_of_sft_without_a_conversion(bench: Bench) -> None:
    init = sealed_sft(bench, CONFIG)
    weights = find(bench, rl(bench, init=init))
    folder = bench.root / f"runs/{RUN}/rl/init/hf/7"
    assert weights == Weights(folder, folder, f"{RUN}/sft iteration 7")


def test_rl_keeps_its_reference_when_it_goes_on_from_a_checkpoint(bench: Bench) -> None:
    init = sealed_sft(bench, CONFIG)
    before = find(bench, rl(bench, init=init))
    inode = (before.hf_checkpoint / "config.json").stat().st_ino
    again = rl(bench, 2, init=init, model={"hf_checkpoint": "/root/models/base"})
    again.restored = bench.store.list(RUN, "sft")[0]
    assert find(bench, again) == before
    assert (before.hf_checkpoint / "config.json").stat().st_ino == inode  # verified, not fetched a second time
    assert not (before.hf_checkpoint.parents[1] / ".quarantine").exists()


def test_an_export_without_a_tokenizer_gets_the_base_models(bench: Bench) -> None:
    init = sealed_sft(bench, CONFIG, tokenizer=False)
    base = write_hf(bench.folder / "base")
    weights = find(bench, rl(bench, init=init, model={"hf_checkpoint": str(base)}))
    assert (weights.hf_checkpoint / "tokenizer.json").exists()
    assert any("the export had no tokenizer" in line for line in bench.said)
    bare = another(bench.folder / "bare")
    with pytest.raises(UserError, match=r"set model\.hf_checkpoint"):
        find(bare, rl(bare, init=sealed_sft(bare, CONFIG, tokenizer=False)))


def test_the_export_of_a_model_that_slime_cannot_load_is_converted(bench: Bench) -> None:
    write_tools(bench.folder / "slime")
    init = sealed_sft(bench, {**CONFIG, "model_type": "olmo"})
    weights = find(bench, rl(bench, init=init, model={"args": {"num-layers": 2}}))
    assert weights.ref_load.name == "7.torch_dist" and weights.hf_checkpoint.name == "7"
    check_converted(weights.ref_load)


def test_an_export_that_is_not_in_the_store_is_said(bench: Bench) -> None:
    with pytest.raises(UserError, match=r"iteration 9, which .* does not have"):
        find(bench, rl(bench, init=InitFrom(run_id=RUN, stage="sft", iteration=9)))


def test_no_token_stands_in_what_the_stage_says(hub: Running, bench: Bench) -> None:
    find(bench, stage(bench, model=from_hub()))
    assert TOKEN in os.environ.values() and not any(TOKEN in line for line in bench.said)


def test_a_whole_attempt_gives_the_trainer_the_folder_and_seals_the_commit(hub: Running, bench: Bench) -> None:
    jobs = ScriptedJobs(lambda start: start.save(3, 7))
    one = stage(bench, model=from_hub(), kind="tinyslime")
    train_stage(one, jobs)
    folder = bench.root / "models" / one.order.lineage[KEY].replace("/", "--")
    assert jobs.starts[0].flag("--hf-checkpoint") == jobs.starts[0].flag("--ref-load") == str(folder)
    newest = bench.store.latest(RUN, "sft")
    assert newest is not None and newest.lineage[KEY] == one.order.lineage[KEY]


def test_a_recipe_may_name_another_hub(hub: Running, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert find(bench, stage(bench, model=from_hub(), env={"HF_ENDPOINT": hub.url})).origin.startswith(f"{REPO}@")
