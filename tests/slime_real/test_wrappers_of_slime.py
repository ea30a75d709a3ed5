"""`python train.py ...` beside a real checkout of slime: its own help, its own refusal, nothing of ours in between."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slime_real import ROOT, SLIME, environment, needs_slime

pytestmark = needs_slime


@pytest.mark.parametrize("script", ["train.py", "train_async.py"])
def test_the_wrapper_becomes_slimes_script(script: str, tmp_path: Path) -> None:
    for name in ("train.py", "train_async.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "slime").symlink_to(SLIME.resolve())
    done = subprocess.run(
        [sys.executable, str(tmp_path / script), "--help"],
        env=os.environ | environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--rollout-batch-size" in done.stdout and "--tensor-model-parallel-size" in done.stdout
