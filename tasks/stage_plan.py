"""What `trainstack plan` says of the stages: how long, on what data, with which command line, and whether it fits."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from blocks.recipe import Recipe, StageName
from plugins.slime.launch import Launch
from tasks.command_line import about, command_line
from tasks.stage_data import DataUnseen, StageData, check_data
from tasks.stage_fit import Fit, stage_fit


@dataclass(frozen=True)
class StagePlan:
    """One stage. data None: not looked at, `unseen` says why; launch None: a `command`, or unknown without the data."""

    name: StageName
    data: StageData | None
    unseen: str | None
    launch: Launch | None
    fit: Fit | None


def plan_stages(recipe: Recipe) -> list[StagePlan]:
    """Look at every stage. Raises UserError for what a run would refuse; data that cannot be fetched now is none."""
    plans = []
    for name in recipe.stages():
        with about(recipe, name):
            plans.append(_plan(recipe, name))
    return plans


def _plan(recipe: Recipe, name: StageName) -> StagePlan:
    data, unseen = None, None
    try:
        data = check_data(recipe, name)
    except DataUnseen as error:
        unseen = str(error)
    if recipe.trainer.kind == "command":
        return StagePlan(name, data, unseen, None, None)
    if unseen and recipe.stage(name).num_epoch is not None:
        return StagePlan(name, data, unseen, None, None)
    launch = command_line(recipe, name, data)
    fit = stage_fit(recipe, name, launch) if recipe.trainer.kind == "slime" else None
    return StagePlan(name, data, unseen, launch, fit)


def stages_view(plans: Sequence[StagePlan], *, commands: bool) -> RenderableType:
    """The stages as lines; with `commands` each one's command line, to read or to run by hand."""
    return Group(*(Text(line) for plan in plans for line in _lines(plan, commands)))


def _lines(plan: StagePlan, commands: bool) -> Iterator[str]:
    yield f"{plan.name}: {_length(plan)}, {_data(plan)}"
    if plan.fit is not None:
        if plan.fit.need is not None:
            have = "" if plan.fit.gpu_gb is None else f", of {plan.fit.gpu_gb:.0f} GB"
            yield f"  model: {plan.fit.need.parameters / 1e9:.2f} billion parameters; {plan.fit.need}{have}"
        yield from (f"  advice: {line}" for line in plan.fit.advice)
    if commands and plan.launch is not None:
        yield ""
        yield shell(plan.launch.argv)
        yield ""


def _length(plan: StagePlan) -> str:
    last = plan.launch.expected_last if plan.launch else None
    return "length not known here" if last is None else f"{last + 1} rollouts"


def _data(plan: StagePlan) -> str:
    if plan.unseen:
        return f"data not looked at: {plan.unseen}"
    return "no data" if plan.data is None else f"{plan.data.rows} rows of data"


def shell(argv: Sequence[str]) -> str:
    """A command line for a shell, one flag a line."""
    lines = [""]
    for word in argv:
        if word.startswith("--"):
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + shlex.quote(word)
    return " \\\n    ".join(lines)
