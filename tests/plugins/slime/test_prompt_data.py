import hashlib
import json

import pytest

from plugins.errors import UserError
from plugins.slime.prompt_data import inspect

CHAT = {"messages": [{"role": "user", "content": "3+4="}, {"role": "assistant", "content": "7"}]}
PROMPT = {"prompt": [{"role": "user", "content": "3+4="}], "label": "7"}


def write(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_a_good_jsonl_file_gives_its_rows_and_hash(tmp_path):
    file = write(tmp_path / "d.jsonl", [CHAT, "\n", CHAT])
    data = inspect(file, "sft")
    assert (data.rows, data.size_bytes) == (2, file.stat().st_size)
    assert data.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_good_parquet_file_gives_its_rows_and_hash(tmp_path):
    file = parquet(tmp_path / "d.parquet", [CHAT] * 5000)
    data = inspect(file, "sft")
    assert data.rows == 5000
    assert data.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_prompts_are_chats_or_texts_and_their_labels_are_looked_for(tmp_path):
    file = write(tmp_path / "d.jsonl", [PROMPT, {"prompt": "2+2="}])
    assert inspect(file, "rl").rows == 2
    with pytest.raises(UserError, match=r"d\.jsonl:2: has no 'label'"):
        inspect(file, "rl", label_key="label")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{not json\n", "not a JSON object"),
        ("[1]\n", "must be a JSON object"),
        ({"text": "x"}, "has no 'messages'; its keys are text"),
        ({"messages": []}, "at least one"),
        ({"messages": "hello"}, "list of chat messages"),
        ({"messages": [{"role": "user"}]}, "without 'role' and 'content'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no trainable token"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "no trainable token"),
        ({"messages": [{"role": "assistant", "content": "x", "step_loss_mask": 0}]}, "no trainable token"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, said):
    file = write(tmp_path / "d.jsonl", [CHAT, "\n", row, CHAT])
    with pytest.raises(UserError, match=said) as caught:
        inspect(file, "sft")
    assert f"{file}:3:" in str(caught.value)


def test_a_bad_parquet_row_or_column_is_named(tmp_path):
    bad = {"messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(UserError, match=r"d\.parquet:2: has no trainable token"):
        inspect(parquet(tmp_path / "d.parquet", [CHAT, bad]), "sft")
    with pytest.raises(UserError, match="no column 'prompt'; its columns are messages"):
        inspect(tmp_path / "d.parquet", "rl")


def test_an_answer_that_is_a_tool_call_can_be_trained_on(tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]}
    assert inspect(write(tmp_path / "d.jsonl", [{"messages": [call]}]), "sft").rows == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.jsonl", None, "does not exist"),
        ("d.jsonl", "", "has no rows"),
        ("d.jsonl", "\n\n", "has no rows"),
        ("d.parquet", "no parquet", "not a parquet file"),
        ("d.json", "{}", r"\.jsonl and \.parquet"),
    ],
)
def test_a_file_that_cannot_be_trained_on_is_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        inspect(tmp_path / name, "sft")
    assert str(tmp_path / name) in str(caught.value)


def test_a_folder_is_not_a_data_file(tmp_path):
    with pytest.raises(UserError, match="one file"):
        inspect(tmp_path, "sft")
