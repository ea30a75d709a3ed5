"""Our export of a checkpoint through slime's real tool, on the CPU: a model goes into Megatron's format and comes back.

The checkpoint is written by the real torch in the names and shapes that Megatron-LM gives (layers stacked, query, key
and value interleaved by group, the vocabulary padded); the tool reads it with slime's own converters.
"""

import json
import os
import sys
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from plugins.errors import UserError
from plugins.slime.export import check_export, export_by_tool

SLIME, MEGATRON = os.environ.get("SLIME", ""), os.environ.get("MEGATRON", "")

pytestmark = [
    pytest.mark.slime,
    pytest.mark.skipif(
        not SLIME or not (Path(SLIME) / "tools/convert_torch_dist_to_hf.py").is_file(),
        reason="SLIME names no checkout of upstream slime",
    ),
    pytest.mark.skipif(
        not MEGATRON or not (Path(MEGATRON) / "megatron/core").is_dir(),
        reason="MEGATRON names no checkout of Megatron-LM",
    ),
]
SHAPE = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 4}
VOCABULARY, PADDED = 30, 64


def origin(folder: Path) -> dict[str, Any]:
    """A random Qwen2 with its tokenizer's files; its tensors."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return dict(model.state_dict())


def megatron(folder: Path, tensors: dict[str, Any]) -> Path:
    """The same weights as `iter_0000007` of a save dir."""
    import torch
    import torch.distributed.checkpoint as dcp

    def layers(make: Any) -> Any:
        return torch.stack([make(f"model.layers.{number}.") for number in range(2)])

    def grouped(prefix: str, what: str, rest: tuple[int, ...]) -> Any:
        q, k, v = (tensors[f"{prefix}self_attn.{one}_proj.{what}"] for one in "qkv")
        parts = [q.view(2, 2, 4, *rest), k.view(2, 1, 4, *rest), v.view(2, 1, 4, *rest)]
        return torch.cat(parts, 1).reshape(-1, *rest)

    def padded(name: str) -> Any:
        return torch.cat([tensors[name], torch.full((PADDED - VOCABULARY, 16), 7.0)])

    state = {
        "embedding.word_embeddings.weight": padded("model.embed_tokens.weight"),
        "output_layer.weight": padded("lm_head.weight"),
        "decoder.final_layernorm.weight": tensors["model.norm.weight"],
        "decoder.layers.self_attention.linear_proj.weight": layers(lambda at: tensors[f"{at}self_attn.o_proj.weight"]),
        "decoder.layers.self_attention.linear_qkv.weight": layers(lambda at: grouped(at, "weight", (16,))),
        "decoder.layers.self_attention.linear_qkv.bias": layers(lambda at: grouped(at, "bias", ())),
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight": layers(
            lambda at: tensors[f"{at}input_layernorm.weight"]
        ),
        "decoder.layers.mlp.linear_fc1.weight": layers(
            lambda at: torch.cat([tensors[f"{at}mlp.gate_proj.weight"], tensors[f"{at}mlp.up_proj.weight"]])
        ),
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": layers(
            lambda at: tensors[f"{at}post_attention_layernorm.weight"]
        ),
        "decoder.layers.mlp.linear_fc2.weight": layers(lambda at: tensors[f"{at}mlp.down_proj.weight"]),
        "optimizer.state.exp_avg.decoder.final_layernorm.weight": torch.zeros(16),
    }
    folder.mkdir(parents=True)
    args = Namespace(**SHAPE, vocab_size=VOCABULARY, q_lora_rank=None, num_experts=None)
    torch.save({"args": args, "iteration": 7}, folder / "common.pt")
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        dcp.save(state, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    return folder


def export(tmp_path: Path, iteration: Path) -> Path:
    export_by_tool(
        iteration,
        tmp_path / "out",
        tmp_path / "hf",
        slime_dir=Path(SLIME),
        megatron_dir=Path(MEGATRON),
        log_file=tmp_path / "export.log",
        python=sys.executable,
    )
    return tmp_path / "out"


def test_slimes_tool_gives_every_tensor_back_and_the_folder_loads(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tensors = origin(tmp_path / "hf")
    output = export(tmp_path, megatron(tmp_path / "save/iter_0000007", tensors))
    check_export(output, tokenizer=True)
    loaded = AutoModelForCausalLM.from_pretrained(output, dtype="float32").state_dict()
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name


def test_a_checkpoint_that_lost_a_file_is_said_with_the_tools_words(tmp_path: Path) -> None:
    folder = megatron(tmp_path / "save/iter_0000007", origin(tmp_path / "hf"))
    next(folder.glob("*.distcp")).unlink()
    with pytest.raises(UserError, match=r"failed with exit code 1(.*\n)+.*distcp"):
        export(tmp_path, folder)
    assert not (tmp_path / "out").exists()
