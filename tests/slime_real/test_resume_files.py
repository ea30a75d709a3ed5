"""The completeness rule against a checkpoint that Megatron's and slime's own writers made on the CPU."""

import shutil
from pathlib import Path

import pytest

from plugins.errors import TornCheckpoint
from plugins.slime import layout
from plugins.slime.cursor import Cursor, read_cursor
from plugins.slime.saved import read_saved
from tests.slime_real import needs_slime, run

pytestmark = needs_slime

NEEDED = [
    "iter_0000008/.metadata",
    "iter_0000008/__0_0.distcp",
    "iter_0000008/__0_1.distcp",
    "iter_0000008/common.pt",
    "iter_0000008/metadata.json",
    "rollout/global_dataset_state_dict_8.pt",
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save_dir = tmp_path_factory.mktemp("written") / "save"
    said = run(Path(__file__).with_name("resume.py"), ["writes", str(save_dir), "8"])["said"]
    assert said["loads"] == ["decoder.w", "output.w"]  # Megatron reads it back
    return save_dir


@pytest.fixture
def save_dir(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "save"))


def test_it_is_complete_and_written_in_order(save_dir: Path) -> None:
    assert layout.complete_iterations(save_dir, "slime") == [8]
    assert layout.read_tracker(save_dir) == 8
    assert sorted(str(path) for path in layout.checkpoint_files(save_dir, 8, kind="slime")) == NEEDED


@pytest.mark.parametrize("name", NEEDED)
def test_it_is_not_complete_without_any_one_of_its_files(save_dir: Path, name: str) -> None:
    (save_dir / name).unlink()
    with pytest.raises(TornCheckpoint, match=Path(name).name):
        layout.check_complete(save_dir, 8, kind="slime")


@pytest.mark.parametrize("name", NEEDED)
def test_it_is_not_complete_with_any_one_file_cut_short(save_dir: Path, name: str) -> None:
    whole = (save_dir / name).read_bytes()
    sizes = {0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 64, len(whole) - 1} - {len(whole)}
    for size in sorted(size for size in sizes if size >= 0):
        (save_dir / name).write_bytes(whole[:size])
        with pytest.raises(TornCheckpoint, match=Path(name).name):
            layout.check_complete(save_dir, 8, kind="slime")


def test_what_it_says_of_its_run_is_read_without_torch(save_dir: Path) -> None:
    saved = read_saved(layout.iteration_dir(save_dir, 8))
    assert (saved.args["rollout_batch_size"], saved.args["num_rollout"]) == (4, 9)
    assert saved.schedule == {"max_lr": 1e-5, "num_steps": 16}
    assert (saved.sharding, saved.reshardable, saved.has_optimizer) == ("dp_reshardable", False, True)
    assert read_cursor(layout.dataset_state_file(save_dir, 8)) == Cursor(20, 0, 20, 20)
