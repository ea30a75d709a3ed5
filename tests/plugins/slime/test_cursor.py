"""The data cursor, from files of the real torch and of tinyslime."""

import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest

from plugins.errors import TornCheckpoint
from plugins.slime.cursor import START, Cursor, prompts_never_trained, read_cursor

STATE = {"sample_offset": 64, "epoch_id": 3, "sample_group_index": 1064, "sample_index": 8512, "metadata": {}}
CURSOR = Cursor(64, 3, 1064, 8512)


def saved(path: Path, state: object) -> Path:
    import torch

    torch.save(state, path)
    return path


def packed(path: Path, data: bytes, *, name: str = "archive/data.pkl", times: int = 1) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(times):
            archive.writestr(f"{number}{name}", data)
    return path


def test_what_torch_saved_is_read(tmp_path: Path) -> None:
    assert read_cursor(saved(tmp_path / "global_dataset_state_dict_19.pt", STATE)) == CURSOR


@pytest.mark.parametrize("metadata", [{"a": [1, (2, "b")], "c": None}, OrderedDict(x=1.5), {1, 2}, "text", [True]])
def test_metadata_may_hold_anything(tmp_path: Path, metadata: object) -> None:
    assert read_cursor(saved(tmp_path / "s.pt", STATE | {"metadata": metadata})) == CURSOR


def test_metadata_may_even_hold_a_tensor(tmp_path: Path) -> None:
    import torch

    assert read_cursor(saved(tmp_path / "s.pt", STATE | {"metadata": {"t": torch.ones(3)}})) == CURSOR


def test_an_absent_counter_is_zero_as_slime_reads_it(tmp_path: Path) -> None:
    assert read_cursor(saved(tmp_path / "s.pt", {"sample_offset": 5})) == Cursor(5, 0, 0, 0)


def test_a_cold_start_stands_at_zero() -> None:
    assert Cursor(0, 0, 0, 0) == START


def test_a_file_cut_anywhere_is_torn(tmp_path: Path) -> None:
    path = saved(tmp_path / "s.pt", STATE)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(TornCheckpoint, match=r"s\.pt"):
            read_cursor(path)
    path.write_bytes(whole)
    assert read_cursor(path) == CURSOR


def test_a_changed_byte_of_the_pickle_is_torn(tmp_path: Path) -> None:
    path = saved(tmp_path / "s.pt", STATE)
    whole = path.read_bytes()
    at = whole.index(b"sample_offset")
    path.write_bytes(whole[:at] + b"X" + whole[at + 1 :])
    with pytest.raises(TornCheckpoint):
        read_cursor(path)


def test_a_missing_file_is_torn_and_named(tmp_path: Path) -> None:
    with pytest.raises(TornCheckpoint, match=r"absent\.pt: is missing"):
        read_cursor(tmp_path / "absent.pt")


@pytest.mark.parametrize(
    "state",
    [
        [1, 2],
        {"metadata": {}},
        STATE | {"sample_index": -1},
        STATE | {"sample_index": "7"},
        STATE | {"sample_index": 7.0},
        STATE | {"sample_index": True},
        STATE | {"epoch_id": None},
    ],
)
def test_what_is_no_cursor_is_torn(tmp_path: Path, state: object) -> None:
    with pytest.raises(TornCheckpoint):
        read_cursor(saved(tmp_path / "s.pt", state))


def test_a_zip_with_two_or_no_pickles_is_torn(tmp_path: Path) -> None:
    data = pickle.dumps(STATE)
    assert read_cursor(packed(tmp_path / "one.pt", data, name="/data.pkl")) == CURSOR
    for path in (
        packed(tmp_path / "two.pt", data, name="/data.pkl", times=2),
        packed(tmp_path / "no.pt", data, times=0),
    ):
        with pytest.raises(TornCheckpoint, match=r"times data\.pkl"):
            read_cursor(path)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reading_runs_no_code(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps(STATE | {"metadata": Bomb(tmp_path / "ran")}, protocol)
    assert read_cursor(packed(tmp_path / "s.pt", data, name="/data.pkl")) == CURSOR
    with pytest.raises(TornCheckpoint):
        read_cursor(packed(tmp_path / "t.pt", pickle.dumps(Bomb(tmp_path / "ran"), protocol), name="/data.pkl"))
    assert not (tmp_path / "ran").exists()
    pickle.loads(data)
    assert (tmp_path / "ran").exists()  # the payload was a real one


def test_the_reader_needs_no_torch(tmp_path: Path) -> None:
    path = saved(tmp_path / "s.pt", STATE)
    program = (
        "import sys; from pathlib import Path; from plugins.slime.cursor import read_cursor;"
        f"print(read_cursor(Path({str(path)!r})).sample_index, sorted({{'torch', 'numpy'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "8512 []"


def test_prompts_drawn_ahead_of_training_are_counted() -> None:
    sync, ahead = Cursor(sample_group_index=8), Cursor(sample_group_index=12)
    assert prompts_never_trained(sync, 1, 4) == 0
    assert prompts_never_trained(ahead, 1, 4) == 4
    assert prompts_never_trained(Cursor(sample_group_index=3), 1, 4) == 0
