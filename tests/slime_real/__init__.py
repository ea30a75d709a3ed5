"""slime's and Megatron's own parsers and validation, run on this machine without a GPU.

    SLIME=<checkout of slime v0.3.1> MEGATRON=<checkout of the Megatron-LM it pins> pytest -m slime tests/slime_real

`stubs/` stands in for what needs CUDA (SGLang, its router) or is only imported (W&B): everything else is the real
code, Megatron with the patch that slime's image puts on it (it adds flags that some models need). `validate` goes
through slime's own train script up to the place where it asks Ray for GPUs.
"""

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUBS = Path(__file__).parent / "stubs"
SLIME = Path(os.environ.get("SLIME") or "absent")
MEGATRON = Path(os.environ.get("MEGATRON") or "absent")

needs_slime = [
    pytest.mark.slime,
    pytest.mark.skipif(
        not (SLIME / "slime/utils/arguments.py").is_file()
        or not (MEGATRON / "megatron/training/arguments.py").is_file(),
        reason="SLIME and MEGATRON name no checkouts of upstream slime and Megatron-LM",
    ),
]
"""For `pytestmark` of a module with tests that need both checkouts."""

HF_CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3-4B": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "qwen3-14B": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
}
"""Sizes of the published models by the name of their file in slime's `scripts/models`."""

_SHARED = {
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}


def hf_folder(folder: Path, model: str, **changes: Any) -> Path:
    """A Hugging Face folder with the model's real config.json and no weights, as far as parsing looks at it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**_SHARED, **HF_CONFIGS[model], **changes}))
    return folder


@functools.cache
def patched_megatron() -> Path:
    """A copy of Megatron's package with slime's patch (docker/Dockerfile applies it), until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="megatron-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(MEGATRON / "megatron", folder / "megatron", ignore=shutil.ignore_patterns("__pycache__"))
    patch = (SLIME / "docker/patch/latest/megatron.patch").resolve()
    alone = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}  # no repository around it is meant
    already = subprocess.run(["git", "apply", "-R", "--check", patch], cwd=folder, env=alone, capture_output=True)
    if already.returncode != 0:
        subprocess.run(["git", "apply", patch], cwd=folder, env=alone, check=True)
    return folder


def environment() -> dict[str, str]:
    """Additions to the environment under which slime's parsers run here, Megatron first as on a pod."""
    path = os.pathsep.join(map(str, (patched_megatron(), STUBS, ROOT, SLIME.resolve())))
    return {"PYTHONPATH": path, "CUDA_DEVICE_MAX_CONNECTIONS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(script: Path, argv: Sequence[str]) -> dict[str, Any]:
    """Run one of the scripts beside this file among slime's code; its answer is the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, str(script), *argv],
        cwd=SLIME,
        env=os.environ | environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{script.name} ended with {done.returncode}: {done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def validate(argv: list[str], script: Literal["train.py", "train_async.py"] = "train.py") -> dict[str, Any]:
    """What slime makes of the arguments of its train script: the attributes after all validation that JSON can hold,
    and under "gpus" how many it then asks Ray for.

    Raises AssertionError when slime or Megatron asserts, RuntimeError for all else they refuse with, in their words.
    """
    answer = run(Path(__file__).with_name("reach.py"), [script, *argv])
    if "refused" in answer:
        kind = AssertionError if answer["refused"] == "AssertionError" else RuntimeError
        raise kind(f"{answer['refused']}: {answer['message']}")
    args: dict[str, Any] = answer["args"]
    return args
