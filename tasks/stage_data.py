"""The data of a stage, looked at on the machine that rents: whole, row by row, before anything is paid."""

from dataclasses import dataclass
from pathlib import Path

from blocks.recipe import Recipe, StageName, home
from plugins.errors import ControlPlaneError, UserError
from plugins.slime.prompt_data import inspect


class DataUnseen(UserError):
    """Data on the Hub that cannot be looked at now, because the Hub does not answer."""


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
    label = str(flags.get("label-key", label)) if label else None
    return _inspected(dataset.path, name, str(key) if key else None, label)


def check_evaluation(recipe: Recipe, name: StageName) -> dict[str, StageData]:
    """The evaluation sets of a stage; they have the columns of its prompt data."""
    flags = recipe.stage(name).all_flags()
    key, label = str(flags.get("input-key", "prompt")), str(flags.get("label-key", "label"))
    return {one: _inspected(path, "rl", key, label) for one, path in recipe.stage(name).evaluation.data.items()}


def _inspected(where: str, name: StageName, key: str | None, label: str | None) -> StageData:
    path = Path(where)
    if "://" in where:
        from plugins.datasets.hub import fetch_dataset  # the Hub's library is loaded only where it is used

        try:
            path = fetch_dataset(where, home() / "datasets")
        except ControlPlaneError as error:
            raise DataUnseen(f"{where}: {error}") from error
    found = inspect(path, name, input_key=key, label_key=label)
    return StageData(path, found.rows, found.sha256)
