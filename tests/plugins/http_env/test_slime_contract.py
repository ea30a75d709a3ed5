"""The adapter under slime's own contract test and with slime's own Sample.

Needs a checkout: SLIME=/path/to/slime pytest -m slime
"""

import asyncio
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SLIME = os.environ.get("SLIME", "")
TEST = Path(SLIME).resolve() / "tests/plugin_contracts/test_plugin_generate_contracts.py"

pytestmark = [
    pytest.mark.slime,
    pytest.mark.skipif(not SLIME or not TEST.is_file(), reason="SLIME names no checkout of upstream slime"),
]

# Adds what the contract's stand-in arguments lack, makes its sample an episode of two turns that is aborted once, and
# checks our own promises on what comes back.
PLUGIN = """
import os
from plugins.http_env.adapter import generate as adapter
from plugins.tinyslime.tokenizer import ByteTokenizer

async def generate(args, sample, sampling_params, evaluation=False):
    args.tokenizer, args.rollout_max_response_len, args.rollout_top_p = ByteTokenizer(), 20, 1.0
    args.sglang_router_ip, args.sglang_router_port = "127.0.0.1", int(os.environ["MODEL_PORT"])
    sample.prompt, sample.label = [{"role": "user", "content": "3+4="}], "7"
    sample.metadata = {"attempts": 2}
    sample = await adapter(args, sample, sampling_params, evaluation=evaluation)
    assert sample.status == type(sample).Status.ABORTED and sample.remove_sample, sample
    sample = await adapter(args, sample, sampling_params, evaluation=evaluation)
    assert sample.status == type(sample).Status.COMPLETED and not sample.remove_sample, sample
    assert sample.reward == 1.0 and sample.loss_mask[:2] == [1, 1] and sample.loss_mask[-2:] == [1, 1], sample
    assert 0 in sample.loss_mask and sample.weight_versions == ["1"] * 3, sample
    assert len(sample.loss_mask) == len(sample.rollout_log_probs) == sample.response_length
    return sample
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    """With a stand-in for slime's LaTeX package, which only its maths rewards use, where it is not installed."""
    if importlib.util.find_spec("pylatexenc") is None:
        (folder / "pylatexenc").mkdir()
        (folder / "pylatexenc/__init__.py").write_text("")
        (folder / "pylatexenc/latex2text.py").write_text("")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])} | more


async def contract(path: str, env: dict[str, str]) -> str:
    argv = [str(TEST), "--custom-generate-function-path", path, "-p", "no:cacheprovider"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *argv, cwd=SLIME, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(200):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, out.decode()
    return out.decode()


def test_the_adapter_passes_slimes_contract_with_no_environment_at_all(tmp_path: Path) -> None:
    env = environment(tmp_path, TRAINSTACK_ENV_URL="http://127.0.0.1:9", TRAINSTACK_ENV_PATIENCE_S="0.1")
    assert "4 passed" in asyncio.run(contract("plugins.http_env.adapter.generate", env))


def test_a_whole_episode_with_an_abort_runs_under_slimes_contract_with_slimes_sample(
    world: Any, tmp_path: Path
) -> None:
    (tmp_path / "contract_plugin.py").write_text(PLUGIN)
    end = 258  # <|im_end|> of the byte tokenizer
    replies = [([ord("8"), end], "stop"), ([ord("7")], "abort"), ([end], "stop")]

    async def go() -> str:
        async with world.scene(*replies, limit_s=250) as scene:
            scene.model.meta = {"weight_version": "1", "prompt_tokens": 5, "cached_tokens": 2}
            port, url = str(scene.args.sglang_router_port), scene.args.http_env_url
            env = environment(tmp_path, TRAINSTACK_ENV_URL=url, MODEL_PORT=port)
            out = await contract("contract_plugin.generate", env)
            assert len(scene.model.requests) == 3
            assert len(scene.sessions) == 0
            return out

    assert "4 passed" in asyncio.run(go())
