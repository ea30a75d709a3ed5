import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from plugins.datasets.gsm8k import Counts, convert
from plugins.errors import UserError

ROWS = [
    {"question": "Tom has 3 apples and gets 4. How many?", "answer": "3+4 = <<3+4=7>>7 apples.\n#### 7"},
    {"question": "What is “half” of 10?", "answer": "#### 5", "more": [1]},
]


def write(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(texts) + b"\n")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_each_row_becomes_a_chat_of_question_and_answer(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"deep/chat{suffix}"
    counts = convert(write(tmp_path / "in.jsonl", *ROWS, b"  "), out)
    if suffix == ".parquet":
        rows = pq.read_table(out).to_pylist()
    else:
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    for row, source in zip(rows, ROWS, strict=True):
        user, assistant = row["messages"]
        assert user == {"role": "user", "content": source["question"]}
        assert assistant == {"role": "assistant", "content": source["answer"]}
    assert counts == Counts(rows=2, question_characters=38 + 21, answer_characters=31 + 6)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "expected an object"),
        (b"\xff\xfe", "is not UTF-8"),
        ({"question": "x"}, "'answer' must be text, found nothing"),
        ({"question": 5, "answer": "x"}, "'question' must be text, found int"),
        ({"question": "x", "answer": " "}, "'answer' is empty"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path: Path, bad: Any, words: str) -> None:
    source = write(tmp_path / "in.jsonl", ROWS[0], b"", bad)
    with pytest.raises(UserError, match=rf"in\.jsonl: row 3: .*{words}"):
        convert(source, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_failed_conversion_leaves_the_older_output_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("older\n")
    with pytest.raises(UserError):
        convert(write(tmp_path / "in.jsonl", b"{"), out)
    assert out.read_text() == "older\n"


@pytest.mark.parametrize(
    ("source", "out", "words"),
    [
        ("missing.jsonl", "out.jsonl", "no such file"),
        ("empty.jsonl", "out.jsonl", "has no rows"),
        ("in.jsonl", "out.csv", "end in .jsonl or .parquet, not in .csv"),
        ("in.jsonl", "in.jsonl", "is also the input"),
        ("in.jsonl", "in.jsonl/out.jsonl", "cannot be written"),
    ],
)
def test_unusable_paths_are_refused_with_the_reason(tmp_path: Path, source: str, out: str, words: str) -> None:
    write(tmp_path / "in.jsonl", *ROWS)
    write(tmp_path / "empty.jsonl", b"")
    with pytest.raises(UserError, match=words):
        convert(tmp_path / source, tmp_path / out)
