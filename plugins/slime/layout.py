"""Where slime puts a checkpoint, and when one is complete.

A visible directory is not a complete checkpoint: slime writes in place, many files, the tracker near the end. Standard
library only, because pods, the sealer and the stand-in trainer all use it; hashing and copying belong to
`plugins/checkpoints`.

    <save_dir>/
      latest_checkpointed_iteration.txt          the tracker: "19"; written after the folder, before the two below
      iter_0000019/  common.pt  __0_0.distcp ...  .metadata  metadata.json      (in this order)
      hf/19/                                     what --save-hf '<save_dir>/hf/{rollout_id}' writes
      rollout/global_dataset_state_dict_19.pt    the data cursor, last of all

Sources: Megatron-LM `megatron/training/checkpointing.py:617-767`; slime v0.3.1
`slime/backends/megatron_utils/actor.py:571-593` and `slime/rollout/data_source.py:123-136`.
"""

import contextlib
import errno
import json
import os
import pickle
import re
import secrets
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from plugins.errors import StoreError, TornCheckpoint, UserError

Kind = Literal["slime", "plain"]

TRACKER = "latest_checkpointed_iteration.txt"

_ITERATION = re.compile(r"iter_([0-9]{7,})")


def iteration_dir(save_dir: Path, iteration: int) -> Path:
    """Folder of one iteration. Numbers are rollout ids, 0-based: `--save-interval 20` gives 19, 39, ..."""
    return save_dir / f"iter_{iteration:07d}"


def dataset_state_file(save_dir: Path, iteration: int) -> Path:
    """The data cursor that belongs to the iteration."""
    return save_dir / "rollout" / f"global_dataset_state_dict_{iteration}.pt"


def export_dir(save_dir: Path, iteration: int) -> Path:
    """The Hugging Face folder that `--save-hf '<save_dir>/hf/{rollout_id}'` writes for the iteration."""
    return save_dir / "hf" / str(iteration)


def read_tracker(save_dir: Path) -> int | None:
    """The iteration the trainer last called complete, or None when there is no tracker.

    slime truncates the file and then writes it, so who looks at that instant sees it empty: ask again before
    believing the error.

    Raises:
        TornCheckpoint: it is empty, no number, or "release" (a converted model: slime would skip rollout 0 of it).
        StoreError: it cannot be read.
    """
    path = save_dir / TRACKER
    try:
        text = path.read_bytes()[:64].strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    if not text.isdigit():
        shown = text.decode(errors="replace")
        raise TornCheckpoint(f"{path}: names no iteration but {shown!r}: a resume from this folder would fail")
    return int(text)


def write_tracker(save_dir: Path, iteration: int) -> None:
    """Name an iteration as the newest, all at once (temporary file, fsync, rename). Raises StoreError."""
    path = save_dir / TRACKER
    temporary = path.with_name(f".{TRACKER}.{secrets.token_hex(4)}.partial")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w") as file:
            file.write(str(iteration))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror}): check space and rights there") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def list_iterations(save_dir: Path) -> list[int]:
    """Numbers of the iteration folders, ascending. By name only: nothing is said about what is in them."""
    try:
        numbers = [int(match[1]) for entry in save_dir.iterdir() if (match := _ITERATION.fullmatch(entry.name))]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(save_dir, error) from error
    return sorted(number for number in set(numbers) if iteration_dir(save_dir, number).is_dir())


def checkpoint_files(save_dir: Path, iteration: int, *, kind: Kind) -> list[Path]:
    """Every file of the iteration, relative to `save_dir`, sorted: its folder, its data cursor, its export.

    Cursor and export are listed when they are there. The tracker never is: it belongs to the save dir, not to an
    iteration.

    Raises:
        TornCheckpoint: the iteration has no folder, or holds a link to a folder or a thing that is not a file.
        StoreError: a folder cannot be read.
        UserError: no such kind.
    """
    if kind not in ("slime", "plain"):
        raise UserError(f"no checkpoint kind {kind!r}: there are 'slime' and 'plain'")
    folder, state = iteration_dir(save_dir, iteration), dataset_state_file(save_dir, iteration)
    if not folder.is_dir():
        raise TornCheckpoint(f"{folder}: there is no such checkpoint")
    files = _files_under(folder) + _files_under(export_dir(save_dir, iteration)) + ([state] if state.exists() else [])
    return sorted(path.relative_to(save_dir) for path in files)


