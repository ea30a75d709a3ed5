"""The data cursor that slime saves with a checkpoint: which row of the data comes next.

    <save_dir>/rollout/global_dataset_state_dict_19.pt
        {sample_offset, epoch_id, sample_group_index, sample_index, metadata}

Read without torch and without running code of the file, so that a resume can be compared with it on any machine
(`resume`). The counters are slime's (slime/rollout/data_source.py:88-121): `sample_group_index` prompts and
`sample_index` samples were drawn over the whole life of the stage, `sample_offset` prompts of them in epoch `epoch_id`.
The next prompt therefore carries `group_index == sample_group_index`, its first sample `index == sample_index`.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

from plugins.slime.whole import PICKLE_LIMIT_BYTES, load_inert, reading


@dataclass(frozen=True)
class Cursor:
    """Where the data source stands. All counts from 0: prompts into the epoch, epoch, prompts and samples drawn."""

    sample_offset: int = 0
    epoch_id: int = 0
    sample_group_index: int = 0
    sample_index: int = 0

    def __str__(self) -> str:
        return f"prompt {self.sample_group_index}, sample {self.sample_index} (epoch {self.epoch_id})"


START = Cursor()
"""The cursor of a cold start."""


def read_cursor(path: Path) -> Cursor:
    """Read the cursor from a file that `torch.save` wrote.

    A counter that is absent reads as 0, as slime reads it (data_source.py:153-156); `metadata` may hold anything and
    is not looked at.
    Raises TornCheckpoint when the file is missing, cut, damaged, or holds no cursor; StoreError when the disk refuses.
    """
    with reading(path, "data cursor"):
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"]
            if len(members) != 1:
                raise ValueError(f"{len(members)} times data.pkl in the zip")
            if members[0].file_size > PICKLE_LIMIT_BYTES:
                raise ValueError(f"a data.pkl of {members[0].file_size} bytes")
            state = load_inert(io.BytesIO(archive.read(members[0])))
        names = [field.name for field in fields(Cursor)]
        if not isinstance(state, dict) or not any(name in state for name in names):
            raise ValueError("no dict with a cursor's counters in it")
        counters = {name: state.get(name, 0) for name in names}
        for name, value in counters.items():
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} is {value!r}, not a count")
        return Cursor(**counters)


def prompts_never_trained(cursor: Cursor, iteration: int, prompts_per_rollout: int) -> int:
    """How many prompts the cursor of `iteration` counts that iterations 0 to `iteration` did not train on.

    0 for slime's train.py. train_async.py draws batch N+1 before it saves N (train_async.py:39-40), so one batch for
    each save that was resumed from is lost, plus that of `iteration` itself; filters and over-sampling add theirs.
    """
    return max(0, cursor.sample_group_index - (iteration + 1) * prompts_per_rollout)
