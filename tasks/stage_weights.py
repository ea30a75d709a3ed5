"""The weights of an attempt, on the pod: another stage's export or the base model, proved whole, converted if need be.

<root>/models/<user>--<name>@<commit>/                 fetched once, for all stages and attempts of the pod
              <user>--<name>@<commit>.json             there when all of it came
              <user>--<name>@<commit>.torch_dist/      converted (`plugins/slime/convert.py`)
<stage>/init/hf/<iteration>/                           the export of the stage that this one goes on from
"""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import TYPE_CHECKING

from plugins.checkpoints.disk import Disk
from plugins.checkpoints.manifest import Manifest, verify_files
from plugins.checkpoints.stores.several import SeveralStores
from plugins.errors import TornCheckpoint, UserError
from plugins.slime import layout
from plugins.slime.convert import Conversion, convert, needs_conversion
from plugins.slime.export import CONFIG, INDEX, add_tokenizer, check_export, has_tokenizer
from plugins.slime.flags import model_args
from plugins.slime.weights import HubModel, Weights, base_of, needed_files, pinned
from plugins.slime.whole import read_json
from tasks.base_model import KEY, known_commit
from tasks.stage_attempt import Stage

if TYPE_CHECKING:
    from plugins.checkpoints.hub.fetch import HubSource

LOOK_S, SAID_S = 1.0, 30.0
EXPORTS = "hf/"


def find_weights(stage: Stage, stores: SeveralStores) -> Weights | None:
    """The weights this attempt starts from; None when the recipe names none.

    The same for every attempt of the stage, also for one that goes on from a checkpoint: config, tokenizer and the
    model that RL is held close to are still those of the beginning.
    Raises UserError, StoreError, StageEnded.
    """
    recipe = stage.order.recipe
    is_slime = recipe.trainer.kind == "slime"
    init = stage.order.init
    if init is not None and (stage.restored is None or is_slime or "use-kl-loss" in _flags(stage)):
        folder = _fetch_init(stage, stores)
        origin = f"{init.run_id}/{init.stage} iteration {init.iteration}"
        _prove_init(stage, stores, folder)
    elif recipe.model.hf_checkpoint is not None and init is None:
        folder, origin = _base_model(stage, stores, recipe.model.hf_checkpoint)
    else:
        return None
    stage.log(f"weights: {origin}, in {folder}")
    return Weights(folder, _loadable(stage, folder) if is_slime else folder, origin)


def _flags(stage: Stage) -> dict[str, object]:
    return {**stage.order.recipe.model.args, **stage.order.recipe.stage(stage.order.stage).all_flags()}


def _fetch_init(stage: Stage, stores: SeveralStores) -> Path:
    """Folder with the Hugging Face weights of another stage, verified."""
    init = stage.order.init
    assert init is not None
    held = [one for one in stores.list(init.run_id, init.stage) if one.iteration == init.iteration]
    wanted = [one for one in held if init.revision in (None, one.digest())]
    if not wanted:
        raise UserError(
            f"{stage.order.run_id}/{stage.order.stage} starts from {init.run_id}/{init.stage} iteration "
            f"{init.iteration}, which {stores.uri} does not have{' with the same content' if held else ''}."
        )
    target = stage.dir / "init"
    if not _is_here(target, wanted[0]):
        stores.get(wanted[0], target, only=lambda path: path.startswith(EXPORTS))
    return layout.export_dir(target, init.iteration)


def _is_here(target: Path, manifest: Manifest) -> bool:
    """Whether an earlier attempt on this pod fetched the same export, and it is still what was sealed."""
    export = tuple(entry for entry in manifest.files if entry.path.startswith(EXPORTS))
    try:
        verify_files(target, manifest.model_copy(update={"files": export}))
    except TornCheckpoint:
        return False
    return bool(export)


def _prove_init(stage: Stage, stores: SeveralStores, folder: Path) -> None:
    """Weights whole, and for slime a tokenizer: the base model's, when the export was made without."""
    try:
        check_export(folder)
    except TornCheckpoint as error:  # it is what was sealed, byte for byte: the next attempt would find the same
        raise UserError(f"The export to start from cannot be loaded: {error}") from error
    recipe = stage.order.recipe
    if recipe.trainer.kind != "slime" or has_tokenizer(folder):
        return
    if recipe.model.hf_checkpoint is None:
        raise UserError(
            f"{folder} has no tokenizer, and the recipe names no model to take one from: set model.hf_checkpoint"
        )
    base, origin = _base_model(stage, stores, recipe.model.hf_checkpoint)
    stage.log(f"the export had no tokenizer; from {origin}: {', '.join(add_tokenizer(folder, base))}")


def _base_model(stage: Stage, stores: SeveralStores, text: str) -> tuple[Path, str]:
    """Folder of the recipe's base model, and where it comes from."""
    place = base_of(text)
    if isinstance(place, HubModel):
        commit = _commit(stage, stores, place)
        return _fetched(stage, place, commit), place.at(commit)
    if stage.order.recipe.trainer.kind == "slime" and "ref-load" not in _flags(stage):
        try:
            check_export(place, tokenizer=True)
        except TornCheckpoint as error:
            raise UserError(f"model.hf_checkpoint {place} cannot be trained from: {error}") from error
    return place, str(place)


