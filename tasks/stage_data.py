"""The data of a stage, looked at on the machine that rents: whole, row by row, before anything is paid."""

from dataclasses import dataclass
from pathlib import Path

from blocks.recipe import Recipe, StageName, home
from plugins.errors import ControlPlaneError, UserError
from plugins.slime.prompt_data import Columns, inspect
from tasks.stores import unset_secrets


class DataUnseen(UserError):
    """Data on the Hub that cannot be looked at now: the Hub does not answer, or wants the token that is not set yet."""


@dataclass(frozen=True)
class StageData:
    """A stage's prompt data on this machine. rows: how many; sha256: of the file."""

    path: Path
    rows: int
    sha256: str


def check_data(recipe: Recipe, name: StageName) -> StageData | None:
    """Look at every row of a stage's prompt data. Raises UserError naming the file and the row, or the key."""
    section, dataset = recipe.stage(name), recipe.stage(name).dataset
    if dataset is None:
        if recipe.trainer.kind != "command":
            raise UserError("data: missing; the trainer needs prompt data.")
        return None
    flags = section.all_flags()
    key = flags.get("input-key")
    label = "label" if name == "rl" and recipe.trainer.kind != "command" else None
    label = str(flags.get("label-key", label)) if flags.get("label-key", label) else None
    return _inspected(recipe, dataset.path, name, str(key) if key else None, label, columns(recipe, name))


def check_evaluation(recipe: Recipe, name: StageName) -> dict[str, StageData]:
    """The evaluation sets of a stage that evaluates; they have the columns of its prompt data."""
    if not evaluates(recipe, name):
        return {}
    flags, sets = recipe.stage(name).all_flags(), recipe.stage(name).evaluation.data
    key, label = str(flags.get("input-key", "prompt")), str(flags.get("label-key", "label"))
    more = columns(recipe, name)
    return {one: _inspected(recipe, path, "rl", key, label, more) for one, path in sets.items()}


def evaluates(recipe: Recipe, name: StageName) -> bool:
    """Whether the trainer evaluates in this stage; without engines, as in sft, slime's eval returns at once.

    slime/ray/rollout.py (RolloutManager.eval) at v0.3.1.
    """
    if recipe.trainer.kind == "command":
        return False
    return name == "rl" or recipe.stage(name).extra_args.get("debug-train-only") is False


def columns(recipe: Recipe, name: StageName) -> Columns:
    """What slime will read of a row besides prompt and label."""
    if recipe.trainer.kind == "command":
        return Columns()
    flags = recipe.stage(name).all_flags()
    metadata, tools = str(flags.get("metadata-key") or "metadata"), flags.get("tool-key")
    reward = bool(flags.get("rm-type") or flags.get("custom-rm-path"))
    generate = flags.get("custom-generate-function-path") or flags.get("rollout-function-path")
    return Columns(
        metadata=metadata,
        tools=str(tools) if tools else None,
        named=frozenset(str(flags[one]) for one in ("metadata-key", "tool-key") if flags.get(one)),
        text=name == "rl" and reward and not generate and not flags.get("apply-chat-template"),
        needs_label=name == "rl" and bool(flags.get("rm-type")),
    )


def _inspected(
    recipe: Recipe, where: str, name: StageName, key: str | None, label: str | None, more: Columns
) -> StageData:
    path = Path(where)
    if "://" in where:
        from plugins.datasets.hub import fetch_dataset  # the Hub's library is loaded only where it is used

        try:
            path = fetch_dataset(where, home() / "datasets")
        except ControlPlaneError as error:
            raise DataUnseen(f"{where}: {error}") from error
        except UserError as error:
            if "HF_TOKEN" not in unset_secrets(recipe):
                raise
            raise DataUnseen(f"{where}: not without HF_TOKEN: {error}") from error
    found = inspect(path, name, input_key=key, label_key=label, more=more)
    return StageData(path, found.rows, found.sha256)
