"""Look at a data file before a pod is rented for it.

slime finds bad data late or never: it prints and skips a broken JSONL line, and a row with no trainable token kills
the job in the middle (slime.md 1.2). Tokens are not counted here; that needs the tokenizer and is the trainer's
matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plugins.errors import UserError

Stage = Literal["sft", "rl"]
DEFAULT_KEYS: dict[str, str] = {"sft": "messages", "rl": "prompt"}


@dataclass(frozen=True)
class PromptData:
    """A checked file. rows: what slime will train on (blank lines do not count); sha256: of the file's bytes, hex."""

    path: Path
    rows: int
    sha256: str
    size_bytes: int


def inspect(path: Path, stage: Stage, *, input_key: str | None = None, label_key: str | None = None) -> PromptData:
    """Check every row of a `.jsonl` or `.parquet` file for the stage; one pass over the file.

    input_key: slime's `--input-key` (default `messages` for sft, `prompt` for rl); label_key: slime's
    `--label-key`, which every row must have when it is given.
    Raises UserError naming the file and the row (JSONL: the line, parquet: the row; both from 1) and what to change.
    """
    key = input_key or DEFAULT_KEYS[stage]
    if not path.exists():
        raise UserError(f"{path}: the data file does not exist")
    if not path.is_file():
        raise UserError(f"{path}: the data must be one file, not a folder")
    try:
        if path.suffix == ".jsonl":
            return _inspect_jsonl(path, stage, key, label_key)
        if path.suffix == ".parquet":
            return _inspect_parquet(path, stage, key, label_key)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    raise UserError(f"{path}: slime reads .jsonl and .parquet files only; convert it or rename it")


def _inspect_jsonl(path: Path, stage: Stage, key: str, label_key: str | None) -> PromptData:
    digest = hashlib.sha256()
    rows = size = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            digest.update(line)
            size += len(line)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"{path}:{number}: not a JSON object on one line: {error}") from error
            _check_row(row, stage, key, label_key, f"{path}:{number}")
            rows += 1
    return _some(PromptData(path, rows, digest.hexdigest(), size))


def _inspect_parquet(path: Path, stage: Stage, key: str, label_key: str | None) -> PromptData:
    import pyarrow  # heavy: only who has parquet data pays for it
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            wanted = [key] if label_key is None else [key, label_key]
            if missing := [name for name in wanted if name not in file.schema_arrow.names]:
                raise UserError(
                    f"{path}: has no column {missing[0]!r}; its columns are {', '.join(file.schema_arrow.names)}"
                )
            rows = 0
            for row in _parquet_rows(file, wanted):
                rows += 1
                _check_row(row, stage, key, label_key, f"{path}:{rows}")
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a parquet file that can be read: {error}") from error
    with path.open("rb") as raw:
        digest = hashlib.file_digest(raw, "sha256").hexdigest()
    return _some(PromptData(path, rows, digest, path.stat().st_size))


def _parquet_rows(file: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(batch_size=4096, columns=columns):
        yield from batch.to_pylist()


def _some(data: PromptData) -> PromptData:
    if data.rows == 0:
        raise UserError(f"{data.path}: has no rows")
    return data


def _check_row(row: Any, stage: Stage, key: str, label_key: str | None, where: str) -> None:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
    if key not in row:
        raise UserError(f"{where}: has no {key!r}; its keys are {', '.join(map(str, row)) or 'none'}")
    if label_key is not None and label_key not in row:
        raise UserError(f"{where}: has no {label_key!r}, and slime reads it from every row")
    if stage == "sft":
        _check_chat(row[key], key, where)
        if not any(_trainable(message) for message in row[key]):
            raise UserError(f"{where}: has no trainable token: {key!r} needs an assistant message that is not empty")
    elif isinstance(row[key], str):
        if not row[key]:
            raise UserError(f"{where}: {key!r} is empty")
    else:
        _check_chat(row[key], key, where)


def _check_chat(messages: Any, key: str, where: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: {key!r} must be a list of chat messages, with at least one")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise UserError(f"{where}: {key!r} has a message without 'role' and 'content': {str(message)[:80]}")


def _trainable(message: dict[str, Any]) -> bool:
    """slime's rule (slime/utils/mask_utils.py): assistant, and not switched off by `step_loss_mask`."""
    if message["role"] != "assistant" or message.get("step_loss_mask", 1) != 1:
        return False
    return bool(message["content"]) or bool(message.get("tool_calls"))
