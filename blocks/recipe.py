"""The recipe: one YAML file that says everything about a run, and the parameter of every pipeline flow.

Field descriptions are the form a person sees in the Prefect UI, so they speak to that person. Reading, validating and
resolving paths happens here; checks that need other rooms (trainer flags, data rows) are in
`tasks/check_recipe.py`.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from blocks.training import DataSection, FlagValue, Section, TrackingSection, Training, section_named
from plugins.errors import UserError

RUN_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
StageName = Literal["sft", "rl"]


class LiumSection(Section):
    """Which Lium API rents the pods."""

    base_url: str | None = Field(
        None,
        description="'emulator' runs the Lium API on this machine (nothing is paid). A URL names another API. Empty: "
        "LIUM_BASE_URL, else the real marketplace.",
    )
    credentials_block: str | None = Field(
        None, description="Name of a saved 'Lium credentials' block. Empty: LIUM_API_KEY or ~/.lium/config.ini."
    )


class PreflightSection(Section):
    """What a pod must show before it is trained on; an empty limit is shown and not judged."""

    min_disk_write_mb_s: float | None = Field(100, gt=0, description="Write speed of the pod's disk in MB/s.")
    min_download_mbps: float | None = Field(
        None, gt=0, description="Measured download speed in Mbit/s. Empty: pod.min_download_mbps."
    )
    download_url: str | None = Field(
        "https://huggingface.co/openai-community/gpt2/resolve/main/model.safetensors",
        description="What is downloaded to measure, for some seconds only. Empty: the speed is not measured.",
    )
    max_clock_skew_s: float = Field(10, gt=0, description="Most that the pod's clock may be off, in seconds.")
    min_shm_gb: float | None = Field(1, gt=0, description="Size of /dev/shm in GB; NCCL and Ray need it.")
    min_gpu_memory_free: float = Field(0.9, ge=0, le=1, description="Part of each GPU's memory that must be free.")


class PodSection(Section):
    """The machine to rent and the money it may cost."""

    gpu: str | list[str] = Field(
        "H200",
        description="GPU model as Lium names it, short (H200) or full (NVIDIA H200); a list is an order of preference.",
    )
    gpu_count: int = Field(1, ge=1, le=64, description="GPUs on the pod; on each of them when there are several.")
    nodes: int = Field(1, ge=1, le=64, description="Pods that train together, rented as one Lium cluster.")
    shared_dir: str | None = Field(
        None,
        description="Folder that every node sees under this path (a shared file system): checkpoints of several nodes "
        "are written there. Needed when nodes is more than 1.",
    )
    tier: Literal["secure", "spot", "any", "spot-first"] = Field(
        "any",
        description="any: the cheapest; spot-first: spot while there is some, else secure, and spot again later.",
    )
    spot_losses_per_hour: int = Field(
        3, ge=1, description="tier spot-first: after this many spot pods lost within an hour the next one is secure."
    )
    max_price_per_gpu_hour: float | None = Field(None, gt=0, description="Price ceiling in USD per GPU-hour.")
    budget_usd: float | None = Field(None, gt=0, description="Most that this run may cost in USD.")
    countries: list[Annotated[str, Field(pattern=r"^[A-Za-z]{2}$")]] = Field(
        default_factory=list, description="Two-letter country codes to rent in, e.g. US, FI. Empty: anywhere."
    )
    min_download_mbps: float | None = Field(None, gt=0, description="Listed download speed of the host in Mbit/s.")
    min_disk_gb: float | None = Field(None, gt=0, description="Free disk of the host in GB.")
    min_ram_gb: float | None = Field(None, gt=0, description="Memory of the host in GB.")
    min_cuda: float | None = Field(None, gt=0, description="CUDA version the driver must serve, e.g. 12.8.")
    min_driver: str | None = Field(
        None, pattern=r"^\d+(\.\d+)*$", description="NVIDIA driver at the least, e.g. '570'."
    )
    min_ports: int | None = Field(None, ge=1, description="Ports the host must have to map.")
    volume: str | None = Field(None, description="Lium volume mounted at /mnt: a name, 'new:name=x' or 'id:<huid>'.")
    image: str | None = Field(None, description="Training image the pod starts with: 'name:tag' or 'name@sha256:...'.")
    home: str | None = Field(
        None,
        pattern="^/",
        description="Folder of trainstack on the pod, where its image does not say.",
    )
    template_id: str | None = Field(None, description="Lium template to rent with, instead of an image.")
    ray_cpus: int = Field(2, ge=1, description="CPUs that Ray offers on the pod; slime needs at least GPUs + 2.")
    dead_man_minutes: int = Field(
        30, ge=5, le=1440, description="The pod ends by itself this long after the last sign of the steering flow."
    )
    capacity_wait_minutes: float = Field(
        0, ge=0, description="How long to wait for a machine when none fits the recipe now. 0: fail at once."
    )
    ready_timeout_minutes: float = Field(30, gt=0, description="Longest wait for a rented pod to become ready.")
    unreachable_after_s: float = Field(
        180, ge=10, description="SSH dead and heartbeat old for so long: the pod is lost."
    )
    bad_host_hours: float = Field(6, ge=0, description="How long a host that failed or lost a pod is left out.")
    preflight: PreflightSection = Field(default_factory=PreflightSection)
    keep_warm_minutes: float = Field(
        0,
        ge=0,
        le=1440,
        description="Hold the pod for the next run this long after a run that completed. It costs money.",
    )
    idle_minutes: float = Field(20, gt=0, description="GPUs under idle_gpu_percent for so long: the pod is idle.")
    idle_gpu_percent: float = Field(5, ge=0, le=100, description="GPU use below which a pod does nothing.")
    idle_release: bool = Field(False, description="Stop the run and give an idle pod back, instead of only warning.")

    @property
    def gpus(self) -> list[str]:
        """GPU models in order of preference."""
        return [self.gpu] if isinstance(self.gpu, str) else list(self.gpu)

    @model_validator(mode="after")
    def _some_gpu(self) -> "PodSection":
        if not self.gpus or not all(name.strip() for name in self.gpus):
            raise ValueError("gpu: name at least one GPU model")
        if self.image and self.template_id:
            raise ValueError("give one of 'image' and 'template_id'")
        return self


class ModelSection(Section):
    """Where the weights come from."""

    hf_checkpoint: str | None = Field(
        None,
        description="Hugging Face weights: a repo such as Qwen/Qwen3-4B (with @revision if you like), fetched on the "
        "pod, or an absolute path of a folder there. Empty: random (tinyslime).",
    )
    name: str | None = Field(
        None, description="Architecture: a file of slime's scripts/models without .sh, e.g. qwen3-4B (kind: slime)."
    )
    args: dict[str, FlagValue] = Field(
        default_factory=dict, description="Model shape as slime flags without dashes in front, e.g. num-layers: 2."
    )


class TrainerSection(Section):
    """Which program trains."""

    kind: Literal["slime", "tinyslime", "command"] = Field(
        "slime", description="slime; tinyslime, its stand-in for machines with no GPU; or your own command."
    )
    slime_dir: str = Field("/root/slime", description="Folder of slime on the pod; a command starts in it too.")
    megatron_dir: str = Field("/root/Megatron-LM", description="Folder of Megatron-LM on the pod (kind: slime).")
    python: str = Field("python3", description="Interpreter on the pod that has slime and Ray (kind: slime).")


class EnvironmentSection(Section):
    """The RL environment, reached over HTTP."""

    url: str | None = Field(None, description="Base URL of a running environment server, reachable from the pod.")
    task: Literal["arithmetic", "answer"] | None = Field(
        None, description="Serve this built-in task on the pod instead of using a URL."
    )

    @model_validator(mode="after")
    def _one_of(self) -> "EnvironmentSection":
        if (self.url is None) == (self.task is None):
            raise ValueError("give exactly one of 'url' and 'task'")
        if self.url is not None and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", self.url):
            raise ValueError(f"url: expected http(s)://host[:port], not {self.url!r}")
        return self


class StageSection(Training):
    """One training step."""

    data: str | DataSection | None = Field(
        None,
        description="Prompt data: a JSONL or parquet file (a relative path starts at the recipe's folder), "
        "hf://datasets/<user>/<repo>/<file>, or a section that names its columns too.",
    )
    num_rollout: int | None = Field(None, ge=1, description="Total rollouts (slime's --num-rollout), not 'more'.")
    num_epoch: int | None = Field(None, ge=1, description="Epochs over the data instead of num_rollout.")
    save_interval: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        20,
        description="Rollouts between checkpoints; 'auto' works it out from what saving costs and how often pods are "
        "lost.",
    )
    command: list[str] | str | None = Field(
        None, description="kind: command only: your argv, or one shell line (the old SLIME_SFT_CMD / SLIME_RL_CMD)."
    )

    @property
    def dataset(self) -> DataSection | None:
        """`data` as a section, also where only a path is given."""
        return DataSection(path=self.data) if isinstance(self.data, str) else self.data

    def all_flags(self) -> dict[str, FlagValue]:
        """Every slime flag that this stage sets; UserError for one that is set twice."""
        return self.flags(self.dataset)


class RLSection(StageSection):
    """The RL stage: a stage with an environment and weights to start from."""

    environment: EnvironmentSection | None = Field(None, description="The HTTP environment that gives rewards.")
    init: str | None = Field(
        None,
        description="Start from this run's SFT stage ('sft'), from another run's ('run:<run_id>/sft'), or, empty, from "
        "model.hf_checkpoint. With an sft section in the recipe the default is 'sft'.",
    )

    @field_validator("init")
    @classmethod
    def _init_form(cls, value: str | None) -> str | None:
        if value is not None and value != "sft" and not re.fullmatch(r"run:[a-z0-9-]+/(sft|rl)", value):
            raise ValueError("expected 'sft' or 'run:<run_id>/sft'")
        return value


class CheckpointSection(Section):
    """Where sealed checkpoints are kept."""

    store: str | list[str] = Field(
        "folder:~/.trainstack/store",
        description="Where sealed checkpoints go: s3://bucket/prefix, hub://user/repo, volume:/mnt/..., folder:<path> "
        "(one machine). A list is tried nearest first, and each gets every checkpoint it can take.",
    )
    keep: int = Field(3, ge=1, description="Newest checkpoints of a stage to keep, milestones besides.")
    final_upload_minutes: float = Field(
        30, gt=0, description="Longest wait for the last checkpoint to be in the stores when training has ended."
    )
    max_upload_mbit_s: float | None = Field(
        None, gt=0, description="Most that uploads may take of the pod's network, Mbit/s. Empty: all there is."
    )
    store_patience_minutes: float = Field(
        10,
        ge=0,
        description="How long a new attempt waits for a store that does not answer and may have a newer checkpoint.",
    )

    reshardable: bool = Field(
        False,
        description="Save the optimizer so that another tensor, pipeline or expert parallel size can go on from it.",
    )
    optimizer: bool = Field(True, description="Save the optimizer too; without it a resume starts with a fresh one.")

    @property
    def stores(self) -> list[str]:
        """Store URIs, nearest first."""
        return [self.store] if isinstance(self.store, str) else list(self.store)

    @field_validator("store")
    @classmethod
    def _some_store(cls, value: str | list[str]) -> str | list[str]:
        if not value or (isinstance(value, list) and len(set(value)) != len(value)):
            raise ValueError("name at least one store, each once")
        return value


class WatchdogSection(Section):
    """When a trainer that shows no progress is stopped; it is then tried again as after a crash."""

    stall_minutes: float | None = Field(
        30,
        gt=0,
        description="No sign of progress for so long: the trainer is stopped. A fast run is judged sooner, down to a "
        "third of it, and a phase that has been silent for long before gets longer. Empty (null): never.",
    )
    start_minutes: float = Field(
        60,
        gt=0,
        description="The same before the first iteration, while weights load, engines boot and code compiles, and for "
        "the first training step, save and evaluation.",
    )


class MilestoneSection(Section):
    """Checkpoints that are kept for good, and pushed to the Hugging Face Hub if `push_to` says where."""

    interval: int | None = Field(None, ge=1, description="Every so many iterations one is a milestone.")
    best: str | None = Field(
        None, description="The best value of this figure marks one: reward, loss, eval/<name>. Needs no interval."
    )
    at_end: bool = Field(True, description="The last checkpoint of a stage is one.")
    push_to: str | None = Field(
        None,
        description="Model repo for milestones: hub://user/repo, or with @branch. '{stage}' becomes the stage.",
    )
    public: bool = Field(False, description="Make the repo public when it is made. Default: private.")
    whole: bool = Field(False, description="Push optimizer and data state too, not the weights only.")
    rollouts: bool = Field(False, description="Push the rollout trajectories along.")


class Recipe(Section):
    """Everything about a run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,24}$", description="Short name; run ids start with it.")]
    seed: int = Field(1, ge=0, lt=2**32, description="Seed of data order, sampling and initial weights.")
    lium: LiumSection = Field(default_factory=LiumSection)
    pod: PodSection = Field(default_factory=PodSection)
    model: ModelSection = Field(default_factory=ModelSection)
    trainer: TrainerSection = Field(default_factory=TrainerSection)
    sft: StageSection | None = Field(None, description="Supervised fine-tuning; leave out to skip.")
    rl: RLSection | None = Field(None, description="Reinforcement learning; leave out to skip.")
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)
    milestones: MilestoneSection = Field(default_factory=MilestoneSection)
    watchdog: WatchdogSection = Field(default_factory=WatchdogSection)
    api_url: str | None = Field(
        None, description="Public URL of the Prefect API for the pod. Empty: a reverse tunnel to the API in use here."
    )
    env: dict[str, str] = Field(default_factory=dict, description="Environment of the trainer. Not for secrets.")
    secrets: list[str] = Field(
        default_factory=list,
        description="Names of environment variables to hand to the pod over SSH standard input, e.g. HF_TOKEN.",
    )
    max_attempts: int = Field(
        4, ge=1, le=50, description="Attempts in a row that may end without the stage having got any further."
    )
    heartbeat_s: float = Field(10, ge=1, le=60, description="Seconds between a stage's heartbeats.")

    def stage(self, name: StageName) -> StageSection:
        """The section of a stage; UserError when the recipe has none."""
        section = self.sft if name == "sft" else self.rl
        if section is None:
            raise UserError(f"Recipe '{self.name}' has no '{name}:' section, so there is no {name} stage to run.")
        return section

    def stages(self) -> list[StageName]:
        """The stages the recipe has, in the order they run."""
        return [name for name, section in (("sft", self.sft), ("rl", self.rl)) if section is not None]  # type: ignore[misc]

    def digest(self) -> str:
        """SHA-256 over the canonical JSON form: equal recipes have equal digests whatever their layout in YAML."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice: the second would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping. Raises yaml.YAMLError for a key that stands twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def home() -> Path:
    """Folder of everything trainstack keeps on this machine: TRAINSTACK_DIR, else ~/.trainstack."""
    return Path(os.environ.get("TRAINSTACK_DIR") or Path.home() / ".trainstack").expanduser().resolve()


def check_run_id(run_id: str) -> str:
    """Return the run id, or raise UserError: it becomes part of pod names, artifact keys and paths."""
    if not RUN_ID.fullmatch(run_id):
        raise UserError(
            f"Run id {run_id!r} will not do: use 1 to 40 of a-z, 0-9 and '-', with a letter or digit at both ends."
        )
    return run_id


def load_recipe(path: str | Path) -> Recipe:
    """Read, validate and resolve a recipe file.

    Relative data paths are resolved against the recipe's folder, `~` in the store is expanded. Raises UserError
    that names the file, the key path and what was expected.
    """
    file = _find(Path(path).expanduser())
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), _Loader)  # noqa: S506  (a SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read recipe {file}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"Recipe {file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"Recipe {file}: expected a mapping of keys such as 'name:', found {type(raw).__name__}.")
    return parse_recipe(raw, source=str(file), folder=file.parent)


def parse_recipe(raw: dict[str, Any], *, source: str, folder: Path | None = None) -> Recipe:
    """Validate a recipe given as data; `source` names it in messages. See `load_recipe`."""
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError(explain(error, source)) from error
    return resolve(recipe, folder)


def explain(error: ValidationError, source: str) -> str:
    """One line for each mistake: where (file and key path), what is wrong, what would be right."""
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "(top level)"
        if (flag := _flag_in(item["loc"])) is not None:
            lines.append(
                f"{source}: {flag}: must be a number, a text, true, false, or a list (found {item['input']!r:.80})"
            )
            continue
        if item["type"] == "extra_forbidden":
            lines.append(f"{source}: {key}: unknown key{_near(item['loc'])}")
        elif item["type"] == "missing":
            lines.append(f"{source}: {key}: missing; this key is required")
        else:
            lines.append(f"{source}: {key}: {item['msg']} (found {item['input']!r:.80})")
    return "\n".join(dict.fromkeys(lines))


def _flag_in(loc: tuple[int | str, ...]) -> str | None:
    """The key of a free flag, of which a wrong value is wrong for each kind that it might have been."""
    at = next((place for place, part in enumerate(loc) if part in ("extra_args", "args")), None)
    return None if at is None or len(loc) < at + 3 else ".".join(map(str, loc[: at + 2]))


def _near(loc: tuple[int | str, ...]) -> str:
    import difflib

    model: type[BaseModel] = Recipe
    for part in loc[:-1]:
        model = section_named(model, str(part)) or model
    near = difflib.get_close_matches(str(loc[-1]), model.model_fields, n=2, cutoff=0.55)
    known = ", ".join(model.model_fields)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known keys here: {known}"


def _find(path: Path) -> Path:
    """The file itself, or the same relative path under the installed code: deployments run in a folder of their own."""
    candidates = [path] if path.is_absolute() else [Path.cwd() / path, Path(__file__).resolve().parent.parent / path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    raise UserError(f"Recipe not found: {path} (looked at {', '.join(map(str, candidates))}).")


def _resolve_data(path: str, folder: Path) -> str:
    return path if "://" in path else str((folder / Path(path).expanduser()).resolve())


def _resolve_store(uri: str, folder: Path) -> str:
    kind, _, where = uri.partition(":") if ":" in uri else ("folder", "", uri)
    if kind != "folder":
        return uri
    default = where == "~/.trainstack/store"
    return f"folder:{home() / 'store' if default else (folder / Path(where).expanduser()).resolve()}"


def resolve(recipe: Recipe, folder: Path | None = None) -> Recipe:
    """Fill in what depends on this machine: absolute data paths, the store's folder, the RL stage's start.

    folder: what relative paths start at; None is the working folder. Resolving twice changes nothing.
    """
    folder = folder or Path.cwd()
    if not recipe.stages():
        raise UserError(f"Recipe '{recipe.name}' needs an 'sft:' or an 'rl:' section (or both).")
    changes: dict[str, Any] = {}
    for name in recipe.stages():
        section = recipe.stage(name)
        update: dict[str, Any] = {}
        if isinstance(section.data, DataSection):
            update["data"] = section.data.model_copy(update={"path": _resolve_data(section.data.path, folder)})
        elif section.data:
            update["data"] = _resolve_data(section.data, folder)
        if files := section.evaluation.data:
            found = {name: _resolve_data(path, folder) for name, path in files.items()}
            update["evaluation"] = section.evaluation.model_copy(update={"data": found})
        if isinstance(section, RLSection) and section.init is None and recipe.sft is not None:
            update["init"] = "sft"
        changes[name] = section.model_copy(update=update)
    stores = [_resolve_store(uri, folder) for uri in recipe.checkpoint.stores]
    changes["checkpoint"] = recipe.checkpoint.model_copy(update={"store": stores[0] if len(stores) == 1 else stores})
    return recipe.model_copy(update=changes)
