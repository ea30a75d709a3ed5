"""The models that slime brings arguments for, and their shapes: what checks need on a machine without slime.

`models.tsv`, beside this file, has a line for each file of slime's scripts/models at v0.3.1 with those of its flags
that checks look at (`tests/slime_real/make_model_table.py` writes it). A stage gets all arguments, read from slime
itself on the pod (`flags.model_args`).
"""

import difflib
import functools
from collections.abc import Mapping
from pathlib import Path

from plugins.errors import UserError
from plugins.slime.flags import Value, parse_argv

TABLE = Path(__file__).with_name("models.tsv")
SHAPE_FLAGS = (
    "num-layers",
    "hidden-size",
    "ffn-hidden-size",
    "num-attention-heads",
    "group-query-attention",
    "num-query-groups",
    "kv-channels",
    "vocab-size",
    "swiglu",
    "untie-embeddings-and-output-weights",
    "num-experts",
    "moe-ffn-hidden-size",
    "moe-shared-expert-intermediate-size",
    "moe-layer-freq",
    "multi-latent-attention",
    "q-lora-rank",
    "kv-lora-rank",
    "qk-head-dim",
    "qk-pos-emb-head-dim",
    "v-head-dim",
)
"""Flags of a model's architecture that decide its size and what parallel sizes it takes."""


@functools.cache
def shapes() -> Mapping[str, Mapping[str, Value]]:
    """Name of each model to its SHAPE_FLAGS, as far as slime sets them."""
    lines = (line for line in TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    rows = (line.partition("\t") for line in lines)
    return {name: parse_argv(flags.split()) for name, _, flags in rows}


def shape_of_model(name: str | None) -> Mapping[str, Value]:
    """SHAPE_FLAGS of a model of slime, empty for a name that it does not have."""
    return shapes().get(name or "", {})


def check_model_name(name: str) -> None:
    """Raise UserError, with the near ones, for a name that slime does not have."""
    if name not in shapes():
        near = difflib.get_close_matches(name, shapes(), n=3, cutoff=0.5)
        said = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(shapes())}"
        raise UserError(f"model.name: slime has no arguments for {name!r}; {said}")
