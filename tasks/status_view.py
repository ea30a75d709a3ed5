"""`trainstack status` for people: tables instead of JSON."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tasks.plain_text import plain

COLOURS = {"Completed": "green", "Running": "cyan", "Failed": "red", "Crashed": "red", "Cancelled": "yellow"}


def status_view(status: dict[str, Any]) -> RenderableType:
    """One run: headline, stages, pods."""
    head = Text.assemble(
        ("run ", "dim"), (status["run_id"], "bold"), "  ", _state(status["state"]), f"  ${status['cost_usd']:.4f}"
    )
    parts: list[RenderableType] = [head]
    if status["state"] != "Completed" and status["message"]:
        parts.append(Text(plain(status["message"])))
    stages = Table("stage", "state", "attempts", "iterations", "loss", "reward", "checkpoint")
    for row in status["stages"]:
        reached = "" if row["last_iteration"] is None else f"{row['last_iteration'] + 1}/{row['of'] or '?'}"
        where = row["store_uri"] or ("" if row["checkpoint"] is None else f"iteration {row['checkpoint']} durable")
        figures = (_span(row["loss"]), _span(row["reward"]))
        cells = (str(row["attempts"]), reached, *figures, where)
        stages.add_row(Text(row["stage"]), _state(row["state"]), *(Text(plain(cell)) for cell in cells))
    pods = Table("pod", "state", "gpu", "$/h", "cost so far")
    for row in status["pods"]:
        cost = "" if row["cost_usd"] is None else f"${row['cost_usd']:.4f}"
        cells = (row["name"], row["state"], row["gpu"], f"{row['price_per_hour'] or 0:.2f}", cost)
        pods.add_row(*(Text(plain(str(cell))) for cell in cells))
    return Group(*parts, stages, pods)


def runs_table(rows: list[dict[str, Any]]) -> RenderableType:
    """The newest runs."""
    table = Table("run", "state", "started")
    for row in rows:
        table.add_row(row["run_id"], _state(row["state"]), row["started_at"] or "")
    return table if rows else Text("no runs yet: `trainstack run deployments/recipes/demo.yaml`")


def _state(name: str | None) -> Text:
    return Text(name or "unknown", style=COLOURS.get(name or "", ""))


def _span(figure: dict[str, float | None]) -> str:
    if figure["last"] is None:
        return ""
    return f"{figure['last']:.3f}" if figure["first"] is None else f"{figure['first']:.3f} → {figure['last']:.3f}"
