"""Where slime puts a checkpoint, and when one is complete.

A visible directory is not a complete checkpoint: slime writes in place, many files, the tracker near the end. Standard
library only, because pods, the sealer and the stand-in trainer all use it; whether one file is whole is told by
`whole`, hashing and copying belong to `plugins/checkpoints`.

    <save_dir>/
      latest_checkpointed_iteration.txt          the tracker: "19"; written after the folder, before the two below
      iter_0000019/  common.pt  __0_0.distcp ...  .metadata  metadata.json      (in this order)
      hf/19/                                     what --save-hf '<save_dir>/hf/{rollout_id}' writes
      rollout/global_dataset_state_dict_19.pt    the data cursor, last of all

With `--async-save` only common.pt and the data files are written at once, then export and cursor. `.metadata`,
metadata.json and the tracker come together at the next save, a whole interval later, or at the last rollout: Megatron
writes all three in its finalize functions (dist_checkpointing/serialization.py save(), strategies/state_dict_saver.py
save_state_dict_async_finalize) and slime calls those at the start of save_model (actor.py:579-587). What a killed run
had not finalized cannot be proved or loaded by anybody.

Sources: Megatron-LM 1dcf0daf `megatron/training/checkpointing.py:617-767`; slime v0.3.1
`slime/backends/megatron_utils/actor.py:571-593` and `slime/rollout/data_source.py:123-136`.
"""

import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import Literal

from plugins.errors import StoreError, TornCheckpoint, UserError
from plugins.slime.export import check_export
from plugins.slime.whole import check_torch_file, files_under, promised_bytes, read_json, reading, unreadable

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
        raise unreadable(path, error) from error
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
        raise unreadable(save_dir, error) from error
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
    files = files_under(folder) + files_under(export_dir(save_dir, iteration)) + ([state] if state.exists() else [])
    return sorted(path.relative_to(save_dir) for path in files)


CLOCK_SLACK_S = 2.0
"""How far back a pod's clock may step (NTP) between two files of one save without the order being doubted."""


def check_complete(
    save_dir: Path, iteration: int, *, kind: Kind, dataset_state: bool = True, export: bool = False
) -> None:
    """Prove from its files that an iteration is complete; return when it is.

    slime: `common.pt`, `.metadata` and `metadata.json` are whole, and every file that `.metadata` names is there with
    all the bytes it promises. The tracker is not asked: it may be torn, or a crash may have come just before it.
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
        check_torch_dist(folder)
        if dataset_state:
            check_torch_file(dataset_state_file(save_dir, iteration))
    else:
        if not any(path.parts[0] == folder.name for path in files):
            raise TornCheckpoint(f"{folder}: the folder holds no file")
        if (tracker := read_tracker(save_dir)) is None or tracker < iteration:
            raise TornCheckpoint(
                f"{save_dir / TRACKER}: says {tracker}: the trainer has not called {iteration} complete"
            )
    if export:
        check_export(export_dir(save_dir, iteration))


def check_torch_dist(folder: Path) -> None:
    """Prove that a folder of Megatron's format torch_dist (an iteration, a converted model) is whole.

    Raises TornCheckpoint naming the file; StoreError when one cannot be read.
    """
    check_torch_file(folder / "common.pt")
    _check_shards(folder, {path.relative_to(folder) for path in files_under(folder)})
    if "sharded_backend" not in read_json(folder / "metadata.json"):
        raise TornCheckpoint(f"{folder / 'metadata.json'}: does not name a sharded_backend: Megatron would not load it")


def complete_iterations(
    save_dir: Path, kind: Kind, dataset_state: bool = True, export: bool = False, *, after: int | None = None
) -> list[int]:
    """Iterations of a save dir that are provably complete, newest first, whether the tracker names them or not.

    For a sealer that must not wait for the tracker, and for the rescue after a crash that came just before it. slime:
    complete by `check_complete` *and* written in one go (`check_written_in_order`), so that the whole-looking rest of
    an overwritten folder does not pass. plain: what the tracker covers; nothing while the tracker is torn.
    after: leave out this iteration and older ones, as those restored into the save dir (a download keeps no order of
    times, and they are sealed already). Costs reading `.metadata` and `common.pt`'s directory of each candidate.

    Raises StoreError when a folder or file cannot be read.
    """
    found = []
    for iteration in reversed(list_iterations(save_dir)):
        if after is not None and iteration <= after:
            break
        try:
            check_complete(save_dir, iteration, kind=kind, dataset_state=dataset_state, export=export)
            if kind == "slime":
                check_written_in_order(save_dir, iteration, dataset_state=dataset_state, export=export)
        except TornCheckpoint:
            continue
        found.append(iteration)
    return found


def check_written_in_order(
    save_dir: Path,
    iteration: int,
    *,
    dataset_state: bool = True,
    export: bool = False,
    slack_s: float = CLOCK_SLACK_S,
) -> None:
    """Prove from modification times that all files of a slime iteration come from one save; return when they do.

    A trainer that comes to iteration N again writes into the folder of its earlier N ("Overwriting old incomplete /
    corrupted checkpoint..."), whose `.metadata` and metadata.json stand there whole until they are replaced at the end;
    sizes alone cannot tell new from old, for they are the same. In one save, synchronous or not, common.pt comes
    first, then the data files, `.metadata`, metadata.json; cursor and export come after common.pt. Only for files where
    the trainer wrote them: a copy has other times. slack_s: what the clock may have stepped back (seconds).

    Raises TornCheckpoint naming the two files out of order; StoreError when a file cannot be read.
    """
    folder = iteration_dir(save_dir, iteration)
    common, metadata = folder / "common.pt", folder / ".metadata"
    shards = [folder / name for name in promised_bytes(metadata)]
    later = [dataset_state_file(save_dir, iteration)] if dataset_state else []
    if export:  # config and tokenizer are copied with the times of the folder they come from
        later += [path for path in files_under(export_dir(save_dir, iteration)) if ".safetensors" in path.name]
    pairs = [(common, path) for path in (*shards, *later)]
    pairs += [(path, metadata) for path in shards] + [(metadata, folder / "metadata.json")]
    for first, second in pairs:
        if _written_s(first) > _written_s(second) + slack_s:
            raise TornCheckpoint(
                f"{second}: is older than {first.name}, which is written before it: it belongs to an earlier save"
            )


def _written_s(path: Path) -> float:
    with reading(path, "file"):
        return path.stat().st_mtime


def _check_shards(folder: Path, present: set[Path]) -> None:
    for name, end_bytes in sorted(promised_bytes(folder / ".metadata").items()):
        if Path(name) not in present:
            raise TornCheckpoint(f"{folder / name}: is missing, though .metadata names it")
        with reading(folder / name, "data file"):
            if (size_bytes := (folder / name).stat().st_size) < end_bytes:
                raise ValueError(f"{size_bytes} bytes where .metadata promises {end_bytes}")
