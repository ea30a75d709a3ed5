"""Which iterations a sealer may take, for every kind of save and every way one can be cut short."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugins.errors import StoreError, TornCheckpoint
from plugins.slime import layout

FILES = [
    "iter_{n:07d}/common.pt",
    "iter_{n:07d}/__0_0.distcp",
    "iter_{n:07d}/__0_1.distcp",
    "iter_{n:07d}/.metadata",
    "iter_{n:07d}/metadata.json",
    "hf/{n}/model-00001-of-00002.safetensors",
    "hf/{n}/model-00002-of-00002.safetensors",
    "hf/{n}/model.safetensors.index.json",
    "rollout/global_dataset_state_dict_{n}.pt",
]
"""What must be whole, in the order of a synchronous save; config.json of the export is copied and stands apart."""
MEMBERS = range(len(FILES))


def write(save_dir: Path, iteration: int) -> None:
    """One save by the real torch and safetensors; each file a second younger than the one before."""
    import torch
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import save_file

    folder, hf = layout.iteration_dir(save_dir, iteration), layout.export_dir(save_dir, iteration)
    state = {"model": {"a": torch.ones(30, 10), "b": torch.zeros(7)}, "step": torch.tensor(iteration)}
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, thread_count=2)
        dcp.save(state, storage_writer=writer, no_dist=True)
    torch.save({"iteration": iteration}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    hf.mkdir(parents=True)
    (hf / "config.json").write_text('{"model_type": "llama"}')
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, shard in shards.items():
        save_file({name: state["model"][name]}, hf / shard)
    (hf / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    cursor = layout.dataset_state_file(save_dir, iteration)
    cursor.parent.mkdir(exist_ok=True)
    torch.save({"sample_offset": 4, "epoch_id": 0}, cursor)
    for number, name in enumerate(FILES):
        touch(save_dir / name.format(n=iteration), 1000.0 + iteration * 100 + number)


def touch(path: Path, time_s: float) -> None:
    os.utime(path, (time_s, time_s))


@pytest.fixture(scope="session")
def two_saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save_dir = tmp_path_factory.mktemp("saves")
    for iteration in (19, 39):
        write(save_dir, iteration)
    layout.write_tracker(save_dir, 39)
    return save_dir


@pytest.fixture
def save_dir(two_saves: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_saves, tmp_path / "save"))  # copytree keeps the times


def complete(save_dir: Path, **options: object) -> list[int]:
    return layout.complete_iterations(save_dir, "slime", **{"export": True, **options})  # type: ignore[arg-type]


def test_what_is_complete_is_listed_newest_first(save_dir: Path) -> None:
    assert complete(save_dir) == layout.complete_iterations(save_dir, "slime", True, True) == [39, 19]
    assert complete(save_dir, after=19) == [39]
    assert complete(save_dir, after=39) == []
    assert complete(save_dir / "absent") == []


@pytest.mark.parametrize("tracker", ["19", "", "rel", None])
def test_a_tracker_that_is_late_torn_or_missing_hides_nothing(save_dir: Path, tracker: str | None) -> None:
    path = save_dir / layout.TRACKER
    path.unlink() if tracker is None else path.write_text(tracker)
    assert complete(save_dir) == [39, 19]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(member=st.sampled_from(MEMBERS), share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_at_any_byte_is_never_complete(save_dir: Path, member: int, share: float) -> None:
    path = save_dir / FILES[member].format(n=39)
    whole, times = path.read_bytes(), path.stat()
    os.truncate(path, int(len(whole) * share))
    touch(path, times.st_mtime)
    try:
        assert complete(save_dir) == [19]
    finally:
        path.write_bytes(whole)
        touch(path, times.st_mtime)
    assert complete(save_dir) == [39, 19]


@pytest.mark.parametrize("member", MEMBERS)
def test_a_synchronous_save_in_progress_is_complete_only_after_its_last_file(save_dir: Path, member: int) -> None:
    later = [save_dir / name.format(n=39) for name in FILES[member:]]
    for path in later:
        path.unlink()
    assert complete(save_dir) == [19]


def test_what_is_not_asked_for_is_not_waited_for(save_dir: Path) -> None:
    shutil.rmtree(save_dir / "hf" / "39")
    assert complete(save_dir) == [19]
    assert complete(save_dir, export=False) == [39, 19]
    layout.dataset_state_file(save_dir, 39).unlink()
    assert complete(save_dir, export=False) == [19]
    assert complete(save_dir, export=False, dataset_state=False) == [39, 19]


def test_an_asynchronous_save_that_was_not_finished_is_not_complete(save_dir: Path) -> None:
    """Data, export and cursor are there; `.metadata`, metadata.json and tracker come at the next save."""
    folder, late_s = layout.iteration_dir(save_dir, 39), 9000.0
    kept = {name: (folder / name).read_bytes() for name in (".metadata", "metadata.json")}
    for name in kept:
        (folder / name).unlink()
    layout.write_tracker(save_dir, 19)
    assert complete(save_dir) == [19]
    for number, (name, content) in enumerate(kept.items()):
        assert complete(save_dir) == [19]
        (folder / name).write_bytes(content)
        touch(folder / name, late_s + number)  # younger than export and cursor by a whole interval
    assert complete(save_dir) == [39, 19]  # the tracker still says 19


@pytest.mark.parametrize("renewed", MEMBERS[:3])
def test_a_folder_that_is_being_overwritten_does_not_pass_for_its_old_self(save_dir: Path, renewed: int) -> None:
    """The rest of the earlier save is whole, metadata.json included, and the new files have its very sizes."""
    for number, name in enumerate(FILES[: renewed + 1]):
        touch(save_dir / name.format(n=39), 9000.0 + number)
    layout.check_complete(save_dir, 39, kind="slime", export=True)  # by content alone it would
    assert complete(save_dir) == [19]
    with pytest.raises(TornCheckpoint, match="belongs to an earlier save"):
        layout.check_written_in_order(save_dir, 39)


@pytest.mark.parametrize("upto", [5, 6, 7, 8])
def test_the_cursor_and_export_of_an_earlier_save_are_not_taken_for_the_new_ones(save_dir: Path, upto: int) -> None:
    for number, name in enumerate(FILES[:upto]):
        touch(save_dir / name.format(n=39), 9000.0 + number)
    assert complete(save_dir) == [19]
    for number, name in enumerate(FILES):
        touch(save_dir / name.format(n=39), 9000.0 + number)
    assert complete(save_dir) == [39, 19]


def test_a_clock_that_steps_back_a_little_makes_no_checkpoint_torn(save_dir: Path) -> None:
    metadata = layout.iteration_dir(save_dir, 39) / ".metadata"
    touch(metadata, metadata.stat().st_mtime - 2.5)  # one second after the data files, minus 2.5
    assert complete(save_dir) == [39, 19]
    touch(metadata, metadata.stat().st_mtime - 3)
    assert complete(save_dir) == [19]


def test_metadata_that_names_no_backend_is_none(save_dir: Path) -> None:
    path = layout.iteration_dir(save_dir, 39) / "metadata.json"
    path.write_text("{}")
    with pytest.raises(TornCheckpoint, match="sharded_backend"):
        layout.check_complete(save_dir, 39, kind="slime")


def test_a_plain_trainer_is_believed_as_far_as_its_tracker_goes(tmp_path: Path) -> None:
    for iteration in (4, 9, 14):
        layout.iteration_dir(tmp_path, iteration).mkdir()
        (layout.iteration_dir(tmp_path, iteration) / "weights.bin").write_bytes(b"w")
    assert layout.complete_iterations(tmp_path, "plain") == []
    layout.write_tracker(tmp_path, 9)
    assert layout.complete_iterations(tmp_path, "plain") == [9, 4]
    (layout.iteration_dir(tmp_path, 4) / "weights.bin").unlink()
    assert layout.complete_iterations(tmp_path, "plain") == [9]
    (tmp_path / layout.TRACKER).write_text("")
    assert layout.complete_iterations(tmp_path, "plain") == []


def test_a_sick_disk_is_told_and_not_taken_for_a_torn_checkpoint(save_dir: Path) -> None:
    path = layout.dataset_state_file(save_dir, 39)
    path.unlink()
    path.symlink_to(path)  # opening it gives an error that is neither "missing" nor "cut"
    with pytest.raises(StoreError, match="cannot be read") as caught:
        complete(save_dir)
    assert not isinstance(caught.value, TornCheckpoint)
