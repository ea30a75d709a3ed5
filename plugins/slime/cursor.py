"""The data cursor that slime saves with a checkpoint: which row of the data comes next.

    <save_dir>/rollout/global_dataset_state_dict_19.pt
        {sample_offset, epoch_id, sample_group_index, sample_index, metadata}

Read and written without torch and without running code of the file, so that a resume can be compared with it on any
machine (`resume`). The counters are slime's (slime/rollout/data_source.py:88-121): `sample_group_index` prompts and
`sample_index` samples were drawn over the whole life of the stage, `sample_offset` prompts of them in epoch `epoch_id`.
The next prompt therefore carries `group_index == sample_group_index`, its first sample `index == sample_index`.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from plugins.errors import StoreError
from plugins.slime.whole import load_inert, reading, torch_pickle


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


class NotPlain(ValueError):
    """A cursor that cannot be put back by counting; the message is the reason, for a person."""


def read_cursor(path: Path) -> Cursor:
    """Read the cursor from a file that `torch.save` wrote.

    A counter that is absent reads as 0, as slime reads it (data_source.py:153-156); `metadata` may hold anything and
    is not looked at.
    Raises TornCheckpoint when the file is missing, cut, damaged, or holds no cursor; StoreError when the disk refuses.
    """
    with reading(path, "data cursor"):
        state = load_inert(io.BytesIO(torch_pickle(path)))
        names = [field.name for field in fields(Cursor)]
        if not isinstance(state, dict) or not any(name in state for name in names):
            raise ValueError("no dict with a cursor's counters in it")
        counters = {name: state.get(name, 0) for name in names}
        for name, value in counters.items():
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} is {value!r}, not a count")
        return Cursor(**counters)


def put_back(cursor: Cursor, prompts: int, samples_per_prompt: int, rows: int | None = None) -> Cursor:
    """Where the data source stood before it drew its last batch of `prompts` prompts.

    rows: of the data, after slime's own filter; None where only the counters know. slime takes what is left of an
    epoch, shuffles anew and takes the rest of the batch from the next one (data_source.py:88-107), so an offset that is
    smaller than the batch means that the batch began in the epoch before. Standing at the end of an epoch and standing
    at the start of the next are two ways to say the same, and slime draws the same rows from both.
    Raises NotPlain when this cannot have been the last draw.
    """
    samples = prompts * samples_per_prompt
    if cursor.sample_group_index < prompts or cursor.sample_index < samples:
        raise NotPlain(f"{cursor} is less than one batch of {prompts} prompts")
    drawn = {
        "sample_group_index": cursor.sample_group_index - prompts,
        "sample_index": cursor.sample_index - samples,
    }
    if cursor.sample_offset >= prompts:
        return Cursor(cursor.sample_offset - prompts, cursor.epoch_id, **drawn)
    length = _epoch_length(cursor, rows)
    if length < prompts:
        raise NotPlain(f"an epoch of {length} rows is shorter than a batch of {prompts} prompts")
    return Cursor(length - (prompts - cursor.sample_offset), cursor.epoch_id - 1, **drawn)


def _epoch_length(cursor: Cursor, rows: int | None) -> int:
    """Rows of an epoch, from the counters: all that was drawn is whole epochs and the offset into this one."""
    whole = cursor.sample_group_index - cursor.sample_offset
    if cursor.epoch_id < 1 or whole % cursor.epoch_id:
        raise NotPlain(f"{cursor} with offset {cursor.sample_offset} is no number of whole epochs")
    length = whole // cursor.epoch_id
    if rows is not None and rows != length:
        raise NotPlain(f"the data has {rows} rows, but the cursor counts epochs of {length}: the data was changed")
    return length


def write_moved(source: Path, target: Path, cursor: Cursor) -> None:
    """Write `target` as `source` with other counters; `metadata` and everything else stay as they are.

    The file is what `torch.save` makes: its zip is copied member by member, the pickle alone is new.
    Raises TornCheckpoint for a damaged source, NotPlain when it holds more than plain values (slime's own load would
    refuse most of these), StoreError when the disk refuses.
    """
    with reading(source, "data cursor"):
        data = torch_pickle(source)
    try:
        state = _PlainUnpickler(io.BytesIO(data)).load() | asdict(cursor)
    except NotPlain as error:
        raise NotPlain(f"{source.name} {error}") from None
    with reading(source, "data cursor"), zipfile.ZipFile(source) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as copy:
            for info, content in members:
                is_state = info.filename.rpartition("/")[2] == "data.pkl"
                copy.writestr(zipfile.ZipInfo(info.filename), pickle.dumps(state, 2) if is_state else content)
    except OSError as error:
        raise StoreError(f"{target}: cannot be written ({error.strerror}): check space and rights there") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise NotPlain(f"holds a {module}.{name}, which is not a plain value")

    def persistent_load(self, _pid: Any) -> Any:
        raise NotPlain("holds a tensor")


def prompts_never_trained(cursor: Cursor, iteration: int, prompts_per_rollout: int) -> int:
    """How many prompts the cursor of `iteration` counts that iterations 0 to `iteration` did not train on.

    0 for slime's train.py. train_async.py draws batch N+1 before it saves N (train_async.py:39-40), so one batch for
    each save that was resumed from as it stood, plus that of `iteration` itself; filters and over-sampling add theirs.
    """
    return max(0, cursor.sample_group_index - (iteration + 1) * prompts_per_rollout)
