"""Megatron's format for models that slime cannot load from Hugging Face files, by slime's own tool.

    <target>.partial/
      iter_0000001/  common.pt  __0_0.distcp ...  .metadata  metadata.json      1 written
      latest_checkpointed_iteration.txt   "1"                                   2
                                          "release"                             3
      release/       what iter_0000001 was                                      4 moved; now it is whole
    <target>/        the same under its own name                                5 moved by us

The tool stops between any two of these when the pod's disk is full or somebody kills it, and slime's own helper takes a
folder that merely exists for a converted one. Ours is proved file by file, and made anew when it is not whole.
Source: slime v0.3.1 tools/convert_hf_to_torch_dist.py main().

Which slime is on the pod decides: up to v0.3.0 every model had to be converted; from v0.3.1 on the trainer reads some
types of Hugging Face folders itself, and the tool, which then reads them with the same code, can convert no others.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugins.errors import StoreError, TornCheckpoint, UserError
from plugins.slime import layout
from plugins.slime.export import CONFIG, remove, tool_environment
from plugins.slime.flags import Value, parse_argv, render
from plugins.slime.tool import run_tool
from plugins.slime.weights import misfits
from plugins.slime.whole import files_under, read_json, reading

LOADED_AS_IS = frozenset(
    (
        "deepseek_v3",
        "deepseek_v32",
        "glm4",
        "glm4_moe",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "kimi_k2",
        "llama",
        "mimo",
        "minimax_m2",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_moe",
        "qwen3_next",
    )
)
"""`model_type`s whose Hugging Face folder slime v0.3.1 takes for --ref-load and --load; see `loaded_as_is`."""
LOADERS = "slime/backends/megatron_utils/hf_to_megatron/__init__.py"
TOOL = "tools/convert_hf_to_torch_dist.py"
RELEASE = "release"
PARALLEL = frozenset(
    (
        "tensor-model-parallel-size",
        "pipeline-model-parallel-size",
        "context-parallel-size",
        "expert-model-parallel-size",
        "expert-tensor-parallel-size",
        "sequence-parallel",
        "decoder-first-pipeline-num-layers",
        "decoder-last-pipeline-num-layers",
    )
)
"""Flags of the training's layout over GPUs: the tool finds its own, and any layout can load what it makes."""
_OTHERS = frozenset(("hf-checkpoint", "ref-load", "load", "save"))


@dataclass(frozen=True)
class Conversion:
    """One conversion. architecture: the model's arguments as slime's script gives them; args: more of them, by name.

    gpus: how many the pod has; python: what runs slime on the pod.
    """

    hf: Path
    target: Path
    slime_dir: Path
    megatron_dir: Path
    architecture: Sequence[str]
    args: Mapping[str, Value] = field(default_factory=dict)
    gpus: int = 1
    python: str = "python3"

    @property
    def flags(self) -> dict[str, Value]:
        """The flags of the model's architecture; a later one wins, as in slime."""
        return {**parse_argv(self.architecture), **self.args}

    @property
    def partial(self) -> Path:
        """Where the tool writes."""
        return self.target.with_name(f"{self.target.name}.partial")

    def argv(self) -> list[str]:
        """The tool's command line, in the folder of slime."""
        layers = self.flags.get("num-layers")
        if not isinstance(layers, int) or layers < 1:
            raise UserError(
                f"{self.hf} must be converted for slime, which needs the model's architecture: set `model.name` to a "
                "file of slime's scripts/models, or give `num-layers` and the rest in `model.args`"
            )
        number = processes(self.gpus, layers)
        several = ["-m", "torch.distributed.run", "--nproc-per-node", str(number)]  # torchrun, of that Python
        given = {name: value for name, value in self.args.items() if name not in PARALLEL | _OTHERS}
        own = ["--hf-checkpoint", str(self.hf), "--save", str(self.partial)]
        return [self.python, *(several if number > 1 else ()), TOOL, *self.architecture, *render(given), *own]


