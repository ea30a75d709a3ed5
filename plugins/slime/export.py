"""Hugging Face folders: whether one can be loaded, and made from a checkpoint that was saved without one.

    <folder>/ config.json  tokenizer.json ...            what slime's --save-hf copies from --hf-checkpoint
              model-0000i-of-0000n.safetensors  model.safetensors.index.json

An index is no proof: the tool writes it before the shards it names (convert_torch_dist_to_hf.py save_tensors), and
with several nodes --save-hf writes it while others still rename theirs (hf_checkpoint_saver.py). So every shard is
looked at.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from plugins.errors import StoreError, TornCheckpoint, UserError
from plugins.slime.tool import run_tool
from plugins.slime.whole import read_json, tensor_names

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
_EXPORTED = {".json", ".safetensors", ".txt", ".model", ".jinja", ".py", ".md"}
"""Endings of the files in an export: weights, config, tokenizer and its code."""
TOOL = "tools/convert_torch_dist_to_hf.py"
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "*.tiktoken",
    "tiktoken*",
)
"""Files of which a tokenizer needs one at least."""
TOKENIZER_FILES = (
    *VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template*",
    "tokenization_*.py",
    "generation_config.json",
)


def check_export(folder: Path, *, tokenizer: bool = False) -> None:
    """Prove from its files that a Hugging Face folder can be loaded; return when it can.

    There is a config, every shard of the index is there with the length its own header says, and holds each tensor that
    the index places in it, as many bytes as its shape and type take. A small model has one file and no index.
    tokenizer: a tokenizer is there too, which who starts from the folder needs.

    Raises:
        TornCheckpoint: it cannot; names the file and what is wrong with it.
        StoreError: a file cannot be read.
    """
    read_json(folder / CONFIG)
    index = folder / INDEX
    if not index.exists() and (folder / SINGLE).exists():
        tensor_names(folder / SINGLE)
    else:
        for shard, tensors in sorted(shards_of(index).items()):
            if missing := sorted(tensors - tensor_names(folder / shard)):
                raise TornCheckpoint(f"{folder / shard}: does not hold {missing[0]}, which the index places there")
    if tokenizer and not has_tokenizer(folder):
        raise TornCheckpoint(f"{folder}: has no tokenizer ({', '.join(VOCABULARIES[:4])}): slime cannot start from it")


def shards_of(index: Path) -> dict[str, set[str]]:
    """Names of the tensors by the file that an index places them in. Raises TornCheckpoint, StoreError."""
    shards: dict[str, set[str]] = {}
    for tensor, shard in dict(read_json(index).get("weight_map") or {}).items():
        if Path(str(shard)).name != shard:
            raise TornCheckpoint(f"{index}: names {shard!r} where a file of the folder was expected")
        shards.setdefault(shard, set()).add(tensor)
    if not shards:
        raise TornCheckpoint(f"{index}: its weight_map names no tensor")
    return shards


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds the vocabulary of a tokenizer."""
    return any(fnmatch(path.name, pattern) for path in folder.iterdir() for pattern in VOCABULARIES)


def add_tokenizer(folder: Path, base: Path) -> list[str]:
    """Copy the tokenizer files of the base model that the folder lacks; returns their names.

    Raises UserError when the base model has no tokenizer either, StoreError when a file cannot be copied.
    """
    if not has_tokenizer(base):
        raise UserError(f"{folder} has no tokenizer, and neither has {base}: name a base model that has one")
    wanted = [path for path in sorted(base.iterdir()) if any(fnmatch(path.name, name) for name in TOKENIZER_FILES)]
    missing = [path for path in wanted if path.is_file() and not (folder / path.name).exists()]
    for path in sorted(missing, key=lambda one: any(fnmatch(one.name, name) for name in VOCABULARIES)):
        partial = folder / f".{path.name}.partial"  # what `has_tokenizer` looks for comes last
        try:
            shutil.copyfile(path, partial)
            partial.replace(folder / path.name)
        except OSError as error:
            raise StoreError(f"{folder / path.name}: cannot be written ({error.strerror})") from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    return [path.name for path in missing]


