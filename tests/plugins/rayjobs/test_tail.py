"""Following a log that is being written, with line ends and without."""

from pathlib import Path

import pytest

from plugins.rayjobs.tail import CONTINUED, LONGEST_REST, LogTail


class Log:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.tail = LogTail(path)

    def write(self, text: str) -> list[str]:
        with self._path.open("ab") as file:
            file.write(text.encode())
        return self.tail.lines()


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "trainer.log")


def test_lines_come_whole_and_once(log: Log) -> None:
    assert log.tail.lines() == [] and not log.tail.grew
    assert log.write("one\r\ntw") == ["one"] and log.tail.rest == "tw"
    assert log.write("o\n\nthree") == ["two", ""]
    assert log.tail.lines(final=True) == ["three"] and log.tail.rest == ""


def test_growth_and_the_newest_drawing_are_seen_without_a_line_end(log: Log) -> None:
    assert log.write("10%\r20%\r") == [] and log.tail.grew and log.tail.rest == "20%"
    assert log.tail.lines() == [] and not log.tail.grew
    assert log.write("30%\n") == ["10%\r20%\r30%"]


def test_a_long_rest_is_given_out_and_what_follows_is_no_lines_beginning(log: Log) -> None:
    assert log.write("x\r" * LONGEST_REST + "90%") == [f"{CONTINUED}90%"] and log.tail.rest == ""
    assert log.write("Traceback\n") == [f"{CONTINUED}Traceback"]
    assert log.write("Traceback\n") == ["Traceback"]


def test_a_long_rest_without_redrawing_keeps_its_beginning(log: Log) -> None:
    assert log.write("y" * (LONGEST_REST + 1)) == ["y" * (LONGEST_REST + 1)]
    assert log.write("\nnext\n") == ["next"]