def check_complete(
    save_dir: Path, iteration: int, *, kind: Kind, dataset_state: bool = True, export: bool = False
) -> None:
    """Prove from its files that an iteration is complete; return when it is.

    slime: `common.pt`, `.metadata` and `metadata.json` are whole, and every file that `.metadata` names is there with
    all the bytes it promises. The tracker is not asked: an asynchronous save moves it a whole interval late.
    plain (a `command` trainer): the folder holds a file, and the tracker names this iteration or a later one.
    `dataset_state` (slime only): the data cursor too, without which slime silently starts the data again from row 0.
    `export`: the Hugging Face folder too, with its config and every tensor of the index in a shard of full length.

    Raises:
        TornCheckpoint: it is not complete; names the file and what is wrong with it.
        StoreError: a file cannot be read.
    """
    files = checkpoint_files(save_dir, iteration, kind=kind)
    folder = iteration_dir(save_dir, iteration)
    if kind == "slime":
        _check_torch_file(folder / "common.pt")
        _check_shards(folder, {path.relative_to(folder.name) for path in files if path.parts[0] == folder.name})
        _read_json(folder / "metadata.json")
        if dataset_state:
            _check_torch_file(dataset_state_file(save_dir, iteration))
    else:
        if not any(path.parts[0] == folder.name for path in files):
            raise TornCheckpoint(f"{folder}: the folder holds no file")
        if (tracker := read_tracker(save_dir)) is None or tracker < iteration:
            raise TornCheckpoint(
                f"{save_dir / TRACKER}: says {tracker}: the trainer has not called {iteration} complete"
            )
    if export:
        _check_export(export_dir(save_dir, iteration))


def _unreadable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path}: cannot be read ({error.strerror or error}): check owner, rights and disk")


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
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
        raise _unreadable(path, error) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise TornCheckpoint(f"{path}: is no whole {what} ({reason}): the write was cut") from error


def _files_under(folder: Path) -> list[Path]:
    files: list[Path] = []

    def stop(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise _unreadable(folder, error) from error

    for where, folders, names in os.walk(folder, onerror=stop):
        files += [Path(where, name) for name in names]
        if links := [name for name in folders if Path(where, name).is_symlink()]:
            raise TornCheckpoint(
                f"{Path(where, links[0])}: is a link to a folder; a checkpoint must hold its own files"
            )
    if strange := [path for path in files if not path.is_file()]:
        raise TornCheckpoint(f"{strange[0]}: is not a file; a checkpoint must hold its own files")
    return files


def _read_json(path: Path) -> dict[str, Any]:
    with _reading(path, "JSON object"):
        return dict(json.loads(path.read_bytes()).items())


def _check_torch_file(path: Path) -> None:
    """`torch.save` writes a zip. Its directory comes last, so a cut file has none."""
    with _reading(path, "torch file"):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if not any(member.filename.endswith("data.pkl") for member in members):
            raise ValueError("a zip without data.pkl")
        if max(member.header_offset + member.compress_size for member in members) > path.stat().st_size:
            raise ValueError("shorter than its own directory says")


class _Stub:
    """Stands for every class a pickle names: it keeps attributes and does nothing, so reading can run no code."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> "_Stub":
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


class _StubUnpickler(pickle.Unpickler):
    def find_class(self, _module: str, _name: str) -> Any:
        return _Stub


def _check_shards(folder: Path, present: set[Path]) -> None:
    path = folder / ".metadata"
    ends_bytes: dict[str, int] = {}
    with _reading(path, "checkpoint metadata"):
        with path.open("rb") as file:
            storage = _StubUnpickler(file).load().storage_data
        for info in storage.values():
            end_bytes = int(info.offset) + int(info.length)
            ends_bytes[str(info.relative_path)] = max(ends_bytes.get(str(info.relative_path), 0), end_bytes)
        if not ends_bytes:
            raise ValueError("names no data files")
    for name, end_bytes in sorted(ends_bytes.items()):
        if Path(name) not in present:
            raise TornCheckpoint(f"{folder / name}: is missing, though .metadata names it")
        with _reading(folder / name, "data file"):
            if (size_bytes := (folder / name).stat().st_size) < end_bytes:
                raise ValueError(f"{size_bytes} bytes where .metadata promises {end_bytes}")


def _check_export(folder: Path) -> None:
    _read_json(folder / "config.json")
    index = folder / "model.safetensors.index.json"
    if not index.exists() and (folder / "model.safetensors").exists():
        _tensor_names(folder / "model.safetensors")  # a small model has one file and no index
        return
    shards: dict[str, set[str]] = {}
    for tensor, shard in dict(_read_json(index).get("weight_map") or {}).items():
        shards.setdefault(str(shard), set()).add(tensor)
    if not shards:
        raise TornCheckpoint(f"{index}: its weight_map names no tensor")
    for shard, tensors in sorted(shards.items()):
        if Path(shard).name != shard:
            raise TornCheckpoint(f"{index}: names {shard!r} where a file of the folder was expected")
        if missing := sorted(tensors - _tensor_names(folder / shard)):
            raise TornCheckpoint(f"{folder / shard}: does not hold {missing[0]}, which the index places there")


def _tensor_names(path: Path) -> set[str]:
    """Names of the tensors of a whole safetensors file: 8 bytes header size, JSON header with byte ranges, data."""
    with _reading(path, "safetensors file"):
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(header_bytes, size_bytes)))
        names = set(header) - {"__metadata__"}
        end_bytes = max(int(header[name]["data_offsets"][1]) for name in names) + 8 + header_bytes
        if size_bytes != end_bytes:
            raise ValueError(f"{size_bytes} bytes where its header promises {end_bytes}")
        return names
