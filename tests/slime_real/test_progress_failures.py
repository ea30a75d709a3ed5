"""Failures of slime's, Megatron's and transformers' own code get the names they have in `plugins.slime.causes`.

Needs checkouts: SLIME=... MEGATRON=... pytest -m slime
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.slime.diagnose import diagnose
from tests.slime_real import MEGATRON, ROOT, SLIME, environment, needs_slime
from tests.slime_real.fail import FAILURES

pytestmark = needs_slime
NAMES = [failure.__name__.replace("_", "-") for failure in FAILURES]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.slime_real.fail", str(tmp_path_factory.mktemp("failed"))],
        env=os.environ | environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parts = [part.split("\n") for part in done.stdout.split("=== ")[1:]]
    return {first: lines for first, *lines in parts}


@pytest.mark.parametrize("name", NAMES)
def test_a_failure_of_the_real_code_is_known(name: str, said: dict[str, list[str]]) -> None:
    found = diagnose(said[name])
    assert found is not None and found.name == name, "\n".join(said[name])


@pytest.mark.parametrize("name", NAMES)
def test_it_is_known_as_well_when_an_actor_says_it(name: str, said: dict[str, list[str]]) -> None:
    found = diagnose([f"(MegatronTrainRayActor pid=7, ip=10.0.0.7) {line}" for line in said[name]])
    assert found is not None and found.name == name


@pytest.mark.parametrize(
    ("root", "file", "words"),
    [
        (
            SLIME,
            "slime/backends/sglang_utils/sglang_engine.py",
            'raise Exception("Server process terminated unexpected',
        ),
        (
            SLIME,
            "slime/ray/placement_group.py",
            'f"Waiting for placement group of {num_gpus} GPUs (elapsed {elapsed}s): "',
        ),
        (SLIME, "slime/utils/http_utils.py", "retrying... (attempt {retry_count}/{max_retries}, url={url}"),
        (
            SLIME,
            "slime/backends/sglang_utils/server_control.py",
            'logger.info(f"Abort request for SGLang server {url}")',
        ),
        (SLIME, "slime/backends/sglang_utils/sglang_engine.py", "is not valid under CUDA_VISIBLE_DEVICES"),
        (SLIME, "slime/utils/dp_schedule.py", 'f"num_rollouts ({len(rollout_ids)}) < global_batch_size'),
        (SLIME, "train_async.py", "Colocation is not supported for async training"),
        (MEGATRON, "megatron/training/checkpointing.py", '"(TP, PP) mismatch after resume ({} vs {} from checkpoint)"'),
        (MEGATRON, "megatron/training/checkpointing.py", "Unable to load optimizer from checkpoint"),
        (MEGATRON, "megatron/training/arguments.py", "Using tensor model parallelism or context parallelism require"),
        (MEGATRON, "megatron/training/arguments.py", "is not divisible by total_model_size"),
    ],
)
def test_words_that_only_a_gpu_machine_says_stand_in_the_source(root: Path, file: str, words: str) -> None:
    assert words in (root / file).read_text()
