"""A trainer command of the user's own: where it starts, and what its scripts on the pod may not do."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.errors import UserError
from plugins.slime.launch import HOME
from tasks.stage_attempt import TrainerFailed
from tasks.train_stage import train_stage
from tests.tasks.test_train_stage import Bench, ScriptedJobs, Start


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def attempt(bench: Bench, command: str, slime_dir: Path) -> Path:
    """The folder that the command is started in."""
    folders: list[Path] = []

    class Jobs(ScriptedJobs):
        def submit(self, submission_id: str, argv, env, cwd: Path, log: Path) -> None:
            folders.append(cwd)
            super().submit(submission_id, argv, env, cwd, log)

    def trainer(start: Start) -> None:
        start.save(7)

    trainer_section = {"kind": "command", "slime_dir": str(slime_dir)}
    train_stage(bench.stage(trainer=trainer_section, section={"command": command}), Jobs(trainer))
    return folders[0]


def test_a_command_starts_in_slimes_folder_where_there_is_one(bench: Bench, tmp_path: Path) -> None:
    assert attempt(bench, "python3 train.py", tmp_path / "none") == HOME
    (tmp_path / "other").mkdir()
    (tmp_path / "slime").mkdir()
    assert attempt(Bench(tmp_path / "other"), "python3 train.py", tmp_path / "slime") == tmp_path / "slime"


def test_a_script_on_the_pod_that_goes_past_the_stand_ins_is_not_started(bench: Bench, tmp_path: Path) -> None:
    slime = tmp_path / "slime"
    (slime / "scripts").mkdir(parents=True)
    (slime / "scripts/run.sh").write_text("/usr/bin/pkill -9 python\npython3 train.py\n")
    with pytest.raises(UserError, match=r"scripts/run\.sh: `/usr/bin/pkill` \(line 1\): write the bare name"):
        attempt(bench, "bash scripts/run.sh", slime)


class ProcessJobs(ScriptedJobs):
    """Runs the command line as a process, to its end, in `submit`."""

    def submit(self, submission_id: str, argv, env, cwd: Path, log: Path) -> None:
        self.known.add(submission_id)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            done = subprocess.run(
                argv, cwd=cwd, env={**os.environ, **env}, stdout=out, stderr=out, timeout=120, check=False
            )
        self.last = "FAILED" if done.returncode else "SUCCEEDED"


OLD_SCRIPT = f"""
pkill -9 python
set -ex
ray stop --force
ray start --head --num-gpus 8
ray job submit --address=http://127.0.0.1:8265 --runtime-env-json='{{"env_vars": {{"TO": "7"}}}}' -- \\
    {shlex.quote(sys.executable)} train.py --save "${{SAVE:-$RELAY_OUTPUT_DIR}}" --save-interval 4
"""
OLD_TRAINER = f"""
import os, sys
from pathlib import Path

sys.path.insert(0, {str(HOME)!r})
from tests.plugins.checkpoints.conftest import Trainer

flags = sys.argv[1:]
print("from", repr(os.environ["RELAY_RESUME_FROM"]), os.environ["RELAY_TRAIN_MODE"], *flags[4:], flush=True)
trainer, last = Trainer(Path(flags[len(flags) - flags[::-1].index("--save")])), int(os.environ["TO"])
for iteration in range(3, last + 1, 4):
    if iteration == 7 and not os.environ["RELAY_RESUME_FROM"]:
        sys.exit(9)
    trainer.save(iteration)
"""


@pytest.mark.parametrize("save", ["", "/nowhere/of/the/scripts/own"])
def test_an_old_command_trains_to_its_end_over_a_loss_with_the_old_names(tmp_path: Path, save: str) -> None:
    bench, slime = Bench(tmp_path), tmp_path / "slime"
    slime.mkdir()
    (slime / "run.sh").write_text(OLD_SCRIPT)
    (slime / "train.py").write_text(OLD_TRAINER)
    changes = {
        "trainer": {"kind": "command", "slime_dir": str(slime)},
        "section": {"command": "bash run.sh"},
        "env": {"SAVE": save} if save else {},
    }
    with pytest.raises(TrainerFailed, match=r"exit code 1"):
        train_stage(bench.stage(**changes), ProcessJobs(lambda start: None))
    assert bench.stored() == [3]
    stage = bench.stage(2, root=tmp_path / "second-pod", **changes)
    heard: list[str] = []
    stage.trainer_log = heard.append
    result = train_stage(stage, ProcessJobs(lambda start: None))
    assert (result.outcome, result.resumed_from, result.last_iteration) == ("completed", 3, 7)
    folders = f" --save {stage.save_dir} --load {stage.save_dir}" if save else f" --load {stage.save_dir}"
    assert f"from '{stage.save_dir}' sft{folders}" in heard
    skipped = [line for line in heard if line.startswith("trainstack: ") and "not run" in line]
    assert [line.split(": ")[1] for line in skipped] == ["pkill -9 python", "ray stop", "ray start"]
