"""Hugging Face folders: written so that `transformers` loads them, read back as start weights.

    <folder>/config.json  model.safetensors  generation_config.json
             tokenizer.json  tokenizer_config.json  special_tokens_map.json

The folder is made under another name and renamed when it is whole.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugins.errors import StoreError, UserError
from plugins.tinyslime.model import TinyLlama
from plugins.tinyslime.tokenizer import END_OF_TEXT, IM_END, tokenizer_files


def write_folder(model: TinyLlama, folder: Path) -> None:
    """Export the model; an older folder of that name is replaced. Raises StoreError when it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = folder.with_name(f"{folder.name}.part")
    generation = {"eos_token_id": [IM_END, END_OF_TEXT], "pad_token_id": END_OF_TEXT, "do_sample": True}
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        tensors = {name: value.detach().contiguous() for name, value in model.named_parameters()}
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        (part / "model.safetensors").chmod(0o644)  # safetensors makes it private
        for name, content in (
            tokenizer_files() | {"config.json": model.config.to_hf(), "generation_config.json": generation}
        ).items():
            (part / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot write the Hugging Face folder {folder}: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder; raises UserError when there is none that can be read."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no Hugging Face folder: config.json: {error}") from error
    return config


def read_weights(model: TinyLlama, folder: Path) -> None:
    """Fill the model from `model.safetensors`; raises UserError when file and model do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}/model.safetensors: {error}") from error
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            found = tensors.pop(name, None)
            if found is None or found.shape != parameter.shape:
                shape = "missing" if found is None else list(found.shape)
                raise UserError(f"{folder}/model.safetensors: {name} is {shape}, not {list(parameter.shape)}")
            parameter.copy_(found)
    if tensors:
        raise UserError(
            f"{folder}/model.safetensors holds tensors that the model lacks: {', '.join(sorted(tensors)[:3])}"
        )