def _commit(stage: Stage, stores: SeveralStores, model: HubModel) -> str:
    """Which commit of the base model this run uses; it is written into what this attempt seals.

    Checkpoints of the run come first: they were trained from it. Then what the order says, at last the Hub.
    """
    lineage = stage.order.lineage
    known = known_commit(stores, stage.order.run_id, model) or pinned(lineage, model)
    commit = known or _source(stage, model).commit(model.revision)[0]
    lineage[KEY] = model.at(commit)
    return commit


def _source(stage: Stage, model: HubModel) -> "HubSource":
    from plugins.checkpoints.hub.fetch import HubSource  # the Hub's library is loaded only where it is used

    return HubSource("model", model.repo, hub_url=stage.order.recipe.env.get("HF_ENDPOINT"))


def _models_dir(stage: Stage) -> Path:
    pod = stage.order.recipe.pod
    return (Path(pod.shared_dir) if pod.nodes > 1 and pod.shared_dir else stage.root) / "models"


def _fetched(stage: Stage, model: HubModel, commit: str) -> Path:
    """The folder of a model at a commit; fetched, or what is missing of it, unless an earlier stage has done so."""
    folder = _models_dir(stage) / model.folder_name(commit)
    mark = folder.with_name(f"{folder.name}.json")
    if mark.exists() and _is_whole(folder):
        stage.log(f"{model.at(commit)} is on this pod already")
        return folder
    source = _source(stage, model)
    files = source.files(commit)
    disk = Disk()
    disk.make_folder(folder)
    index = folder / INDEX
    if INDEX in files:
        source.fetch([files[INDEX]], commit, folder)
    wanted = [files[name] for name in needed_files(files, index if INDEX in files else None)]
    total, came = sum(one.size_bytes for one in wanted), _Sum()
    stop = threading.Event()
    watched = _Watch(stage, f"fetching {model.repo}", lambda: came.bytes, total)
    pool = ThreadPoolExecutor(1, "fetch")
    work = pool.submit(source.fetch, wanted, commit, folder, stop=stop, progress=came.add)
    try:
        while True:
            try:
                work.result(timeout=LOOK_S)
                break
            except NotYet:
                watched.look()
    finally:
        stop.set()  # a stage that is ended does not wait for the rest
        pool.shutdown(wait=False, cancel_futures=True)
    watched.say()
    try:
        check_export(folder)
    except TornCheckpoint as error:  # it is what the Hub has, byte for byte
        raise UserError(f"{model.at(commit)} cannot be trained from: {error}") from error
    about = {"repo": model.repo, "commit": commit, "files": {one.path: one.size_bytes for one in wanted}}
    disk.write(mark, json.dumps(about, indent=1) + "\n")
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        check_export(folder)
    except TornCheckpoint:
        return False
    return True


def _loadable(stage: Stage, folder: Path) -> Path:
    """What slime is given to load: the folder itself, or Megatron's format where it cannot read that type of model."""
    recipe, flags = stage.order.recipe, _flags(stage)
    if "ref-load" in flags:
        return Path(str(flags["ref-load"]))
    config = read_json(folder / CONFIG)
    resumed_sft = stage.restored is not None and stage.order.stage == "sft"  # nothing but the checkpoint is loaded
    slime_dir = Path(recipe.trainer.slime_dir)
    if resumed_sft or not needs_conversion(config, slime_dir):
        return folder
    work = Conversion(
        hf=folder,
        target=folder.with_name(f"{folder.name}.torch_dist"),
        slime_dir=slime_dir,
        megatron_dir=Path(recipe.trainer.megatron_dir),
        architecture=model_args(slime_dir, recipe.model.name) if recipe.model.name else [],
        args=recipe.model.args,
        gpus=recipe.pod.gpu_count,
        python=recipe.trainer.python,
    )
    stage.log(f"slime cannot load a model of type {config.get('model_type')} as it is: converting it to {work.target}")
    written = _Sum()
    watched = _Watch(stage, f"converting {folder.name}", lambda: written.bytes, None)

    def each(size_bytes: int) -> None:
        written.bytes = size_bytes
        watched.look()

    try:
        return convert(work, log_file=stage.attempt_dir / "convert.log", each=each)
    except TornCheckpoint as error:
        raise UserError(f"The conversion of {folder} ended well and is not whole: {error}") from error


class _Sum:
    """Bytes that several threads count."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = threading.Lock()

    def add(self, more: int) -> None:
        """Count more, or with a negative number less."""
        with self._lock:
            self.bytes += more


class _Watch:
    """Tells heartbeat and log how far something is, and notices that the attempt was ended."""

    def __init__(self, stage: Stage, doing: str, done: Callable[[], int], total: int | None) -> None:
        self._stage, self._doing, self._done, self._total = stage, doing, done, total
        self._began = self._said = time.monotonic()

    def look(self) -> None:
        """Beat; say something now and then. Raises StageEnded."""
        self._stage.phase = self._words()
        self._stage.beat()
        self._stage.check_ended()
        if time.monotonic() - self._said >= SAID_S:
            self.say()

    def say(self) -> None:
        """One line in the log."""
        self._said = time.monotonic()
        self._stage.log(self._words())

    def _words(self) -> str:
        done = self._done()
        seconds = max(time.monotonic() - self._began, 0.001)
        of = f" of {self._total / 1e9:.2f}" if self._total is not None else ""
        return f"{self._doing}: {done / 1e9:.2f}{of} GB, {done / 1e6 / seconds:.0f} MB/s"
