"""The page of a stage in the UI: its curves on two sheets, where its time goes, and its newest iterations as a table.

The first sheet is what is trained for, the second how the training runs. Pictures stand in the page itself, so it
outlives pod and store; a page is some 200 kB.
"""

from collections.abc import Sequence

from tasks.artifacts import Row, picture
from tasks.pictures import curves_png
from tasks.plain_text import plain
from tasks.stage_progress import OF_STEPS, StageProgress

AIMS = ("loss", "reward", "KL", "policy KL")
MOST_EVALS = 6


def stage_page(title: str, progress: StageProgress) -> str | None:
    """The page as Markdown; None before there is a figure."""
    figures = progress.figures()
    evals = [figure for figure in figures if figure.startswith("eval/") and not figure.endswith("-truncated_ratio")]
    aims = [*(figure for figure in AIMS if figure in figures), *evals[:MOST_EVALS]]
    runs = [figure for figure in figures if figure not in AIMS and not figure.startswith("eval/")]
    sheets = [_sheet(progress, chosen, words) for chosen, words in ((aims, "results"), (runs, "training")) if chosen]
    if not sheets:
        return None
    parts = [f"# {title}", *sheets]
    if split := progress.split():
        parts.append("Seconds of an iteration: " + ", ".join(f"{part} {spent:.1f}" for part, spent in split.items()))
    if progress.warning:
        parts.append(f"**{plain(progress.warning)}**")
    if rows := progress.table():
        parts.append(markdown_table(rows))
    return "\n\n".join(parts)


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows with their keys as columns; numbers with four digits, what is missing left empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(key)) for key in columns] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _sheet(progress: StageProgress, figures: Sequence[str], words: str) -> str:
    over = dict.fromkeys(OF_STEPS.values(), "optimizer step")
    return picture(curves_png({figure: progress.curve(figure) for figure in figures}, title=words, over=over), words)
