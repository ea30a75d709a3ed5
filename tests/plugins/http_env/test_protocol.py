import pytest

from plugins.errors import EnvError
from plugins.http_env.protocol import Ask, Problem, Turn


def test_a_problem_survives_the_wire() -> None:
    problem = Problem.of([{"role": "user", "content": "3+4="}], "7", {"level": 1})
    assert problem.prompt == "user: 3+4="
    assert Problem.from_json({"task": problem.to_json()}) == problem


def test_an_older_request_without_the_optional_fields_is_understood() -> None:
    assert Problem.from_json({"task": {"prompt": "hi"}}) == Problem("hi")
    assert Ask.from_json({"session_id": "x", "action": "y"}) == Ask()
    assert Turn.from_json({"observation": None, "done": False, "reward": None}) == Turn()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"reward": "1"}, "reward"),
        ({"reward": float("nan")}, "reward"),
        ({"reward": True}, "reward"),
        ({"done": "yes"}, "done"),
        ({"observation": ["a"]}, "observation"),
        ({"info": 3}, "info"),
    ],
)
def test_a_broken_answer_names_the_field(body: dict[str, object], field: str) -> None:
    with pytest.raises(EnvError, match=f"'{field}' must be"):
        Turn.from_json(body)


@pytest.mark.parametrize("body", [{"deadline_s": 0}, {"deadline_s": "5"}, {"request_id": 7}, {"request_id": "x" * 201}])
def test_broken_options_are_refused(body: dict[str, object]) -> None:
    with pytest.raises(EnvError):
        Ask.from_json(body)
