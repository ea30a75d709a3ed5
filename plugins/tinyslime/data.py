"""Rows in, batches out: reads JSONL and parquet, keeps the data cursor that a checkpoint stores, and pads rows into
micro-batches.

The cursor moves exactly as slime's data source does (order shuffled by seed + epoch, a batch may cross the end of an
epoch), and its state has slime's five keys. Unlike slime, a bad line or a row that cannot train is an error that
names file and row.
"""

from __future__ import annotations

import copy
import json
import random
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugins.errors import UserError
from plugins.tinyslime.sample import Sample
from plugins.tinyslime.tokenizer import END_OF_TEXT, ByteTokenizer, chat_tokens

_SLICE = re.compile(r"(?P<path>.*)@\[(?P<start>\d*):(?P<stop>\d*)\]")


def read_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a `.jsonl` or `.parquet` file as (`file:row` counted from 1, row); `path@[0:100]` reads a part, as
    slime does.

    Raises UserError for a file that is missing, of another kind, or has a line that is no JSON object.
    """
    match = _SLICE.fullmatch(source)
    path = Path(match["path"] if match else source)
    if not path.is_file():
        raise UserError(f"--prompt-data {path}: no such file")
    if path.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"--prompt-data {path}: not a .jsonl or .parquet file")
    rows = _jsonl(path) if path.suffix == ".jsonl" else _parquet(path)
    if match:
        rows = islice(rows, int(match["start"] or 0), int(match["stop"]) if match["stop"] else None)
    return rows


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: a row must be a JSON object, not {type(row).__name__}")
            yield f"{path}:{number}", row


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({error})") from error


def load_chats(source: str, key: str, tokenizer: ByteTokenizer, max_length: int) -> tuple[list[Sample], int]:
    """Samples of an SFT file with `tokens`, `loss_mask` (as long as tokens) set, and how many rows were cut to
    `max_length` tokens.

    Raises UserError, naming the row, when nothing of it would be trained.
    """
    samples, cut = [], 0
    for where, row in read_rows(source):
        messages = row.get(key)
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise UserError(f"{where}: no list of chat messages under {key!r} (--input-key)")
        try:
            tokens, mask = chat_tokens(tokenizer, messages)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if not any(mask):
            raise UserError(f"{where}: no trainable token (no assistant message with content)")
        if not any(mask[:max_length]):
            raise UserError(
                f"{where}: no trainable token within --seq-length {max_length} (the row has {len(tokens)} tokens)"
            )
        cut += len(tokens) > max_length
        tokens, mask = tokens[:max_length], mask[:max_length]
        answer = len(mask) - mask.index(1)  # slime counts from the first trained token on
        samples.append(Sample(prompt=messages, tokens=tokens, loss_mask=mask, response_length=answer, reward=0.0))
    return _some(samples, source), cut


def load_prompts(
    source: str, tokenizer: ByteTokenizer, *, key: str, label_key: str | None, metadata_key: str, template: bool
) -> list[Sample]:
    """Samples of an RL file: prompt (ChatML text with `template`, else as it stands), label, metadata."""
    samples = []
    for where, row in read_rows(source):
        prompt = row.get(key)
        if not prompt or not isinstance(prompt, str | list):
            raise UserError(f"{where}: no prompt under {key!r} (--input-key)")
        label = row.get(label_key) if label_key else None
        try:
            if template:
                messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
                prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            samples.append(Sample(prompt=prompt, label=label, metadata=dict(row.get(metadata_key) or {})))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: not a prompt row: {type(error).__name__}: {error}") from error
    return _some(samples, source)


def _some(samples: list[Sample], source: str) -> list[Sample]:
    if not samples:
        raise UserError(f"--prompt-data {source}: no rows")
    return samples


class DataSource:
    """The data cursor: hands out groups of samples and remembers where it stands."""

    def __init__(self, samples: list[Sample], *, group_size: int, shuffle: bool, seed: int) -> None:
        self._origin, self._order = samples, samples
        for row, sample in enumerate(samples):
            sample.row = row
        self._group_size, self._shuffle, self._seed = group_size, shuffle, seed
        self._epoch_id = self._sample_offset = self._group_index = self._sample_index = 0
        self._reorder()

    def __len__(self) -> int:
        return len(self._origin)

    def _reorder(self) -> None:
        if self._shuffle:
            order = list(range(len(self._origin)))
            random.Random(self._seed + self._epoch_id).shuffle(order)  # noqa: S311 - an order, not a secret
            self._order = [self._origin[number] for number in order]

    def groups(self, count: int) -> list[list[Sample]]:
        """The next `count` prompts, each as a group of copies."""
        prompts: list[Sample] = []
        while len(prompts) < count:
            if self._sample_offset == len(self._order):
                self._epoch_id, self._sample_offset = self._epoch_id + 1, 0
                self._reorder()
            taken = self._order[self._sample_offset : self._sample_offset + count - len(prompts)]
            self._sample_offset += len(taken)
            prompts += taken
        return [self._group(prompt) for prompt in prompts]

    def _group(self, prompt: Sample) -> list[Sample]:
        group = [copy.deepcopy(prompt) for _ in range(self._group_size)]
        for sample in group:
            sample.group_index, sample.index = self._group_index, self._sample_index
            self._sample_index += 1
        self._group_index += 1
        return group

    def state_dict(self) -> dict[str, Any]:
        """The cursor under the keys of slime's `global_dataset_state_dict_N.pt` (slime/rollout/data_source.py:123)."""
        return {
            "sample_offset": self._sample_offset,
            "epoch_id": self._epoch_id,
            "sample_group_index": self._group_index,
            "sample_index": self._sample_index,
            "metadata": {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move the cursor to where `state_dict` was taken."""
        self._sample_offset, self._epoch_id = state["sample_offset"], state["epoch_id"]
        self._group_index, self._sample_index = state["sample_group_index"], state["sample_index"]
        self._reorder()


@dataclass(frozen=True)
class Drawn:
    """A rollout that is drawn and not trained yet.

    prompts: one sample for each prompt, as they came from the data; groups: what is trained on.
    """

    prompts: list[Sample]
    groups: list[list[Sample]]


@dataclass(frozen=True)
class MicroBatch:
    """Padded rows. `targets[r, t]` says that token t+1 of row r is trained; `rows` are their numbers in the step."""

    ids: Tensor
    targets: Tensor
    rows: list[int]

    def per_token(self, values: Sequence[Tensor]) -> Tensor:
        """Join values given for each row of the step (one for each trained token) in the order of `ids[:,
        1:][targets]`.
        """
        return torch.cat([values[row] for row in self.rows])


def micro_batches(
    tokens: Sequence[list[int]], masks: Sequence[list[int]], *, max_tokens: int | None, max_rows: int
) -> list[MicroBatch]:
    """Pad rows of like length together: at most `max_tokens` padded tokens in one (a longer row stands alone), or
    `max_rows` rows.

    `masks` are as long as `tokens`. Rows without a trained token are left out.
    """
    order = sorted((row for row, mask in enumerate(masks) if any(mask[1:])), key=lambda row: len(tokens[row]))
    packs: list[list[int]] = []
    for row in order:
        size = len(packs[-1]) + 1 if packs else 0
        fits = size * len(tokens[row]) <= max_tokens if max_tokens else size <= max_rows
        if packs and fits:
            packs[-1].append(row)
        else:
            packs.append([row])
    return [_pad([tokens[row] for row in pack], [masks[row] for row in pack], pack) for pack in packs]


def _pad(tokens: list[list[int]], masks: list[list[int]], rows: list[int]) -> MicroBatch:
    width = max(map(len, tokens))
    ids = torch.full((len(rows), width), END_OF_TEXT)
    targets = torch.zeros(len(rows), width - 1, dtype=torch.bool)
    for number, (row, mask) in enumerate(zip(tokens, masks, strict=True)):
        ids[number, : len(row)] = torch.tensor(row)
        targets[number, : len(row) - 1] = torch.tensor(mask[1:], dtype=torch.bool)
    return MicroBatch(ids, targets, rows)


def batches_of(args: Namespace, tokens: Sequence[list[int]], masks: Sequence[list[int]]) -> list[MicroBatch]:
    """Micro-batches of a step: by `--max-tokens-per-gpu` with `--use-dynamic-batch-size`, else by
    `--micro-batch-size`.
    """
    max_tokens = args.max_tokens_per_gpu if args.use_dynamic_batch_size else None
    return micro_batches(tokens, masks, max_tokens=max_tokens, max_rows=args.micro_batch_size)
