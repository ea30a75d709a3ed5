"""Look at a data file before a pod is rented for it.

slime finds bad data late or never: it prints and skips a broken JSONL line, and a row with no trainable token kills
the job in the middle (slime.md 1.2). Tokens are not counted here; that needs the tokenizer and is the trainer's
matter.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
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


@dataclass(frozen=True)
class Columns:
    """What slime reads of a row besides prompt and label; None is not looked at.

    metadata, tools: slime's `--metadata-key` and `--tool-key`; named: those that the user named, so that some row must
    have them (slime takes a missing one for empty). text: a prompt must be text, as slime's own generate encodes it.
    needs_label: a label may not be null, because a reward compares answers with it.
    """

    metadata: str | None = None
    tools: str | None = None
    named: frozenset[str] = frozenset()
    text: bool = False
    needs_label: bool = False


@dataclass(frozen=True)
class _Rules:
    stage: Stage
    key: str
    label_key: str | None
    more: Columns
    seen: set[str]

    @property
    def every_row(self) -> list[str]:
        return [self.key] if self.label_key is None else [self.key, self.label_key]


def inspect(
    path: Path,
    stage: Stage,
    *,
    input_key: str | None = None,
    label_key: str | None = None,
    more: Columns | None = None,
) -> PromptData:
    """Check every row of a `.jsonl` or `.parquet` file for the stage; one pass over the file.

    input_key: slime's `--input-key` (default `messages` for sft, `prompt` for rl); label_key: slime's
    `--label-key`, which every row must have when it is given; more: the other columns.
    Raises UserError naming the file and the row (JSONL: the line, parquet: the row; both from 1) and what to change.
    """
    rules = _Rules(stage, input_key or DEFAULT_KEYS[stage], label_key, more or Columns(), set())
    if not path.exists():
        raise UserError(f"{path}: the data file does not exist")
    if not path.is_file():
        raise UserError(f"{path}: the data must be one file, not a folder")
    try:
        if path.suffix == ".jsonl":
            return _inspect_jsonl(path, rules)
        if path.suffix == ".parquet":
            return _inspect_parquet(path, rules)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    raise UserError(f"{path}: slime reads .jsonl and .parquet files only; convert it or rename it")


def _inspect_jsonl(path: Path, rules: _Rules) -> PromptData:
    digest = hashlib.sha256()
    rows = size = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                raise UserError(f"{path}: begins with a BOM, and slime drops its first row; save it without BOM")
            digest.update(line)
            size += len(line)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"{path}:{number}: not a JSON object on one line: {error}") from error
            _check_row(row, rules, f"{path}:{number}")
            rows += 1
    return _some(rules, PromptData(path, rows, digest.hexdigest(), size))


def _inspect_parquet(path: Path, rules: _Rules) -> PromptData:
    import pyarrow  # heavy: only who has parquet data pays for it
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            there = file.schema_arrow.names
            wanted = rules.every_row
            if missing := [name for name in [*wanted, *sorted(rules.more.named)] if name not in there]:
                raise UserError(f"{path}: has no column {missing[0]!r}; its columns are {', '.join(there)}")
            wanted = list(dict.fromkeys([*wanted, *(one for one in _more(rules.more) if one in there)]))
            rows = 0
            for row in _parquet_rows(file, wanted):
                rows += 1
                _check_row(row, rules, f"{path}:{rows}")
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a parquet file that can be read: {error}") from error
    with path.open("rb") as raw:
        digest = hashlib.file_digest(raw, "sha256").hexdigest()
    return _some(rules, PromptData(path, rows, digest, path.stat().st_size))


def _parquet_rows(file: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(batch_size=4096, columns=columns):
        yield from batch.to_pylist()


def _more(columns: Columns) -> list[str]:
    return [one for one in (columns.metadata, columns.tools) if one is not None]


def _some(rules: _Rules, data: PromptData) -> PromptData:
    if data.rows == 0:
        raise UserError(f"{data.path}: has no rows")
    if unseen := sorted(rules.more.named - rules.seen):
        raise UserError(f"{data.path}: no row has {unseen[0]!r}: slime would train without it and say nothing")
    return data


def _check_row(row: Any, rules: _Rules, where: str) -> None:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
    key = rules.key
    if key not in row:
        raise UserError(f"{where}: has no {key!r}; its keys are {', '.join(map(str, row)) or 'none'}")
    if rules.label_key is not None and rules.label_key not in row:
        raise UserError(f"{where}: has no {rules.label_key!r}, and slime reads it from every row")
    rules.seen.update(rules.more.named & row.keys())
    if rules.label_key is not None:
        _check_label(row[rules.label_key], rules, where)
    _check_more(row, rules.more, where)
    if rules.stage == "sft":
        _check_chat(row[key], key, where)
        if not any(_trainable(message) for message in row[key]):
            raise UserError(f"{where}: has no trainable token: {key!r} needs an assistant message that is not empty")
    elif isinstance(row[key], str):
        if not row[key]:
            raise UserError(f"{where}: {key!r} is empty")
    else:
        _check_chat(row[key], key, where)
        if rules.more.text:
            raise UserError(
                f"{where}: {key!r} is a list of messages, and without data.chat_template slime's own generate cannot "
                "encode one: set data.chat_template to true, or write the prompts as text"
            )


def _check_label(label: Any, rules: _Rules, where: str) -> None:
    if isinstance(label, float) and math.isnan(label):
        raise UserError(f"{where}: {rules.label_key!r} is not a number (NaN): a right answer is missing there")
    if label is None and rules.more.needs_label:
        raise UserError(f"{where}: {rules.label_key!r} is null, and the reward compares answers with it")


def _check_more(row: dict[str, Any], columns: Columns, where: str) -> None:
    """slime/utils/data.py (Dataset): `data.get(metadata_key) or {}` is used as a mapping, tools as a list."""
    metadata = row.get(columns.metadata) if columns.metadata is not None else None
    if metadata and not isinstance(metadata, dict):
        raise UserError(
            f"{where}: {columns.metadata!r} must be a JSON object, not {type(metadata).__name__}: {str(metadata)[:80]}"
        )
    if columns.tools is None or columns.tools not in row:
        return
    tools = row[columns.tools]
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: {columns.tools!r} is a text that is no JSON: {error}") from error
    if not isinstance(tools, list):
        raise UserError(f"{where}: {columns.tools!r} must be a list of tools, not {type(tools).__name__}")


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
