"""GSM8K for SFT: question and answer become one chat row each, nothing of the text is changed.

A row of GSM8K is {"question": ..., "answer": "... #### 72"}; a row for slime's SFT is {"messages": [user, assistant]}.
The first bad row ends the conversion with its file and row number: a data set with holes is not what its name says.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.datasets.rows import Row, write_rows
from plugins.errors import UserError


@dataclass(frozen=True)
class Counts:
    """What a conversion wrote: rows, and characters of question and answer text."""

    rows: int
    question_characters: int
    answer_characters: int


def convert(source: Path, out: Path) -> Counts:
    """Turn the GSM8K JSONL file `source` into chat rows in `out` (.jsonl or .parquet by its suffix).

    Blank lines are passed over. Raises UserError naming file and row for anything else that is not a GSM8K row,
    and when `source` is missing or has no rows; `out` is then left as it was.
    """
    questions = answers = 0

    def rows() -> Iterator[Row]:
        nonlocal questions, answers
        for question, answer in _pairs(source):
            questions += len(question)
            answers += len(answer)
            yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    if not source.is_file():
        raise UserError(f"{source}: no such file; give a GSM8K file in JSONL form")
    if source.resolve() == out.resolve():
        raise UserError(f"{out}: is also the input; give the output another name")
    if not any(True for _ in _pairs(source)):
        raise UserError(f"{source}: has no rows")
    count = write_rows(out, rows())
    return Counts(rows=count, question_characters=questions, answer_characters=answers)


def _pairs(source: Path) -> Iterator[tuple[str, str]]:
    try:
        with source.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _pair(line, f"{source}: row {number}")
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror or error})") from error


def _pair(line: bytes, where: str) -> tuple[str, str]:
    try:
        row: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not UTF-8 text (byte {error.start} of the row)") from error
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with 'question' and 'answer', found {type(row).__name__}")
    return _text(row, "question", where), _text(row, "answer", where)


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        found = "nothing" if key not in row else type(value).__name__
        raise UserError(f"{where}: '{key}' must be text, found {found}")
    if not value.strip():
        raise UserError(f"{where}: '{key}' is empty")
    return value
