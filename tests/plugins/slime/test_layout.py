"""The completeness rule, against checkpoints that the real torch and safetensors wrote."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from plugins.errors import StoreError, TornCheckpoint, UserError
from plugins.slime import layout

ITERATION = 19
NEEDED = [
    "iter_0000019/.metadata",
    "iter_0000019/__0_0.distcp",
    "iter_0000019/__0_1.distcp",
    "iter_0000019/common.pt",
    "iter_0000019/metadata.json",
    "rollout/global_dataset_state_dict_19.pt",
    "hf/19/config.json",
    "hf/19/model.safetensors.index.json",
    "hf/19/model-00001-of-00002.safetensors",
    "hf/19/model-00002-of-00002.safetensors",
]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A save dir as slime leaves it, by the libraries slime uses."""
    import argparse

    import torch
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import save_file

    save_dir = tmp_path_factory.mktemp("save")
    folder, hf = save_dir / "iter_0000019", save_dir / "hf" / "19"
    state = {"model": {"a": torch.ones(100, 10), "b": torch.zeros(7)}, "step": torch.tensor(3), "other": {"lr": 0.1}}
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=False, thread_count=2)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # "torch.distributed is disabled"
        dcp.save(state, storage_writer=writer, no_dist=True)
    torch.save({"args": argparse.Namespace(lr=0.1), "iteration": ITERATION}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    (save_dir / "rollout").mkdir()
    torch.save({"sample_offset": 64, "epoch_id": 0}, save_dir / "rollout" / "global_dataset_state_dict_19.pt")
    hf.mkdir(parents=True)
    (hf / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, shard in weight_map.items():
        save_file({name: state["model"][name]}, hf / shard, metadata={"format": "pt"})
    (hf / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    layout.write_tracker(save_dir, ITERATION)
    return save_dir


@pytest.fixture
def save_dir(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "save"))


def complete(save_dir: Path, **options: bool) -> None:
    layout.check_complete(save_dir, ITERATION, kind="slime", **{"export": True, **options})


def test_a_checkpoint_of_the_real_torch_is_complete(save_dir: Path) -> None:
    complete(save_dir)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file_is_named(save_dir: Path, name: str) -> None:
    (save_dir / name).unlink()
    with pytest.raises(TornCheckpoint, match=Path(name).name):
        complete(save_dir)


@pytest.mark.parametrize("name", NEEDED)
def test_a_file_cut_anywhere_is_named(save_dir: Path, name: str) -> None:
    path = save_dir / name
    whole = path.read_bytes()
    for size in sorted({0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 2, len(whole) - 1}):
        path.write_bytes(whole[:size])
        with pytest.raises(TornCheckpoint, match=path.name):
            complete(save_dir)
    path.write_bytes(whole)
    complete(save_dir)


@pytest.mark.parametrize("name", [".metadata", "metadata.json", "common.pt"])
def test_noise_in_a_small_file_is_torn_and_nothing_else(save_dir: Path, name: str) -> None:
    (save_dir / "iter_0000019" / name).write_bytes(b"\x80\x05\x95" + bytes(range(256)) * 3)
    with pytest.raises(TornCheckpoint, match=name):
        complete(save_dir)


def test_the_cursor_and_the_export_are_asked_only_when_wanted(save_dir: Path) -> None:
    (save_dir / "rollout" / "global_dataset_state_dict_19.pt").unlink()
    (save_dir / "hf" / "19" / "config.json").unlink()
    complete(save_dir, dataset_state=False, export=False)


def test_an_export_of_one_file_needs_no_index(save_dir: Path) -> None:
    hf = save_dir / "hf" / "19"
    (hf / "model.safetensors.index.json").unlink()
    (hf / "model-00001-of-00002.safetensors").rename(hf / "model.safetensors")
    complete(save_dir)
    os.truncate(hf / "model.safetensors", (hf / "model.safetensors").stat().st_size - 1)
    with pytest.raises(TornCheckpoint, match=r"model\.safetensors"):
        complete(save_dir)


def test_the_tensor_must_be_in_the_shard_that_the_index_names(save_dir: Path) -> None:
    index = save_dir / "hf" / "19" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(TornCheckpoint, match="does not hold a"):
        complete(save_dir)
    index.write_text(json.dumps({"weight_map": {"a": "../../iter_0000019/common.pt"}}))
    with pytest.raises(TornCheckpoint, match="where a file of the folder was expected"):
        complete(save_dir)


@pytest.mark.parametrize("name", ["/etc/hostname", "../rollout/global_dataset_state_dict_19.pt", ""])
def test_metadata_that_points_out_of_the_folder_is_torn(save_dir: Path, name: str) -> None:
    entry = SimpleNamespace(relative_path=name, offset=0, length=1)
    (save_dir / "iter_0000019" / ".metadata").write_bytes(pickle.dumps(SimpleNamespace(storage_data={0: entry})))
    with pytest.raises(TornCheckpoint, match="missing"):
        complete(save_dir)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reading_metadata_runs_no_code(save_dir: Path, tmp_path: Path, protocol: int) -> None:
    payload = pickle.dumps({"storage_data": Bomb(tmp_path / "ran")}, protocol)
    (save_dir / "iter_0000019" / ".metadata").write_bytes(payload)
    with pytest.raises(TornCheckpoint):
        complete(save_dir)
    assert not (tmp_path / "ran").exists()
    pickle.loads(payload)
    assert (tmp_path / "ran").exists()  # the payload was a real one


def test_the_check_imports_neither_torch_nor_anything_heavy(written: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from plugins.slime import layout;"
        f"layout.check_complete(Path({str(written)!r}), {ITERATION}, kind='slime', export=True);"
        "print(sorted({'torch', 'numpy', 'safetensors', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plain_checkpoint_needs_the_tracker_and_a_file(tmp_path: Path) -> None:
    def check() -> None:
        layout.check_complete(tmp_path, 4, kind="plain")

    with pytest.raises(TornCheckpoint, match="no such checkpoint"):
        check()
    (tmp_path / "iter_0000004").mkdir()
    with pytest.raises(TornCheckpoint, match="no file"):
        check()
    (tmp_path / "iter_0000004" / "weights.bin").write_bytes(b"w")
    with pytest.raises(TornCheckpoint, match="not called 4 complete"):
        check()
    layout.write_tracker(tmp_path, 3)
    with pytest.raises(TornCheckpoint, match="says 3"):
        check()
    for tracker in (4, 5):
        layout.write_tracker(tmp_path, tracker)
        check()


def test_an_unknown_kind_is_the_users_error(save_dir: Path) -> None:
    with pytest.raises(UserError, match="'slime' and 'plain'"):
        layout.check_complete(save_dir, ITERATION, kind="megatron")  # type: ignore[arg-type]


def test_files_are_listed_with_cursor_and_export_but_without_the_tracker(save_dir: Path) -> None:
    (save_dir / "iter_0000039").mkdir()
    (save_dir / "iter_0000039" / "common.pt").touch()
    listed = [path.as_posix() for path in layout.checkpoint_files(save_dir, ITERATION, kind="slime")]
    assert set(NEEDED) <= set(listed) and listed == sorted(listed, key=Path)
    assert {name.split("/")[0] for name in listed} == {"iter_0000019", "rollout", "hf"}


def test_a_link_to_a_folder_or_a_pipe_is_no_part_of_a_checkpoint(save_dir: Path) -> None:
    link = save_dir / "iter_0000019" / "more"
    link.symlink_to(save_dir / "rollout", target_is_directory=True)
    with pytest.raises(TornCheckpoint, match="link to a folder"):
        complete(save_dir)
    link.unlink()
    os.mkfifo(link)
    with pytest.raises(TornCheckpoint, match="not a file"):
        complete(save_dir)


def test_iterations_are_found_by_exact_folder_name(tmp_path: Path) -> None:
    for name in (
        "iter_0000039",
        "iter_0000019",
        "iter_12345678",
        "iter_00000019",
        "iter_19",
        "iter_0000059.tmp",
        "release",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "iter_0000099").touch()
    assert layout.list_iterations(tmp_path) == [19, 39, 12345678]
    assert layout.list_iterations(tmp_path / "absent") == []


@pytest.mark.parametrize("content", [b"", b"release", b"-1", b"1.5", b"\xff\x00", "\u0661".encode()])
def test_a_tracker_that_names_no_iteration_is_torn(tmp_path: Path, content: bytes) -> None:
    (tmp_path / layout.TRACKER).write_bytes(content)
    with pytest.raises(TornCheckpoint, match=layout.TRACKER):
        layout.read_tracker(tmp_path)


def test_the_tracker_is_written_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    assert layout.read_tracker(tmp_path) is None
    for iteration in (19, 39):
        layout.write_tracker(tmp_path, iteration)
        assert layout.read_tracker(tmp_path) == iteration
    assert [path.name for path in tmp_path.iterdir()] == [layout.TRACKER]
    (tmp_path / layout.TRACKER).write_text(" 59\n")
    assert layout.read_tracker(tmp_path) == 59


def test_an_unwritable_tracker_is_a_store_error_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="absent"):
        layout.write_tracker(tmp_path / "absent", 1)
