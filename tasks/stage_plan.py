"""What `trainstack plan` says of a recipe before the market is asked: whether it can run, and each stage of it.

The stages: how long, on what data, with which command line, and whether it fits. What a run would refuse is refused
here, by the same checks; what only this machine lacks, and what did not answer, is a line.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.text import Text

from blocks.recipe import Recipe
from plugins.errors import StoreError, UserError
from tasks.base_model import BaseModel, check_base_model
from tasks.check_recipe import StageLook, check_keys, look_at_stage, missing_here, start_checkpoint
from tasks.stores import stores_here, unset_secrets
from tasks.unused_keys import unused_keys


@dataclass(frozen=True)
class RecipePlan:
    """stages: in their order; before: what must be set before `run`; notes: advice, and what was not looked at."""

    stages: list[StageLook]
    before: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan_recipe(recipe: Recipe) -> RecipePlan:
    """Look at the recipe as a run would, writing nowhere. Raises UserError for what a run would refuse."""
    check_keys(recipe)
    before, notes = missing_here(recipe), unused_keys(recipe)
    base = _base_model(recipe, notes)
    stages = plan_stages(recipe, base)
    _look_for_start(recipe, before, notes)
    return RecipePlan(stages, before, notes)


def plan_stages(recipe: Recipe, base: BaseModel | None = None) -> list[StageLook]:
    """Look at every stage. Raises UserError for what a run would refuse; data that cannot be fetched now is none."""
    return [look_at_stage(recipe, name, base, unseen_ok=True) for name in recipe.stages()]


def _base_model(recipe: Recipe, notes: list[str]) -> BaseModel | None:
    """The Hub's model; a gated one cannot be judged without the token that only the run will have."""
    if recipe.trainer.kind != "slime":
        return None
    try:
        return check_base_model(recipe, notes.append)
    except UserError as error:
        if "HF_TOKEN" not in unset_secrets(recipe):
            raise
        notes.append(f"model not looked at without HF_TOKEN: {error}")
        return None


def _look_for_start(recipe: Recipe, before: list[str], notes: list[str]) -> None:
    """Look whether the other run's checkpoint is there that rl begins with; this run's own may come later."""
    init = recipe.rl.init if recipe.rl else None
    if init is None or not init.startswith("run:"):
        return
    if before:
        notes.append(f"rl.init not looked at: {init}: first set what is missing")
        return
    try:
        start_checkpoint(recipe, stores_here(recipe), "")
    except StoreError as error:
        notes.append(f"rl.init not looked at: {init}: {error}")


def recipe_view(plan: RecipePlan, *, commands: bool) -> RenderableType:
    """The stages, then what is to be set or known before a run."""
    lines = [*(f"before `run`: {line}" for line in plan.before), *(f"note: {line}" for line in plan.notes)]
    return Group(stages_view(plan.stages, commands=commands), *(Text(line) for line in lines))


def stages_view(plans: Sequence[StageLook], *, commands: bool) -> RenderableType:
    """The stages as lines; with `commands` each one's command line, to read or to run by hand."""
    return Group(*(Text(line) for plan in plans for line in _lines(plan, commands)))


def _lines(plan: StageLook, commands: bool) -> Iterator[str]:
    yield f"{plan.name}: {_length(plan)}, {_data(plan)}"
    if plan.fit is not None and plan.fit.need is not None:
        have = "" if plan.fit.gpu_gb is None else f", of {plan.fit.gpu_gb:.0f} GB"
        yield f"  model: {plan.fit.need.parameters / 1e9:.2f} billion parameters; {plan.fit.need}{have}"
    yield from (f"  advice: {line}" for line in plan.advice)
    if commands and plan.launch is not None:
        yield ""
        yield shell(plan.launch.argv)
        yield from (f"  note: {note}" for note in plan.launch.notes)
        yield ""


def _length(plan: StageLook) -> str:
    return "length not known here" if plan.last is None else f"{plan.last + 1} rollouts"


def _data(plan: StageLook) -> str:
    if plan.unseen and plan.data is None:
        return f"data not looked at: {plan.unseen}"
    rest = f"; evaluation data not looked at: {plan.unseen}" if plan.unseen else ""
    return ("no data" if plan.data is None else f"{plan.data.rows} rows of data") + rest


def shell(argv: Sequence[str]) -> str:
    """A command line for a shell, one flag a line."""
    lines = [""]
    for word in argv:
        if word.startswith("--"):
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + shlex.quote(word)
    return " \\\n    ".join(lines)
