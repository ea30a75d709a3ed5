import json
import re
from pathlib import Path
from typing import Any

import pytest

from plugins.datasets.arithmetic import chats, prompts
from plugins.errors import UserError

SHIPPED = Path(__file__).parents[3] / "deployments/recipes/data"


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def expected(question: str) -> int:
    return sum(int(number) for number in re.findall(r"\d+", question))


def last(text: str) -> int:
    return int(re.findall(r"\d+", text)[-1])


def test_prompts_have_the_right_labels_and_repeat_no_sum_before_all_were_out(tmp_path: Path) -> None:
    out = tmp_path / "rl.jsonl"
    assert prompts(out, n=130, seed=1) == 130
    sums = []
    for row in rows(out):
        (message,) = row["prompt"]
        assert (message["role"], set(row), row["metadata"]) == ("user", {"prompt", "label", "metadata"}, {})
        assert int(row["label"]) == expected(message["content"])
        sums.append(tuple(re.findall(r"\d+", message["content"])))
    assert len(set(sums[:100])) == 100


def test_chats_are_wrong_and_wordy_in_about_the_asked_share(tmp_path: Path) -> None:
    out = tmp_path / "sft.jsonl"
    assert chats(out, n=2000, seed=1, wrong_share=0.3, wordy_share=0.2) == 2000
    pairs = [[message["content"] for message in row["messages"]] for row in rows(out)]
    wrong = [last(answer) - expected(question) for question, answer in pairs if last(answer) != expected(question)]
    assert 0.25 < len(wrong) / 2000 < 0.35
    assert {abs(distance) for distance in wrong} == {1, 2, 3}
    assert 0.15 < sum(not answer.isdecimal() for _, answer in pairs) / 2000 < 0.25


def test_a_clean_set_has_only_bare_right_answers(tmp_path: Path) -> None:
    chats(tmp_path / "sft.jsonl", n=300, wrong_share=0, wordy_share=0)
    for row in rows(tmp_path / "sft.jsonl"):
        question, answer = (message["content"] for message in row["messages"])
        assert answer == str(expected(question))


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        chats(tmp_path / f"{name}.jsonl", n=50, seed=seed)
    a, b, c = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert a == b != c


def test_the_shipped_files_are_what_the_generators_write(tmp_path: Path) -> None:
    chats(tmp_path / "demo_sft.jsonl", n=400)
    prompts(tmp_path / "demo_rl.jsonl", n=100)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (SHIPPED / path.name).read_bytes()


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 5, "max_operand": 0}, {"n": 5, "wrong_share": 1.5}])
def test_impossible_wishes_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        chats(tmp_path / "x.jsonl", **wrong)
    assert list(tmp_path.iterdir()) == []
