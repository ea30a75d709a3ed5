"""Whether one file of a checkpoint is whole, told from its own bytes without torch.

Every format slime writes says somewhere how long it is: a torch file is a zip whose directory comes last, a pickle ends
with its stop code, a safetensors header gives byte ranges, `.metadata` promises the length of each data file. Reading
runs no code of the file: a pickle's classes are replaced by one that does nothing. Which files make a checkpoint is
`layout`'s matter.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from plugins.errors import StoreError, TornCheckpoint

PICKLE_LIMIT_BYTES = 64 << 20
"""A `data.pkl` larger than this is not read: it holds a dict of a few numbers, or the names of tensors."""
_BITS = re.compile(r"[A-Z]+?(\d+)(?:_\w+)?")


def unreadable(path: Path, error: OSError) -> StoreError:
    """The error for a disk that refuses: not the checkpoint is at fault but owner, rights or hardware."""
    return StoreError(f"{path}: cannot be read ({error.strerror or error}): check owner, rights and disk")


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a cut or damaged file makes a reader raise into TornCheckpoint, and a sick disk into StoreError."""
    try:
        yield
    except StoreError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise TornCheckpoint(f"{path}: is missing: the checkpoint is not complete") from None
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # zipfile seeks before the start of a cut file
            raise TornCheckpoint(f"{path}: is no whole {what} ({error}): the write was cut") from error
        raise unreadable(path, error) from error
    except Exception as error:  # a cut or hostile pickle may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise TornCheckpoint(f"{path}: is no whole {what} ({reason}): the write was cut") from error


def files_under(folder: Path) -> list[Path]:
    """Every file below a folder, none when it does not exist.

    Raises TornCheckpoint for a link to a folder, a pipe, a socket; StoreError when a folder cannot be listed.
    """
    files: list[Path] = []

    def stop(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise unreadable(folder, error) from error

    for where, folders, names in os.walk(folder, onerror=stop):
        files += [Path(where, name) for name in names]
        if links := [name for name in folders if Path(where, name).is_symlink()]:
            raise TornCheckpoint(
                f"{Path(where, links[0])}: is a link to a folder; a checkpoint must hold its own files"
            )
    if strange := [path for path in files if not path.is_file()]:
        raise TornCheckpoint(f"{strange[0]}: is not a file; a checkpoint must hold its own files")
    return files


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises TornCheckpoint, StoreError."""
    with reading(path, "JSON object"):
        return dict(json.loads(path.read_bytes()).items())


def check_torch_file(path: Path) -> None:
    """`torch.save` writes a zip, whose directory comes last: a cut file has none. Raises TornCheckpoint, StoreError."""
    with reading(path, "torch file"):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if not any(member.filename.endswith("data.pkl") for member in members):
            raise ValueError("a zip without data.pkl")
        if max(member.header_offset + member.compress_size for member in members) > path.stat().st_size:
            raise ValueError("shorter than its own directory says")


class _Inert:
    """Stands for every class a pickle names: it keeps attributes and does nothing, so reading can run no code."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update({key: value for key, value in part.items() if isinstance(key, str)})

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass

    def extend(self, _values: Any) -> None:
        pass

    append = add = extend


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, _module: str, _name: str) -> Any:
        return _Inert

    def persistent_load(self, _pid: Any) -> Any:
        return _Inert()  # a tensor's storage, which a torch file keeps beside the pickle


def load_inert(file: IO[bytes]) -> Any:
    """What a pickle holds: plain values as they are, everything else as a placeholder. Raises what `pickle` raises."""
    return _InertUnpickler(file).load()


def torch_pickle(path: Path) -> bytes:
    """The `data.pkl` of a torch file. Raises what reading a damaged file raises: call it under `reading`."""
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"]
        if len(members) != 1:
            raise ValueError(f"{len(members)} times data.pkl in the zip")
        if members[0].file_size > PICKLE_LIMIT_BYTES:
            raise ValueError(f"a data.pkl of {members[0].file_size} bytes")
        return archive.read(members[0])


def promised_bytes(metadata: Path) -> dict[str, int]:
    """Data files that a torch checkpoint's `.metadata` names, and the bytes each must have at least.

    Raises TornCheckpoint, StoreError.
    """
    ends_bytes: dict[str, int] = {}
    with reading(metadata, "checkpoint metadata"):
        with metadata.open("rb") as file:
            storage = load_inert(file).storage_data
        for info in storage.values():
            end_bytes = int(info.offset) + int(info.length)
            ends_bytes[str(info.relative_path)] = max(ends_bytes.get(str(info.relative_path), 0), end_bytes)
        if not ends_bytes:
            raise ValueError("names no data files")
    return ends_bytes


def tensor_names(path: Path) -> set[str]:
    """Names of the tensors of a whole safetensors file: 8 bytes header size, JSON header with byte ranges, data.

    Each tensor's range must have the length that its shape and type ask for. Raises TornCheckpoint, StoreError.
    """
    with reading(path, "safetensors file"):
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(header_bytes, size_bytes)))
        names = set(header) - {"__metadata__"}
        end_bytes = max(_end_bytes(name, header[name]) for name in names) + 8 + header_bytes
        if size_bytes != end_bytes:
            raise ValueError(f"{size_bytes} bytes where its header promises {end_bytes}")
        return names


def _end_bytes(name: str, entry: dict[str, Any]) -> int:
    """Where a tensor's bytes end, if they are as many as its shape and type ask for."""
    begin, end = (int(offset) for offset in entry["data_offsets"])
    count, dtype = math.prod(int(length) for length in entry["shape"]), str(entry["dtype"])
    bits = _BITS.fullmatch(dtype)  # U8, BF16, F8_E4M3: the first number is the size
    wanted = -(-count * (int(bits[1]) if bits else 8) // 8)  # BOOL has none, and takes a byte
    if (bits or dtype == "BOOL") and end - begin != wanted:
        raise ValueError(f"{name} has {end - begin} bytes where {dtype} {entry['shape']} takes {wanted}")
    return end