def loaded_as_is(slime_dir: Path) -> frozenset[str]:
    """The types of models that the slime in this folder reads from Hugging Face files, by its own table.

    None for a slime older than v0.3.1, those of v0.3.1 where there is no slime or its table looks different.
    """
    table = slime_dir / LOADERS
    if not table.is_file():
        return frozenset() if (slime_dir / "slime/backends").is_dir() else LOADED_AS_IS
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        for node in ast.parse(table.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                return frozenset(str(ast.literal_eval(key)) for key in node.value.keys if key is not None)
    return LOADED_AS_IS


def needs_conversion(config: Mapping[str, Any], slime_dir: Path) -> bool:
    """Whether a model with this config.json must be converted before this slime can load it.

    Raises UserError when it can neither be loaded nor converted.
    """
    known = loaded_as_is(slime_dir)
    if config.get("model_type") in known:
        return False
    tool = slime_dir / TOOL
    if known and tool.is_file() and "hf_to_megatron" in tool.read_text(encoding="utf-8", errors="replace"):
        raise UserError(unknown_type(config, known))
    return True


def unknown_type(config: Mapping[str, Any], known: Collection[str] = LOADED_AS_IS) -> str:
    """What to say about a model of a type that slime has no code for."""
    return (
        f"slime can neither load nor convert a model of type {config.get('model_type')!r}; it knows "
        f"{', '.join(sorted(known))}. Take another model, or convert it yourself and name the result as `ref-load` in "
        "`extra_args`"
    )


def processes(gpus: int, layers: int) -> int:
    """How many processes the tool is given: each takes a part of the layers, and the last must get some.

    The tool halves a number that does not fit and fails at an odd one (get_args), so one that fits is chosen here.
    """
    for number in range(min(gpus, layers), 1, -1):
        if layers - -(-layers // number) * (number - 1) > 0:
            return number
    return 1


def check_converted(folder: Path) -> None:
    """Prove that a converted model is whole; return when it is.

    Raises TornCheckpoint naming what is wrong: no folder, a conversion that stopped on its way, a file cut short;
    StoreError when it cannot be read.
    """
    tracker = folder / layout.TRACKER
    with reading(tracker, "tracker"):
        said = tracker.read_bytes()[:64].strip().decode(errors="replace")
    if said != RELEASE:
        raise TornCheckpoint(f"{tracker}: says {said!r} where {RELEASE!r} was expected: the conversion did not finish")
    if left := layout.list_iterations(folder):
        raise TornCheckpoint(f"{layout.iteration_dir(folder, left[0])}: was not moved to {RELEASE} (whole)")
    layout.check_torch_dist(folder / RELEASE)


def convert(
    conversion: Conversion,
    *,
    log_file: Path,
    each: Callable[[int], None] = lambda _bytes: None,
) -> Path:
    """Convert a model, unless that is done and whole; returns the folder to give as --ref-load.

    each: called again and again with the bytes written so far; whatever it raises stops the tool.
    Raises UserError when the flags contradict the model's config (the tool would not notice), or with the tool's last
    lines; TornCheckpoint when what it made is not whole; StoreError.
    """
    with contextlib.suppress(TornCheckpoint):
        check_converted(conversion.target)
        return conversion.target
    argv = conversion.argv()
    if wrong := misfits(read_json(conversion.hf / CONFIG), conversion.flags, whole=True):
        raise UserError(
            f"{conversion.hf} does not fit the recipe's `model:`, and the conversion would make garbage of it: "
            + "; ".join(wrong)
        )
    remove(conversion.partial)
    remove(conversion.target)
    run_tool(
        f"The conversion of {conversion.hf}",
        argv,
        cwd=conversion.slime_dir,
        env=tool_environment(conversion.slime_dir, conversion.megatron_dir),
        log_file=log_file,
        each=lambda: each(_size_bytes(conversion.partial)),
    )
    check_converted(conversion.partial)
    try:
        conversion.partial.rename(conversion.target)
    except OSError as error:
        raise StoreError(f"{conversion.target}: cannot be made ({error.strerror}): check space and rights") from error
    return conversion.target


def _size_bytes(folder: Path) -> int:
    """Bytes in a folder that somebody writes and moves at this moment."""
    total = 0
    with contextlib.suppress(OSError, StoreError):
        for path in files_under(folder):
            total += path.stat().st_size
    return total
