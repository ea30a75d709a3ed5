"""Logs of Ray's workers hold the last words of actors; bars are read wherever they stand."""

import os
from pathlib import Path

from plugins.slime.diagnose import diagnose
from plugins.slime.progress import bar
from plugins.slime.worker_logs import last_lines

DRAWN = (
    "\rRollout generation:   0%|          | 0/64 [00:00<?, ?it/s]"
    "\rRollout generation:  25%|##5       | 16/64 [00:09<00:28,  1.7it/s]"
)


def write(folder: Path, name: str, text: str, changed: float) -> None:
    (folder / name).write_text(text)
    os.utime(folder / name, (changed, changed))


def test_the_last_words_of_an_actor_are_found_under_its_name(tmp_path: Path) -> None:
    said = ":job_id:01000000\n:actor_name:MegatronTrainRayActor\nTraceback (most recent call last):\n"
    write(
        tmp_path,
        "worker-a-01-7.err",
        f'{said}  File "x.py", line 1, in f\nRuntimeError: No CUDA GPUs are available\n',
        20,
    )
    write(tmp_path, "worker-b-01-8.err", "Traceback (most recent call last):\nKeyError: 'of an older job'\n", 5)
    write(tmp_path, "raylet.err", "MemoryError\n", 20)
    lines = last_lines(tmp_path, since=10)
    assert lines[-1] == "(MegatronTrainRayActor pid=0) RuntimeError: No CUDA GPUs are available"
    assert not any("older job" in line for line in lines)
    assert (found := diagnose(lines)) is not None and found.name == "cuda-start"
    assert last_lines(tmp_path / "gone", since=0) == []


def test_only_a_bar_at_the_very_end_is_one() -> None:
    assert bar(f"(RolloutManager pid=7) {DRAWN}\n") == ("Rollout generation", 16, 64)
    assert bar("Eval aime24:  50%|#####     | 1/2 [00:01<00:01]") == ("Eval aime24", 1, 2)
    assert bar(f"{DRAWN} and text") is None
    assert bar("a sample: 50% | done") is None
