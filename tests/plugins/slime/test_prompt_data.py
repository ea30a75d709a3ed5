import hashlib
import json

import pytest

from plugins.errors import UserError
from plugins.slime.prompt_data import Columns, inspect

CHAT = {"messages": [{"role": "user", "content": "3+4="}, {"role": "assistant", "content": "7"}]}
PROMPT = {"prompt": [{"role": "user", "content": "3+4="}], "label": "7"}
NAMED = frozenset({"meta"})


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


def test_a_byte_order_mark_is_refused_because_slime_drops_the_row_behind_it(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps(CHAT) + "\n", encoding="utf-8-sig")
    with pytest.raises(UserError, match="save it without BOM"):
        inspect(file, "sft")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("more", [Columns(metadata="meta", named=NAMED), Columns(tools="meta", named=NAMED)])
def test_a_column_that_was_named_and_that_no_row_has_is_refused(tmp_path, kind, more):
    file = (parquet if kind == "parquet" else write)(tmp_path / f"d.{kind}", [CHAT])
    with pytest.raises(UserError, match="'meta'"):
        inspect(file, "sft", more=more)


def test_a_named_column_that_some_rows_have_is_enough(tmp_path):
    file = write(tmp_path / "d.jsonl", [CHAT, CHAT | {"meta": {"a": 1}}])
    assert inspect(file, "sft", more=Columns(metadata="meta", named=NAMED)).rows == 2


@pytest.mark.parametrize(
    ("row", "more", "said"),
    [
        ({"metadata": "text"}, Columns(metadata="metadata"), "'metadata' must be a JSON object, not str: text"),
        ({"metadata": [1]}, Columns(metadata="metadata"), "'metadata' must be a JSON object, not list"),
        ({"tools": None}, Columns(tools="tools"), "'tools' must be a list of tools, not NoneType"),
        ({"tools": "{half"}, Columns(tools="tools"), "'tools' is a text that is no JSON"),
        ({"tools": '{"a": 1}'}, Columns(tools="tools"), "'tools' must be a list of tools, not dict"),
        ({"label": float("nan")}, Columns(), "'label' is not a number"),
        ({"label": None}, Columns(needs_label=True), "'label' is null"),
        ({}, Columns(text=True), "set data.chat_template to true"),
    ],
)
def test_what_slime_could_not_use_of_a_row_is_named(tmp_path, row, more, said):
    file = write(tmp_path / "d.jsonl", [PROMPT | row])
    with pytest.raises(UserError, match=said) as caught:
        inspect(file, "rl", label_key="label", more=more)
    assert f"{file}:1:" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "more"),
    [
        ({"metadata": None}, Columns(metadata="metadata")),
        ({"metadata": {}}, Columns(metadata="metadata")),
        ({"metadata": "text"}, Columns()),
        ({"tools": '[{"type": "function"}]'}, Columns(tools="tools")),
        ({"label": None}, Columns()),
        ({"prompt": "1+1"}, Columns(text=True)),
    ],
)
def test_what_slime_can_use_of_a_row_is_left_alone(tmp_path, row, more):
    assert inspect(write(tmp_path / "d.jsonl", [PROMPT | row]), "rl", label_key="label", more=more).rows == 1
