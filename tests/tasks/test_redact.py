"""Secrets never reach a log: their values are replaced wherever they stand."""

import pytest

from tasks.redact import redactor


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"A_TOKEN": "tok-123456", "LONGER": "tok-123456-and-more", "SHORT": "abc", "EMPTY": ""}.items():
        monkeypatch.setenv(name, value)


def test_every_place_of_a_secret_is_hidden() -> None:
    assert redactor(["A_TOKEN"])("x tok-123456 y=tok-123456") == "x *** y=***"


def test_a_secret_that_contains_another_is_hidden_whole() -> None:
    assert redactor(["A_TOKEN", "LONGER"])("tok-123456-and-more tok-123456") == "*** ***"


def test_unset_empty_and_very_short_values_change_nothing() -> None:
    assert redactor(["UNSET", "EMPTY", "SHORT"])("abc is a word") == "abc is a word"


def test_a_value_that_changes_later_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    redact = redactor(["A_TOKEN"])
    monkeypatch.setenv("A_TOKEN", "another-value")
    assert redact("tok-123456") == "***"
