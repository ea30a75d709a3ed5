"""Sizes of the tiny model: from Megatron's flags, or from the `config.json` of the start weights, and into a new
`config.json`.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict, dataclass
from typing import Any

from plugins.errors import UserError
from plugins.tinyslime import tokenizer


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model. The defaults train some 20,000 tokens a second on one CPU core."""

    num_layers: int = 2
    hidden_size: int = 128
    ffn_hidden_size: int = 352
    num_attention_heads: int = 4
    num_query_groups: int = 4
    max_position_embeddings: int = 2048
    vocab_size: int = tokenizer.VOCAB_SIZE
    rotary_base: float = 10000.0
    norm_epsilon: float = 1e-5
    tie: bool = True

    def __post_init__(self) -> None:
        heads, groups = self.num_attention_heads, self.num_query_groups
        if self.hidden_size % heads or (self.hidden_size // heads) % 2:
            raise UserError(
                f"--hidden-size {self.hidden_size} must be an even multiple of --num-attention-heads {heads}"
            )
        if heads % groups:
            raise UserError(f"--num-attention-heads {heads} must be a multiple of --num-query-groups {groups}")
        if self.vocab_size < tokenizer.VOCAB_SIZE:
            raise UserError(
                f"--vocab-size {self.vocab_size} is less than the {tokenizer.VOCAB_SIZE} tokens of the byte tokenizer"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_args(cls, args: Namespace, hf: dict[str, Any] | None = None) -> ModelConfig:
        """Sizes of a run: those of the folder of start weights (`config.json` as `hf`), or the flags over the defaults.

        Raises UserError when a flag and the folder disagree (slime checks the same before it trains).
        """
        given = {name: value for name in asdict(cls()) if (value := getattr(args, name, None)) is not None}
        if hf is not None:
            sizes = from_hf(hf)
            wrong = [name for name, value in given.items() if getattr(sizes, name) != value]
            if wrong:
                said = ", ".join(f"--{n.replace('_', '-')} {given[n]} (folder: {getattr(sizes, n)})" for n in wrong)
                raise UserError(f"model flags do not match config.json of the start weights: {said}")
            return sizes
        if not args.group_query_attention:
            given["num_query_groups"] = given.get("num_attention_heads", cls.num_attention_heads)
        return cls(**given, tie=not args.untie_embeddings_and_output_weights)

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that makes `transformers` build the same model."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.ffn_hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_query_groups,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.norm_epsilon,
            "rope_theta": self.rotary_base,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rotary_base},
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": self.tie,
            "torch_dtype": "float32",
            "bos_token_id": None,
            "eos_token_id": [tokenizer.IM_END, tokenizer.END_OF_TEXT],
            "pad_token_id": tokenizer.END_OF_TEXT,
        }


def from_hf(hf: dict[str, Any]) -> ModelConfig:
    """Sizes named by a `config.json`; raises UserError for a model that is not one of ours."""
    try:
        if hf["model_type"] != "llama":
            raise UserError(
                f"tinyslime reads folders it exported itself (model_type llama), this one is {hf['model_type']!r}"
            )
        return ModelConfig(
            num_layers=hf["num_hidden_layers"],
            hidden_size=hf["hidden_size"],
            ffn_hidden_size=hf["intermediate_size"],
            num_attention_heads=hf["num_attention_heads"],
            num_query_groups=hf["num_key_value_heads"],
            max_position_embeddings=hf["max_position_embeddings"],
            vocab_size=hf["vocab_size"],
            rotary_base=hf["rope_theta"],
            norm_epsilon=hf["rms_norm_eps"],
            tie=hf["tie_word_embeddings"],
        )
    except KeyError as error:
        raise UserError(
            f"config.json of the start weights lacks {error}: give a folder that tinyslime exported"
        ) from error
