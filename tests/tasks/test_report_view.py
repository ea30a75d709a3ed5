"""The account of a run as tables: what is known with its numbers, what is not as `?`, foreign text as text."""

import io
import json
from dataclasses import replace

from rich.console import Console

from tasks.accounting import PodTimes, Report, build_report
from tasks.report_view import MEANING, loss_rows, report_rows, show_report
from tasks.stretches import Kind
from tests.tasks.test_accounting import T0, told


def shown(report: Report) -> str:
    console = Console(width=250, record=True, file=io.StringIO())
    show_report(console, report)
    return console.export_text()


def test_the_summary_says_where_the_time_went() -> None:
    text = shown(told([6, 9]).report())
    for words in (
        "run r-1  ETTR 37.1 %, 2 losses, $2.04",
        "36 min",
        "attempts: 3, lost: 2",
        "12 min (34.3 %)",
        "40 ",
        "43 were trained",
        "$0.0509",
        "by Daly's model: a loss every 18 min, a save of 5 s every 80 s, 7 min from a loss until it trains again",
    ):
        assert words in text, words


def test_each_loss_has_its_parts() -> None:
    text = shown(told([6, 9]).report())
    for words in ("rl 1", "fox, spot", "2027-01-15 08:08:42", "first new", "preflight", "8 min"):
        assert words in text, words


def test_a_run_without_losses_has_no_table_of_them() -> None:
    text = shown(told([]).report())
    assert "0 losses" in text and "first new" not in text and "expected" not in text


def test_what_is_not_known_is_a_question_mark_and_null_in_rows() -> None:
    story = told([6])
    story.attempts[0] = replace(story.attempts[0], lost_at=None)
    story.attempts[1] = replace(story.attempts[1], phases={})
    story.pods[1] = replace(story.pods[1], price_per_hour=None)
    report = story.report()
    text = shown(report)
    assert "?" in text and "None" not in text and "at least $" in text and "ETTR at least" in text
    assert "left out are pods without a known cost: 1" in text
    (row,) = loss_rows(report)
    assert row["detect_s"] is None and row["restore_s"] is None and row["recovered_s"] is None
    assert row["rent_s"] == 40.0 and row["work_lost_s"] is None


def test_rows_are_json_for_a_table_artifact() -> None:
    report = told([6]).report()
    (row,) = json.loads(json.dumps(loss_rows(report)))
    assert row["attempt"] == "rl 1" and row["at"] == "2027-01-15 08:08:42" and row["iterations_lost"] == 2
    assert (row["boot_s"], row["first_new_s"], row["other_s"], row["recovered_s"]) == (200.0, 50.0, 0.0, 475.0)
    rows = json.loads(json.dumps(report_rows(report)))
    assert rows[0]["figure"] == "ETTR" and all(set(row) == {"figure", "value", "meaning"} for row in rows)


def test_foreign_text_neither_breaks_a_table_nor_reaches_the_terminal() -> None:
    story = told([6])
    bad = {"host": "[red]fox[/x]\x1b]0;OWNED\x07", "tier": "[/b]"}
    story.pods = [replace(pod, **bad) for pod in story.pods]
    report = story.report()
    text = shown(replace(report, run_id="[bold]r\x1b[2J"))
    assert "[red]fox[/x]" in text and "[/b]" in text and "[bold]r" in text
    assert "\x1b" not in text and "\x07" not in text
    assert loss_rows(report)[0]["host"] == "[red]fox[/x]]0;OWNED"


def test_an_empty_run_is_shown() -> None:
    text = shown(build_report("r", [], [], now=T0))
    assert "ETTR ?" in text and "None" not in text
    assert "at least $0.00" in shown(build_report("r", [PodTimes("a", T0, *[None] * 7)], [], now=T0 + 9))


def test_every_kind_of_time_has_its_meaning() -> None:
    assert set(MEANING) == set(Kind)
