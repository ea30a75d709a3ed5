"""Push a sealed checkpoint to the Hugging Face Hub from where its files are: a save dir, or a store.

What is pushed was sealed: every file is compared with its manifest on the way. Knows nothing of Prefect, so that a pod
can push what it holds (`push_here.py`); finding out who holds it is the business of `push_checkpoint.py`.
"""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plugins.checkpoints.manifest import Manifest, read_local
from plugins.checkpoints.push import ModelCard, Pushed, push_export
from plugins.checkpoints.stores import CheckpointStore
from plugins.errors import UserError
from plugins.slime import layout
from plugins.slime.weights import repo_of

STAGES = ("rl", "sft")  # the later one first: it is what a person means who names none


def push_sealed(
    save_dir: Path,
    manifest: Manifest,
    to: str,
    *,
    source_uri: str | None = None,
    reason: str | None = None,
    base_model: str | None = None,
    public: bool = False,
    whole: bool = False,
    rollouts: Path | None = None,
) -> Pushed:
    """Push one sealed checkpoint from the folder its files are in. See `push_export` for what it raises.

    rollouts: folder of rollout trajectories to push along.
    """
    lineage = manifest.lineage
    card = ModelCard(
        run_id=manifest.run_id,
        stage=manifest.stage,
        iteration=manifest.iteration,
        attempt=manifest.attempt,
        base_model=repo_of(lineage.get("base_model") or base_model),
        recipe_digest=lineage.get("recipe_sha256"),
        git_commit=lineage.get("git_commit"),
        image_digest=lineage.get("image") or None,
        data_hash=lineage.get("data_sha256") or None,
        parent=manifest.parent,
        init=lineage.get("init") or None,
        pod=lineage.get("pod"),
        source=source_uri,
        reason=reason,
        metrics=manifest.metrics,
    )
    with tempfile.TemporaryDirectory(prefix="trainstack-push-") as folder:
        extra = {}
        for name, file in _files(rollouts).items() if rollouts else ():  # copied: the trainer goes on writing them
            copy = Path(folder) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            extra[f"rollouts/{name}"] = copy
        return push_export(save_dir, manifest.files, to, card, public=public, whole=whole, extra=extra)


def push_from_save_dir(
    root: Path, run_id: str, stage: str | None, iteration: int | None, to: str, **how: Any
) -> Pushed:
    """Push what this pod holds. root: `~/trainstack` of the pod. Raises UserError when it holds no such checkpoint."""
    for name in (stage,) if stage else STAGES:
        save_dir = root / "runs" / run_id / name / "save"
        numbers = [iteration] if iteration is not None else reversed(layout.list_iterations(save_dir))
        found = next((one for number in numbers if (one := read_local(save_dir, number)) is not None), None)
        if found is not None:
            return push_sealed(save_dir, found, to, source_uri=None, **how)
    raise UserError(f"{root} holds no sealed checkpoint of {_named(run_id, stage, iteration)}")


def push_from_store(
    store: CheckpointStore, run_id: str, stage: str | None, iteration: int | None, to: str, **how: Any
) -> Pushed:
    """Fetch from the store, verify, push. Raises UserError when the store has no such checkpoint, StoreError."""
    for name in (stage,) if stage else STAGES:
        held = [one for one in store.list(run_id, name) if iteration in (None, one.iteration)]
        if not held:
            continue
        with tempfile.TemporaryDirectory(prefix="trainstack-push-") as folder:
            only = None if how.get("whole") else (lambda path: path.startswith("hf/"))
            if held[0].export_path is None:
                raise UserError(f"{store.uri_of(held[0])} has no Hugging Face export: there is nothing to push")
            store.get(held[0], Path(folder), only=only)
            return push_sealed(Path(folder), held[0], to, source_uri=store.uri_of(held[0]), **how)
    names = (stage,) if stage else STAGES
    there = [f"{name} {one.iteration}" for name in names for one in store.list(run_id, name)]
    known = f"; it has {', '.join(there)}" if there else ""
    raise UserError(f"{store.uri} has no checkpoint of {_named(run_id, stage, iteration)}{known}")


def as_data(pushed: Pushed) -> dict[str, Any]:
    """A push for a table or for JSON; `files` is their number."""
    return {**{key: value for key, value in asdict(pushed).items() if key != "files"}, "files": len(pushed.files)}


def _files(folder: Path) -> dict[str, Path]:
    """Files under a folder by their path in it."""
    return {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}


def _named(run_id: str, stage: str | None, iteration: int | None) -> str:
    return "/".join([run_id, *([stage] if stage else [])]) + ("" if iteration is None else f", iteration {iteration}")
