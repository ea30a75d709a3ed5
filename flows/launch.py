"""Start a pipeline flow in this process and turn its final state into words and an exit code."""

import json
import signal
from types import FrameType
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import State
from rich.console import Console
from rich.markup import escape

from blocks.recipe import Recipe, StageName

EXIT_BY_STATE = {"COMPLETED": 0, "CANCELLED": 130}
console = Console(stderr=True)


def launch(recipe: Recipe, stages: list[StageName], run_id: str | None) -> int:
    """Run the pipeline for these stages to its end; returns the exit code: 0 done, 130 cancelled, 1 failed."""
    # A terminal that closes or an orderly kill must give the pod back, as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _as_interrupt)
    state: State[Any] = pipeline_for(stages)(recipe=recipe, run_id=run_id, return_state=True)
    return _report(state)


def pipeline_for(stages: list[StageName]) -> Flow[..., State[Any]]:
    """The flow that runs exactly these stages."""
    if stages == ["sft"]:
        from flows.sft import sft_pipeline

        return sft_pipeline
    if stages == ["rl"]:
        from flows.rl import rl_pipeline

        return rl_pipeline
    from flows.post_training import post_training

    return post_training


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _report(state: State[Any]) -> int:
    message = state.message or ""
    if not state.is_completed():
        colour = "yellow" if state.is_cancelled() else "red"
        console.print(f"[{colour}]{state.name}:[/] {escape(message)}", highlight=False, soft_wrap=True)
        return EXIT_BY_STATE.get(state.type.value, 1)
    summary = json.loads(message)
    console.print(f"[green]Completed[/] run {summary['run_id']}; pods cost ${summary['cost_usd']:.4f}")
    for stage in summary["stages"]:
        figures = ", ".join(f"{name} {stage['first'][name]} → {last}" for name, last in stage["last"].items())
        console.print(f"  {stage['stage']}: {stage['outcome']}, iteration {stage['last_iteration']}; {figures}")
        console.print(f"    checkpoint {stage['checkpoint_uri']}", soft_wrap=True)
        if stage["export_uri"]:
            console.print(f"    Hugging Face export {stage['export_uri']}", soft_wrap=True)
        for pushed in stage.get("milestones", []):
            console.print(f"    pushed {pushed['url']} ({escape(pushed['reason'])})", soft_wrap=True, highlight=False)
        for line in stage.get("missed", []):
            console.print(f"    [yellow]{escape(line)}[/]", soft_wrap=True, highlight=False)
    return 0
