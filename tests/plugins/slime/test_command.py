"""Which commands of a user can run under a stage, and what is said about the others."""

import os
import subprocess
from pathlib import Path

import pytest

from plugins.errors import UserError
from plugins.slime.command import check_command, check_scripts
from plugins.slime.launch import TrainerSpec, build

SLIME = os.environ.get("SLIME", "")
needs_slime = pytest.mark.skipif(
    not SLIME or not (Path(SLIME) / "scripts/run-qwen3-4B.sh").is_file(),
    reason="SLIME names no checkout of upstream slime",
)
GOOD = """
source scripts/models/tiny.sh  # not: pkill -9 python
python3 train.py ${MODEL_ARGS[@]} --save "$RELAY_OUTPUT_DIR" --load "$RELAY_RESUME_FROM"
"""


OLD = "pkill -9 ray; ray stop --force\nray start --head\nray job submit --address=x -- python3 train.py"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sleep 3\n/usr/bin/pkill -9 ray", "/usr/bin/pkill` (line 2)"),
        ("/opt/venv/bin/ray stop --force", "/opt/venv/bin/ray stop"),
        ('"$VENV"/bin/ray stop', "/bin/ray stop"),
        ("$HOME/venv/bin/ray --log-style record start --head", "start"),
        ("cd x && ~/bin/ray   job \\\n submit -- python3 train.py", "~/bin/ray job submit"),
        ("python3 -m ray.scripts.scripts stop", "ray.scripts.scripts stop"),
        ("sudo pkill -9 python", "sudo pkill"),
        ("sudo -E ray stop", "sudo -E ray stop"),
        ("sudo reboot", "sudo reboot"),
        ("/sbin/shutdown now", "/sbin/shutdown"),
        ("kill -9 -1", "kill -9 -1"),
        ("bash -c 'kill -KILL -1'", "kill -KILL -1"),
        ("ps aux | grep python | awk '{print $2}' | xargs -r kill -9", "xargs -r kill"),
        ("kill -9 $(pgrep -f sglang)", "kill -9 $(pgrep"),
        ("kill `pidof python3`", "kill `pidof"),
    ],
)
def test_what_goes_past_the_stand_ins_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        check_command(text)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        OLD,
        "# /usr/bin/pkill -9 ray\npython3 train.py",
        "python3 train.py --save /data/pkill/x --name ray-start --bin /bin/ray",
        "kill $WATCHER_PID; kill $(jobs -p); kill -1 $SERVER; kill -1 1234; python3 train.py",
        "/opt/bin/ray status; python3 ray_start.py --stop; command pkill python",
        "RAY_stop=1 python3 train_async.py --eval-interval 20",
        "killall python3 || true; fuser -k /dev/nvidia0; shutdown now",
    ],
)
def test_other_commands_are_taken(text: str) -> None:
    check_command(text)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(UserError) as refused:
        check_command("/bin/pkill -9 ray\n/a/bin/ray start --head\nkill -9 -1", "rl.command")
    named = [line.split("`")[1] for line in str(refused.value).splitlines()]
    assert named == ["/bin/pkill", "/a/bin/ray start", "kill -9 -1"]
    assert str(refused.value).count("rl.command: ") == 3


def test_scripts_that_a_command_runs_are_looked_into_on_the_pod(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/bash\nsource inner.sh\n")
    (tmp_path / "inner.sh").write_text("/usr/bin/pkill -9 python\n")
    for command in ("cd /x; bash run.sh", ["bash", "-c", "bash run.sh && true"], ["bash", "run.sh"]):
        with pytest.raises(UserError, match=r"inner\.sh: `/usr/bin/pkill`"):
            check_scripts(command, tmp_path)
    (tmp_path / "inner.sh").write_text("source run.sh\npython3 train.py\n")
    check_scripts("bash run.sh; cd /x && bash elsewhere.sh", tmp_path)
    for command in ("bash run.sh; bash missing.sh", "/no/such/missing.sh --fast", "cd /x; bash /no/such/missing.sh"):
        with pytest.raises(UserError, match=r"no script \S*missing\.sh on the pod"):
            check_scripts(command, tmp_path)
    check_scripts('echo "no partner', tmp_path)


def run(command: str, slime: Path, tmp_path: Path) -> str:
    """Start a command as the stage does (`RayJobs.submit`), without Ray."""
    spec = TrainerSpec(
        kind="command",
        stage="rl",
        run_id="r",
        attempt=2,
        save_dir=tmp_path / "rl/save",
        load_dir=tmp_path / "rl/save",
        init_dir=tmp_path / "hf",
        rollout_dir=tmp_path / "rollouts",
        command=["bash", "-c", command],
        slime_dir=slime,
    )
    launch = build(spec)
    env = {"PATH": os.environ["PATH"], **launch.env}
    done = subprocess.run(launch.argv, cwd=launch.cwd, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_command_from_slimes_scripts_runs_with_the_old_names(tmp_path: Path) -> None:
    slime = tmp_path / "slime"
    (slime / "scripts/models").mkdir(parents=True)
    (slime / "scripts/models/tiny.sh").write_text('MODEL_ARGS=(--num-layers 2 --norm "RMS")\n')
    (slime / "train.py").write_text("import sys; print(*sys.argv[1:])\n")
    check_command(GOOD)
    assert run(GOOD, slime, tmp_path).split() == [
        *("--num-layers", "2", "--norm", "RMS"),
        *("--save", f"{tmp_path}/rl/save", "--load", f"{tmp_path}/rl/save"),
    ]


@pytest.mark.slime
@needs_slime
def test_slimes_own_scripts_are_taken_as_they_are(tmp_path: Path) -> None:
    scripts = sorted(Path(SLIME).glob("scripts/run-*.sh"))
    assert len(scripts) > 10
    for script in scripts:
        check_scripts(f"bash {script}", tmp_path)


@pytest.mark.slime
@needs_slime
def test_what_is_left_of_slimes_script_gives_train_its_arguments(tmp_path: Path) -> None:
    """The arrays and the last line of scripts/run-qwen3-4B.sh, with what owns the machine left out."""
    text = (Path(SLIME) / "scripts/run-qwen3-4B.sh").read_text()
    arrays = text[text.index("CKPT_ARGS=(") : text.index("# launch the master node")]
    flags = text[text.index("-- python3 train.py") :].removeprefix("-- python3 train.py").replace("${NUM_GPUS}", "1")
    command = f"source scripts/models/qwen3-4B.sh\n{arrays}\npython3 {tmp_path}/show.py{flags}"
    (tmp_path / "show.py").write_text("import sys; print(*sys.argv[1:])\n")
    check_command(command)
    said = run(command, Path(SLIME), tmp_path)
    assert (
        "--num-layers 36" in said and "--hf-checkpoint /root/Qwen3-4B" in said and "--advantage-estimator grpo" in said
    )
