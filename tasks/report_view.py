"""`trainstack report` for people: tables for the terminal, and the same figures as rows of a Prefect table.

Hosts, tiers and pod names come from outside, so they are shown as plain text and never read as markup.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from plugins.lium.offers import duration
from tasks.accounting import Report
from tasks.losses import Loss
from tasks.plain_text import plain
from tasks.stretches import Kind

UNKNOWN = "?"
MEANING = {
    Kind.TRAINING: "iterations that are in the final state",
    Kind.REDO: "repeating iterations that a loss had taken; in the final state too",
    Kind.LOST: "iterations that a loss took, and those it interrupted",
    Kind.SAVE: "writing checkpoints, and the last upload",
    Kind.DETECT: "from the last sign of life until declared lost",
    Kind.RENT: "waiting for a pod",
    Kind.BOOT: "from the rent until the pod ran",
    Kind.PREFLIGHT: "checking the pod, starting its worker",
    Kind.RESTORE: "from the submission to the trainer's start: Ray, restore",
    Kind.START: "from the trainer's start to its first iteration",
    Kind.UNKNOWN: "not on record in enough detail",
    Kind.IDLE: "nothing of the above",
}


def report_rows(report: Report) -> list[dict[str, Any]]:
    """The summary as rows of `figure`, `value`, `meaning`, for a table artifact."""
    return [{"figure": figure, "value": value, "meaning": meaning} for figure, value, meaning in _summary(report)]


def loss_rows(report: Report) -> list[dict[str, Any]]:
    """One row for each loss, for a table artifact: times in seconds, null where the records do not say."""
    return [
        {
            "attempt": plain(loss.row),
            "end": loss.end,
            "at": _moment(loss),
            "pod": _text(loss.pod),
            "host": _text(loss.host),
            "tier": _text(loss.tier),
            "iterations_lost": loss.iterations,
            "work_lost_s": _tenths(loss.lost_s),
            **{f"{name.replace(' ', '_')}_s": _tenths(seconds) for name, seconds in loss.pieces().items()},
            "recovered_s": _tenths(loss.recovered_s),
        }
        for loss in report.losses
    ]


def show_report(console: Console, report: Report) -> None:
    """Print the summary, and a table of the losses where there are any."""
    console.print(Text.assemble(("run ", "dim"), (plain(report.run_id), "bold"), f"  {_headline(report)}"))
    summary = Table("figure", "value", "meaning")
    for cells in _summary(report):
        summary.add_row(*(Text(plain(cell)) for cell in cells))
    console.print(summary)
    if report.losses:
        console.print(_losses_table(report))
        console.print(
            Text(f"{UNKNOWN}: not on record, or not over yet. The parts from detect to other add up to back.")
        )


def _headline(report: Report) -> str:
    count = len(report.losses)
    return f"ETTR {_ettr(report)}, {count} {'loss' if count == 1 else 'losses'}, {_cost(report)}"


def _summary(report: Report) -> Iterator[tuple[str, str, str]]:
    yield "ETTR", _ettr(report), "effective training time ratio: productive time (with redo) / wall time"
    if expected := report.expected:
        yield (
            "ETTR expected",
            _percent(expected.ettr),
            f"by Daly's model: a loss every {duration(expected.mtbl_s)}, a save of {duration(expected.save_cost_s)} "
            f"every {duration(expected.interval_s)}, {duration(expected.recovery_s)} from a loss until it trains again",
        )
    yield "wall time", duration(report.wall_s), f"attempts: {report.attempts}, lost: {len(report.losses)}"
    for kind, meaning in MEANING.items():
        seconds = report.seconds[kind]
        if seconds > 0 or kind is Kind.TRAINING:
            share = f" ({_percent(seconds / report.wall_s)})" if report.wall_s > 0 else ""
            yield f"  {kind}", f"{duration(seconds)}{share}", meaning
    yield "iterations", str(report.iterations), f"in the final state; {report.trained} were trained"
    yield "cost", _cost(report), f"left out are pods without a known cost: {report.unpriced}" if report.unpriced else ""
    each = report.cost_per_iteration
    yield "cost per iteration", UNKNOWN if each is None else f"${each:.4f}", "of those in the final state"


def _losses_table(report: Report) -> Table:
    pieces = [*report.losses[0].pieces()]
    table = Table("lost", "how", "at (UTC)", "host", "iterations", "work", *pieces, "back")
    for loss in report.losses:
        host = ", ".join(part for part in (loss.host, loss.tier) if part) or UNKNOWN
        times = [loss.lost_s, *loss.pieces().values(), loss.recovered_s]
        cells = (loss.row, loss.end, _moment(loss) or UNKNOWN, host, str(loss.iterations), *map(_time, times))
        table.add_row(*(Text(plain(cell)) for cell in cells))
    return table


def _ettr(report: Report) -> str:
    if report.ettr is None:
        return UNKNOWN
    return f"{'at least ' if report.seconds[Kind.UNKNOWN] else ''}{_percent(report.ettr)}"


def _cost(report: Report) -> str:
    return f"{'at least ' if report.unpriced else ''}${report.cost_usd:.2f}"


def _moment(loss: Loss) -> str | None:
    at = loss.moment
    return None if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


def _text(text: str | None) -> str | None:
    return None if text is None else plain(text)


def _tenths(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _time(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else duration(seconds)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
