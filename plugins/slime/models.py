"""Names of the models that slime brings arguments for: the files of its scripts/models at v0.3.1, without `.sh`.

The arguments themselves are read from slime on the pod (`flags.model_args`); a machine without slime can still tell a
misspelt name.
"""

import difflib

from plugins.errors import UserError

MODELS = (
    "deepseek-v3",
    "deepseek-v3-20layer",
    "deepseek-v3-5layer",
    "glm4-32B",
    "glm4-9B",
    "glm4.5-106B-A12B",
    "glm4.5-355B-A32B",
    "glm4.7-30B-A3B",
    "glm5-744B-A40B",
    "glm5.2-744B-A40B",
    "kimi-k2",
    "kimi-k2-thinking",
    "llama3.1-8B-Instruct",
    "llama3.2-3B-Instruct",
    "llama3.2-3B-Instruct-amd",
    "mimo-7B-rl",
    "minimax-m2",
    "moonlight",
    "qwen2.5-0.5B",
    "qwen2.5-1.5B",
    "qwen2.5-32B",
    "qwen2.5-3B",
    "qwen2.5-7B",
    "qwen3-0.6B",
    "qwen3-1.7B",
    "qwen3-14B",
    "qwen3-235B-A22B",
    "qwen3-30B-A3B",
    "qwen3-32B",
    "qwen3-4B",
    "qwen3-4B-Instruct-2507",
    "qwen3-8B",
    "qwen3-next-80B-A3B",
    "qwen3.5-0.8B",
    "qwen3.5-27B",
    "qwen3.5-35B-A3B",
    "qwen3.5-35B-A3B-vl",
    "qwen3.5-4B",
    "qwen3.5-9B",
)


def check_model_name(name: str) -> None:
    """Raise UserError, with the near ones, for a name that slime does not have."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.5)
        said = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(MODELS)}"
        raise UserError(f"model.name: slime has no arguments for {name!r}; {said}")