def check_export_inputs(iteration_dir: Path, origin: Path) -> None:
    """UserError for folders that a person named and that are no checkpoint, or no Hugging Face model."""
    if not iteration_dir.is_dir():
        raise UserError(f"{iteration_dir}: no such folder; name <save dir>/iter_0000019 of a checkpoint")
    if not (iteration_dir / ".metadata").is_file():
        raise UserError(f"{iteration_dir}: has no .metadata, so it is no whole checkpoint of Megatron's torch_dist")
    if not (origin / CONFIG).is_file():
        raise UserError(
            f"--origin {origin}: has no {CONFIG}; name the Hugging Face folder that training began with, for its "
            "config, tokenizer and the names of tensors"
        )


def export_by_tool(
    iteration_dir: Path,
    output: Path,
    origin: Path,
    *,
    slime_dir: Path,
    megatron_dir: Path,
    log_file: Path,
    each: Callable[[], None] = lambda: None,
    python: str = "python3",
) -> None:
    """Make the Hugging Face folder `output` of a checkpoint in Megatron's format, by slime's own tool (on the CPU).

    iteration_dir: `<save dir>/iter_N`; origin: the Hugging Face folder that training began with, for config, tokenizer
    and the names of tensors. The folder gets its name when it is whole; one that is there and whole is left alone.
    Needs about the model's size in memory. `each`: see `run_tool`.

    A torn export of that name, or of that name and `.partial`, is made anew; anything else there is left alone.

    Raises UserError with the tool's last lines, or for something else at that place; TornCheckpoint when what it made
    is not whole; StoreError.
    """
    with contextlib.suppress(TornCheckpoint):
        check_export(output)
        return
    partial = output.with_name(f"{output.name}.partial")
    for folder in (partial, output):
        _check_ours(folder)
    for folder in (partial, output):
        remove(folder)
    argv = [python, TOOL, *export_flags(iteration_dir, partial, origin)]
    env = tool_environment(slime_dir, megatron_dir)
    run_tool(f"The export of {iteration_dir}", argv, cwd=slime_dir, env=env, log_file=log_file, each=each)
    check_export(partial, tokenizer=has_tokenizer(origin))
    try:
        partial.rename(output)
    except OSError as error:
        raise StoreError(f"{output}: cannot be made ({error.strerror}): check space and rights there") from error


def _check_ours(folder: Path) -> None:
    """UserError unless nothing is there, an empty folder, or what an export leaves behind: it would be deleted."""
    if not folder.exists() and not folder.is_symlink():
        return
    files = list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else None
    if files is None or not all(file.is_file() and file.suffix in _EXPORTED for file in files):
        raise UserError(
            f"{folder}: is there already and is no Hugging Face export; name a folder that is not there yet"
        )


def export_flags(iteration_dir: Path, output: Path, origin: Path) -> list[str]:
    """The tool's arguments. The vocabulary's size is given, else Megatron's padding stays in the embeddings."""
    flags = ["--input-dir", str(iteration_dir), "--output-dir", str(output), "--origin-hf-dir", str(origin)]
    size = text_config(read_json(origin / CONFIG)).get("vocab_size")
    return flags + (["--vocab-size", str(size)] if isinstance(size, int) else [])


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config.json that describes the language model; models that see have it one level down."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def tool_environment(slime_dir: Path, megatron_dir: Path) -> dict[str, str]:
    """What slime's tools need to import slime and Megatron-LM, as its documents set it."""
    return {
        "PYTHONPATH": f"{megatron_dir}:{slime_dir}",
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    }


def remove(path: Path) -> None:
    """Remove a folder that a tool left half done. Raises StoreError."""
    try:
        if path.exists():
            shutil.rmtree(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be removed ({error.strerror}): check owner and rights") from error
