"""The base model of a recipe, looked at before a pod is rented: is it there, may we read it, does it fit the flags.

Which commit of it a run uses is decided once. It goes along in the lineage of every order and of every sealed
checkpoint (`base_model: user/name@commit`), and whoever comes later takes it from there, on whatever pod: a model that
is changed on the Hub in the middle of a run must not change the run.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from blocks.recipe import Recipe, StageName
from plugins.checkpoints.stores import CheckpointStore
from plugins.errors import StoreError, UserError
from plugins.slime.convert import loaded_as_is, unknown_type
from plugins.slime.export import CONFIG, INDEX
from plugins.slime.flags import Value, model_args, parse_argv
from plugins.slime.launch import HOME
from plugins.slime.weights import HubModel, base_of, misfits, needed_files, parameters_in, pinned

KEY = "base_model"
"""Key of a lineage: `user/name@commit`."""
STAGES: tuple[StageName, ...] = ("sft", "rl")


@dataclass(frozen=True)
class BaseModel:
    """A model of the Hub at one commit. parameters: about how many; size_bytes: of the files a pod will fetch."""

    repo: str
    revision: str
    parameters: int
    model_type: str
    config: dict[str, Any]
    size_bytes: int = 0

    @property
    def lineage(self) -> dict[str, str]:
        """What goes into a run's lineage."""
        return {KEY: HubModel(self.repo).at(self.revision)}


def check_base_model(recipe: Recipe, log: Callable[[str], None] = lambda _line: None) -> BaseModel | None:
    """Look at the recipe's base model on the Hub; None for a folder on the pod, no model, or a Hub that is silent.

    Raises UserError when it is not there or may not be read, has no weights in safetensors, is of a type that slime
    does not know, or contradicts `model:`.
    """
    text = recipe.model.hf_checkpoint
    if text is None or isinstance(place := base_of(text), Path):
        return None
    from plugins.checkpoints.hub.fetch import HubSource  # the Hub's library is loaded only where it is used

    source = HubSource("model", place.repo, hub_url=recipe.env.get("HF_ENDPOINT"), pauses_s=(0.5, 1.0))
    try:
        found, counted = source.commit(place.revision)
        files = source.files(found)
        with TemporaryDirectory() as folder:
            index = Path(folder) / INDEX
            if INDEX in files:
                index.write_bytes(source.content(INDEX, found))
            names = needed_files(files, index if INDEX in files else None)
        if CONFIG not in files:
            raise UserError(f"it has no {CONFIG}")
        config = dict(json.loads(source.content(CONFIG, found)))
    except UserError as error:
        raise UserError(f"Recipe '{recipe.name}': model.hf_checkpoint {text}: {error}") from error
    except ValueError as error:
        raise UserError(f"Recipe '{recipe.name}': model.hf_checkpoint {text}: {CONFIG} is no JSON: {error}") from error
    except StoreError as error:
        log(f"WARNING the base model {text} could not be looked at, and is looked for on the pod: {error}")
        return None
    slime_reads = recipe.trainer.kind != "slime" or config.get("model_type") in loaded_as_is(HOME / "slime")
    if not slime_reads and not any("ref-load" in recipe.stage(name).all_flags() for name in recipe.stages()):
        raise UserError(f"Recipe '{recipe.name}': model.hf_checkpoint {text}: {unknown_type(config)}")
    if wrong := misfits(config, architecture(recipe, HOME / "slime"), whole=knows_all(recipe, HOME / "slime")):
        raise UserError(f"Recipe '{recipe.name}': model: does not fit {text}: {'; '.join(wrong)}")
    weights_bytes = sum(files[name].size_bytes for name in names if name.endswith(".safetensors"))
    return BaseModel(
        place.repo,
        found,
        counted or parameters_in(config, weights_bytes),
        str(config.get("model_type", "")),
        config,
        sum(files[name].size_bytes for name in names),
    )


def architecture(recipe: Recipe, slime_dir: Path) -> dict[str, Value]:
    """Flags of the model's architecture: those of slime's script where slime is at hand, under the recipe's own."""
    own = parse_argv(model_args(slime_dir, recipe.model.name or "")) if knows_all(recipe, slime_dir) else {}
    return {**own, **recipe.model.args}


def knows_all(recipe: Recipe, slime_dir: Path) -> bool:
    """Whether `architecture` gives every flag of it: only with the script that the recipe names."""
    named = recipe.trainer.kind == "slime" and recipe.model.name
    return bool(named) and (slime_dir / "scripts" / "models" / f"{recipe.model.name}.sh").is_file()


def known_commit(store: CheckpointStore, run_id: str, model: HubModel) -> str | None:
    """The commit that this run's checkpoints began with; None when none names one. Raises StoreError."""
    for stage in STAGES:
        for manifest in store.list(run_id, stage):
            if commit := pinned(manifest.lineage, model):
                return commit
    return None
