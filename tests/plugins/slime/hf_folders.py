"""Hugging Face folders and converted models, small and whole, written by the real torch and safetensors."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
CONFIG: dict[str, Any] = {"model_type": "qwen3", "vocab_size": 30, "hidden_size": 10, "num_hidden_layers": 2}


def write_hf(folder: Path, config: Mapping[str, Any] = CONFIG, *, tokenizer: bool = True) -> Path:
    """Two shards, an index, a config, a tokenizer."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    tensors = {"a": torch.ones(30, 10, dtype=torch.bfloat16), "b": torch.zeros(7)}
    for name, shard in SHARDS.items():
        save_file({name: tensors[name]}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": SHARDS}))
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        (folder / "tokenizer.json").write_text("{}")
        (folder / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    return folder


def write_torch_dist(folder: Path, value: float = 1.0) -> Path:
    """A folder as Megatron's save makes it, in its order."""
    import torch
    import torch.distributed.checkpoint as dcp

    folder.mkdir(parents=True)
    torch.save({"args": None, "iteration": 1}, folder / "common.pt")
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, thread_count=2)
        dcp.save({"w": torch.full((30, 10), value), "v": torch.zeros(7)}, storage_writer=writer, no_dist=True)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    return folder
