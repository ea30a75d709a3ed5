"""A trainer command of the user's own: where it starts, and what its scripts on the pod may not do."""

from pathlib import Path

import pytest

from plugins.errors import UserError
from plugins.slime.launch import HOME
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


def test_a_script_on_the_pod_that_would_end_the_pods_services_is_not_started(bench: Bench, tmp_path: Path) -> None:
    slime = tmp_path / "slime"
    (slime / "scripts").mkdir(parents=True)
    (slime / "scripts/run.sh").write_text("pkill -9 python\npython3 train.py\n")
    with pytest.raises(UserError, match=r"scripts/run\.sh: `pkill` \(line 1\): ends the pod's own worker"):
        attempt(bench, "bash scripts/run.sh", slime)
