"""How many parameters a model has, from its architecture flags (slime's MODEL_ARGS), experts counted apart."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plugins.slime.flags import Value


@dataclass(frozen=True)
class Size:
    """Numbers of parameters. experts: those of routed experts, a part of `parameters`; None: not known."""

    parameters: float
    experts: float | None = 0.0


def model_size(shape: Mapping[str, Value]) -> Size | None:
    """Size of a decoder with these flags; None when they do not say.

    Right to some percent for grouped and for latent attention (Megatron-LM core/transformer); what a few models have
    besides (linear attention, layers that predict further tokens, a vision tower) is left out.
    """
    layers, hidden, vocabulary = (number(shape, name) for name in ("num-layers", "hidden-size", "vocab-size"))
    if not layers or not hidden or not vocabulary:
        return None
    wide = (3 if shape.get("swiglu") else 2) * hidden
    sparse = expert_layers(shape, layers)
    one = wide * (number(shape, "moe-ffn-hidden-size") or number(shape, "ffn-hidden-size") or 4 * hidden)
    experts = sparse * one * (number(shape, "num-experts") or 0)
    shared = sparse * wide * (number(shape, "moe-shared-expert-intermediate-size") or 0)
    dense = (layers - sparse) * wide * (number(shape, "ffn-hidden-size") or 4 * hidden)
    tables = 2 if shape.get("untie-embeddings-and-output-weights") else 1
    rest = layers * _attention(shape, hidden) + dense + shared + tables * vocabulary * hidden
    return Size(rest + experts, experts)


def expert_layers(shape: Mapping[str, Value], layers: float) -> float:
    """In how many of the layers the experts are: --moe-layer-freq, a number or a pattern such as [0]*3+[1]*58.

    A pattern that cannot be read counts as every layer, Megatron's default.
    """
    if not number(shape, "num-experts"):
        return 0
    every: Any = shape.get("moe-layer-freq", 1)
    if isinstance(every, int) and every > 0:
        return -(-layers // every)
    try:
        pattern = _pattern(ast.parse(str(every), mode="eval").body)
    except (SyntaxError, ValueError):
        return layers
    return float(sum(map(bool, pattern))) if isinstance(pattern, list) else layers


def number(flags: Mapping[str, Value], name: str) -> float | None:
    """A flag's value where it is a number."""
    value: Any = flags.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _attention(shape: Mapping[str, Value], hidden: float) -> float:
    """Parameters of one layer's attention."""
    heads = number(shape, "num-attention-heads") or 1
    if shape.get("multi-latent-attention"):
        key, turned = number(shape, "qk-head-dim") or 128, number(shape, "qk-pos-emb-head-dim") or 64
        value, narrow = number(shape, "v-head-dim") or 128, number(shape, "kv-lora-rank") or 32
        rank, width = number(shape, "q-lora-rank"), heads * (key + turned)
        query = rank * (hidden + width) if rank else hidden * width
        return query + hidden * (narrow + turned) + narrow * heads * (key + value) + heads * value * hidden
    head_dim = number(shape, "kv-channels") or hidden / heads
    groups = (number(shape, "num-query-groups") if shape.get("group-query-attention") else None) or heads
    return 2 * hidden * heads * head_dim + 2 * hidden * groups * head_dim


def _pattern(node: ast.expr) -> Any:
    """Numbers, lists, + and * of a layer pattern. ValueError (or SyntaxError): it has something else in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.List):
        return [_pattern(one) for one in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
        left, right = _pattern(node.left), _pattern(node.right)
        lists = isinstance(left, list) + isinstance(right, list)
        if lists == (2 if isinstance(node.op, ast.Add) else 1):
            return left + right if isinstance(node.op, ast.Add) else left * right
    raise ValueError(ast.dump(node))
