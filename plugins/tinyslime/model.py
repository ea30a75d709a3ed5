"""The tiny language model: a Llama (RMSNorm, rotary positions, SwiGLU, grouped heads) whose parameters carry the names
that `transformers` gives them, so that an export is the state dict itself.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins.tinyslime.config import ModelConfig


class KVCache:
    """Keys and values of `rows` unfinished texts of at most `width` tokens, for one generation."""

    def __init__(self, config: ModelConfig, rows: int, width: int, dtype: torch.dtype) -> None:
        shape = (config.num_layers, 2, rows, config.num_query_groups, width, config.head_dim)
        self.stored = torch.zeros(shape, dtype=dtype)
        self.positions = torch.zeros(rows, 1, dtype=torch.long)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store [rows, groups, t, d] at `positions` [rows, t]; give back all keys, all values, and which may be seen
        [rows, 1, t, width].
        """
        row = torch.arange(k.shape[0])[:, None]
        for kind, new in enumerate((k, v)):
            self.stored[layer, kind].transpose(1, 2)[row, self.positions] = new.transpose(1, 2)
        seen = torch.arange(self.stored.shape[-2]) <= self.positions[:, None, :, None]
        return self.stored[layer, 0], self.stored[layer, 1], seen


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon))


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key and value heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        kv_size = config.num_query_groups * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        """[rows, t, hidden] -> [rows, t, hidden]."""
        rows, length, _ = x.shape
        q, k, v = (
            p(x).view(rows, length, -1, self.config.head_dim).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k, seen = _rotate(q, rope), _rotate(k, rope), None
        if cache is not None:
            k, v, seen = cache.extend(self.layer, k, v)
        repeat = self.config.num_attention_heads // self.config.num_query_groups
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
        joined: Tensor = self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))
        return joined


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_hidden_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_hidden_size, bias=False)
        self.down_proj = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One block: attention, then the MLP, each on the normed stream and added to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        """[rows, t, hidden] -> [rows, t, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x), rope, cache)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Trunk(nn.Module):
    """Everything below the output head; its name in the state dict is `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_epsilon)


class TinyLlama(nn.Module):
    """The whole model. `hidden` and `logits` are apart because only trained positions need logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                narrow = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.num_layers) if narrow else 0.02)
        if config.tie:
            self.lm_head.weight = self.model.embed_tokens.weight

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Tokens [rows, t] -> states [rows, t, hidden]; with a cache, the tokens stand at `cache.positions`."""
        x = self.model.embed_tokens(ids)
        positions = torch.arange(ids.shape[1])[None] if cache is None else cache.positions
        rope = _rope(positions, self.config, x.dtype)
        for layer in self.model.layers:
            x = layer(x, rope, cache)
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, states: Tensor) -> Tensor:
        """States [..., hidden] -> logits [..., vocab]."""
        out: Tensor = self.lm_head(states)
        return out


def _rope(positions: Tensor, config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [rows, 1, t, head_dim] of rotary positions, computed in float32 as `transformers` does."""
    exponent = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    angles = positions[:, None, :, None].float() * (1.0 / config.rotary_base**exponent)
    angles = torch.cat((angles, angles), -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * rope[0] + torch.cat((-second, first), -1) * rope[1]
