"""The weights a training starts from: where a recipe says they are, which files these are, and whether they fit.

A base model is a folder on the pod or a repository of the Hugging Face Hub. Fetching it is wired in
`tasks/stage_weights.py`; turning it into Megatron's format, where slime cannot read it as it is, stands in `convert`.

    <root>/models/<user>--<name>@<commit>/                the repository at that commit, shared by all stages of the pod
                  <user>--<name>@<commit>.torch_dist/     the same, converted
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from plugins.slime.export import INDEX, SINGLE, shards_of, text_config
from plugins.slime.flags import Value

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REVISION = r"[A-Za-z0-9_](?:[A-Za-z0-9._/-]{0,98}[A-Za-z0-9_])?"
_MODEL = re.compile(rf"({_NAME}/{_NAME})(?:@({_REVISION}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SUFFIXES = (".json", ".txt", ".model", ".tiktoken", ".jinja", ".py")
_DTYPE_BITS = re.compile(r"(?:bfloat|float|int|uint)(\d+)")
MOE_KEYS = ("moe_intermediate_size", "num_experts", "n_routed_experts", "num_local_experts")
PAIRS = (
    ("hidden_size", "hidden-size"),
    ("num_attention_heads", "num-attention-heads"),
    ("num_hidden_layers", "num-layers"),
    ("intermediate_size", "ffn-hidden-size"),
    ("moe_intermediate_size", "moe-ffn-hidden-size"),
    ("shared_expert_intermediate_size", "moe-shared-expert-intermediate-size"),
    ("rms_norm_eps", "norm-epsilon"),
    ("rms_norm_eps", "layernorm-epsilon"),
)
"""Keys of config.json and the flags that must say the same: slime refuses a difference when the trainer starts
(slime/backends/megatron_utils/arguments.py _hf_validate_args at v0.3.1), its conversion tool does not look."""
MEGATRON_DEFAULTS: dict[str, Value] = {"rotary-base": 10_000, "norm-epsilon": 1e-5}
UNTIE = "untie-embeddings-and-output-weights"


@dataclass(frozen=True)
class Weights:
    """What a training starts from.

    hf_checkpoint: Hugging Face folder, for config, tokenizer and exports; ref_load: the weights themselves, the same
    folder or a converted one; origin: where they come from, for people: `user/name@commit`, a folder, a checkpoint.
    """

    hf_checkpoint: Path
    ref_load: Path
    origin: str


@dataclass(frozen=True)
class HubModel:
    """A model repository, and the branch, tag or commit the recipe names (None: its newest)."""

    repo: str
    revision: str | None = None

    def at(self, commit: str) -> str:
        """How a commit of it is written in a lineage: `user/name@commit`."""
        return f"{self.repo}@{commit}"

    def folder_name(self, commit: str) -> str:
        """Name of its folder under `models`."""
        return self.at(commit).replace("/", "--")


def base_of(text: str) -> Path | HubModel:
    """Read a recipe's `model.hf_checkpoint`: an absolute path on the pod, or `user/name[@revision]` of the Hub.

    Raises UserError for anything else; a relative path of two parts cannot be told from a repository and is one.
    """
    text = text.strip()
    if text.startswith("/"):
        return Path(text)
    match = _MODEL.fullmatch(text)
    if match is None or ".." in text or "--" in match[1] or match[1].endswith(".git"):
        raise UserError(
            f"model.hf_checkpoint {text!r}: is neither an absolute path on the pod nor a model of the Hub; write "
            "/root/models/..., user/name or user/name@revision"
        )
    return HubModel(match[1], match[2])


def repo_of(text: str | None) -> str | None:
    """A base model's id on the Hub without the revision; a folder is left as it is."""
    return text if text is None or text.startswith("/") else text.partition("@")[0]


def pinned(lineage: Mapping[str, Any], model: HubModel) -> str | None:
    """The commit of this model that a lineage names under `base_model`; None when it names none, or another model."""
    repo, _, commit = str(lineage.get("base_model") or "").rpartition("@")
    return commit if repo == model.repo and is_commit(commit) else None


def is_commit(text: str | None) -> bool:
    """Whether a revision is the full name of a commit, which never changes."""
    return text is not None and _COMMIT.fullmatch(text) is not None


def needed_files(names: Iterable[str], index: Path | None) -> list[str]:
    """Which files in the top folder of a repository are fetched: safetensors, config, tokenizer and their code.

    index: the repository's model.safetensors.index.json, None when it has none. Copies of the weights in other formats
    are left where they are. Raises UserError when there are no weights in safetensors; TornCheckpoint for a bad index.
    """
    there = set(names)
    shards = set(shards_of(index)) if index else {SINGLE}
    if missing := sorted(shards - there):
        raise UserError(
            f"the repository has no {missing[0]}"
            + (f", which its {INDEX} names" if index else ": slime needs weights in safetensors")
        )
    small = {name for name in there if "/" not in name and name.endswith(_SUFFIXES) and not name.startswith(".")}
    return sorted(small | shards)


def parameters_in(config: Mapping[str, Any], weights_bytes: int) -> int:
    """About how many parameters weights of so many bytes are; the type is the config's, else of 2 bytes."""
    named = text_config(dict(config)).get("dtype") or config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    bits = 8 if config.get("quantization_config") else int(m[1]) if (m := _DTYPE_BITS.fullmatch(str(named))) else 16
    return weights_bytes * 8 // bits


def misfits(config: Mapping[str, Any], flags: Mapping[str, Value], *, whole: bool) -> list[str]:
    """Where a model's config.json and the trainer's flags contradict each other, in words. What one leaves open fits.

    flags: without dashes, numbers as numbers (`flags.parse_argv`). whole: these are all flags of the architecture, so
    what is not among them has Megatron's default.
    """
    inner = text_config(dict(config))
    flags = {**(MEGATRON_DEFAULTS if whole else {}), **flags}
    wrong = [
        _said(key, inner[key], flag, flags[flag])
        for key, flag in PAIRS
        if inner.get(key) is not None and flags.get(flag) is not None and not _same(inner[key], flags[flag])
        if flag != "ffn-hidden-size" or not _all_experts(inner, flags)
    ]
    tied = inner.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if tied is not None and (whole or UNTIE in flags) and bool(flags.get(UNTIE)) == bool(tied):
        wrong.append(_said("tie_word_embeddings", tied, UNTIE, bool(flags.get(UNTIE))))
    base, given = _rope_theta(inner), flags.get("rotary-base")
    if base is not None and given is not None and not _same(base, given):
        wrong.append(_said("rope_theta", base, "rotary-base", given))
    return wrong


def _said(key: str, there: object, flag: str, here: object) -> str:
    return f"{key} is {there} in the model's config.json, --{flag} is {here}"


def _same(there: object, here: object) -> bool:
    try:
        return float(str(there)) == float(str(here))
    except ValueError:
        return there == here


def _all_experts(config: Mapping[str, Any], flags: Mapping[str, Value]) -> bool:
    """Whether every layer is one of experts, so that nothing has the dense size; unknown counts as yes."""
    if not any(key in config for key in MOE_KEYS):
        return False
    frequency = str(flags.get("moe-layer-freq", ""))
    return "0" not in re.split(r"[^0-9]+", frequency)


def _rope_theta(config: Mapping[str, Any]) -> object:
    """Newer configs keep it one level down."""
    inner = config.get("rope_parameters")
    return inner["rope_theta"] if isinstance(inner, dict) and "rope_theta" in inner else config.get("rope_theta")
