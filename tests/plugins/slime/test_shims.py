"""The stand-ins that let a script which owns its machine run on a pod: what each word does, without Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.slime.launch import HOME, Launch
from plugins.slime.shims import under_shims
from plugins.slime.shims.shim import JOB_CONFIG

SECRET = "hush-hush-9d2c"
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))"


class Bench:
    """Runs commands under the stand-ins, with a `ray` of ours as the real one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "trainer.log"
        self.real, self.shims = folder / "real/bin", folder / "attempt-1/shims"
        self.real.mkdir(parents=True)
        (folder / "show.py").write_text(SHOW)
        self.program(self.real / "ray", 'echo "real ray $*"; exit 5')
        self.program(self.real / "pkill", "echo real pkill")
        (self.real / "python3").symlink_to(sys.executable)

    def program(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
        return path

    def run(self, script: str, *, shell: str = "bash", **env: str) -> int:
        """Run a script as the stage's job does; gives its exit status, `said` gives the log."""
        argv = under_shims(Launch([shell, "-c", script], {}, self.folder, None), self.shims).argv
        job = {"runtime_env": {"env_vars": {"GIVEN": "here"}}, "metadata": {"a": "b"}}
        given = {"PATH": f"{self.real}:/usr/bin:/bin", "RAY_ADDRESS": "127.0.0.1:6379", JOB_CONFIG: json.dumps(job)}
        with self.log.open("ab") as log:
            done = subprocess.run(
                argv,
                cwd=self.folder,
                env={**given, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=60,
                check=False,
            )
        return done.returncode

    @property
    def said(self) -> list[str]:
        return self.log.read_text().splitlines()

    def shown(self) -> tuple[list[str], dict[str, str], dict[str, str], str]:
        """Words, variables, what Ray's workers get, and folder of the program that was submitted."""
        words, env, folder = json.loads(self.said[-1])
        return words, env, json.loads(env[JOB_CONFIG])["runtime_env"]["env_vars"], folder


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("pkill -9 python", "it would end the pod's own worker, Ray and stage"),
        ("killall -9 sglang", "it would end the pod's own worker, Ray and stage"),
        ("skill -9 python", "it would end the pod's own worker, Ray and stage"),
        ("fuser -k /dev/nvidia0", "it would end the pod's own worker, Ray and stage"),
        ("shutdown -h now", "the run gives the pod back itself"),
        ("reboot", "the run gives the pod back itself"),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_word_that_would_end_the_pods_services_is_one_line_in_the_log(
    bench: Bench, words: str, why: str, shell: str
) -> None:
    assert bench.run(f"set -e; {words} > /dev/null 2>&1; echo next", shell=shell) == 0
    assert bench.said == [f"trainstack: {words}: not run: {why}", "next"]


@pytest.mark.parametrize(
    "words", ["ray start --head --redis-password hush-hush-9d2c --block", "ray --logging-level info stop --force"]
)
def test_rays_start_and_stop_are_skipped_and_their_options_not_shown(bench: Bench, words: str) -> None:
    assert bench.run(f"set -e; {words}; echo next") == 0
    verb = "start" if "start" in words else "stop"
    assert bench.said == [
        f"trainstack: ray {verb}: not run: the pod's Ray runs already and belongs to the stage",
        "next",
    ]


@pytest.mark.parametrize("words", ["status", "job list --address x", "start --help", "--version", ""])
def test_other_words_of_ray_go_to_the_real_one_with_its_status(bench: Bench, words: str) -> None:
    assert bench.run(f"ray {words}") == 5
    assert bench.said == [f"real ray {words}"]


def test_without_a_real_ray_the_shell_says_so(bench: Bench) -> None:
    (bench.real / "ray").unlink()
    assert bench.run("ray status", PATH="/usr/bin:/bin") == 127
    assert bench.said == ["ray: command not found"]


def test_what_is_submitted_takes_the_place_of_ray(bench: Bench) -> None:
    script = """
        export EXPORTED=yes RAY_ADDRESS=http://127.0.0.1:8265
        ray job submit --address="http://127.0.0.1:8265" --submission-id x --no-wait \\
           --runtime-env-json='{"env_vars": {"A": "1 $2", "B": "${EXPORTED}!${NOT_SET}", "GIVEN": "new"}}' \\
           -- python3 show.py --flag 'two words' "--json={\\"a\\": 1}" --runtime-env-json
    """
    assert bench.run(script) == 0
    words, env, workers, folder = bench.shown()
    assert words == ["--flag", "two words", '--json={"a": 1}', "--runtime-env-json"]
    assert (env["A"], env["B"], env["GIVEN"], env["EXPORTED"]) == ("1 $2", "yes!", "new", "yes")
    assert env["RAY_ADDRESS"] == "127.0.0.1:6379", "the script's is the jobs API's, which ray.init does not take"
    assert workers == {"A": "1 $2", "B": "${EXPORTED}!${NOT_SET}", "GIVEN": "new", "EXPORTED": "yes"}
    assert json.loads(env[JOB_CONFIG])["metadata"] == {"a": "b"}
    assert folder == str(bench.folder)
    assert bench.said[:-1] == [
        "trainstack: ray job submit --no-wait: waited for all the same: the stage ends with this command",
        "trainstack: ray job submit: run within the stage's own job: python3 show.py; variables for Ray's workers: "
        "A, B, EXPORTED, GIVEN",
    ]


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", -9), ("true", 0)])
def test_the_programs_end_is_the_scripts_end(bench: Bench, script: str, status: int) -> None:
    bench.program(bench.folder / "train", script)
    ended = bench.run("set -e; ray job submit -- ./train; echo after")
    assert ended in (status, 128 - status)
    assert ("after" in bench.said) == (status == 0)


def test_a_program_that_is_not_there_ends_as_in_a_shell(bench: Bench) -> None:
    assert bench.run("ray job submit -- no-such-program") == 127
    assert bench.said[-1] == "no-such-program: No such file or directory"


@pytest.mark.parametrize(
    ("words", "load_dir", "more"),
    [
        ("--load /root/x_slime/ --save /root/x_slime --save-interval 9", "", "--save /pod/save --load /pod/save"),
        ("--load=/root/hf --save=/root/x --save-interval 9", "", "--save /pod/save"),
        ("--load=/root/hf --save=/root/x --save-interval 9", "/pod/save", "--save /pod/save --load /pod/save"),
        ("--ref-load /root/hf --num-rollout 100", "", "--save /pod/save --save-interval 5"),
        ("--load $TRAINSTACK_SAVE_DIR/ --save $RELAY_OUTPUT_DIR --save-interval 9", "/pod/save", ""),
    ],
)
def test_slime_saves_where_the_stage_looks_and_goes_on_from_what_it_restored(
    bench: Bench, words: str, load_dir: str, more: str
) -> None:
    (bench.folder / "show.py").rename(bench.folder / "train_async.py")
    old = {"RELAY_OUTPUT_DIR": "/pod/save", "TRAINSTACK_SAVE_DIR": "/pod/save", "TRAINSTACK_SAVE_INTERVAL": "5"}
    assert bench.run(f"ray job submit -- python3 train_async.py {words}", TRAINSTACK_LOAD_DIR=load_dir, **old) == 0
    expected = words.replace("$TRAINSTACK_SAVE_DIR", "/pod/save").replace("$RELAY_OUTPUT_DIR", "/pod/save")
    assert bench.shown()[0] == [*expected.split(), *more.split()]
    lost = "what is saved elsewhere is lost with the pod"
    assert [line for line in bench.said if lost in line] == (
        [f"trainstack: train_async.py: {more}: {lost}"] if more else []
    )


def test_our_folder_stays_importable_for_adapters(bench: Bench) -> None:
    json_text = '{"env_vars": {"PYTHONPATH": "/root/Megatron-LM/"}}'
    assert bench.run(f"ray job submit --runtime-env-json '{json_text}' -- python3 show.py") == 0
    _, env, workers, _ = bench.shown()
    assert env["PYTHONPATH"] == workers["PYTHONPATH"] == f"/root/Megatron-LM/:{HOME}"


def test_a_secret_of_the_script_reaches_the_program_and_neither_ray_nor_the_log(bench: Bench) -> None:
    json_text = f'{{"env_vars": {{"WANDB_API_KEY": "{SECRET}", "HF_TOKEN": "${{HF_TOKEN}}"}}}}'
    script = f"export MY_TOKEN={SECRET}; ray job submit --runtime-env-json '{json_text}' -- python3 show.py"
    assert bench.run(script, HF_TOKEN=f"{SECRET}-known") == 0
    _, env, workers, _ = bench.shown()
    assert (env["WANDB_API_KEY"], env["MY_TOKEN"], env["HF_TOKEN"]) == (SECRET, SECRET, f"{SECRET}-known")
    assert workers == {"GIVEN": "here"}
    assert "MY_TOKEN, WANDB_API_KEY: set for the program" in bench.said[0]
    assert SECRET not in "\n".join(bench.said[:-1])
    assert SECRET not in (bench.shims / "memory.json").read_text()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--runtime-env-json='{\"env_vars\": hush-hush-9d2c}'", "--runtime-env-json is no JSON: Expecting value"),
        ("--runtime-env-json='[1]'", "its runtime environment is no mapping"),
        ('--runtime-env-json=\'{"pip": ["x"]}\'', "asks for pip: put that into the image"),
        ("--working-dir s3://bucket/x.zip", "s3://bucket/x.zip is no folder of this pod"),
        ("--runtime-env missing.yaml", "--runtime-env: FileNotFoundError: missing.yaml"),
    ],
)
def test_what_cannot_be_had_here_ends_the_submission_with_the_reason(bench: Bench, options: str, why: str) -> None:
    assert bench.run(f"ray job submit {options} -- python3 show.py") == 1
    assert len(bench.said) == 1 and why in bench.said[0] and SECRET not in bench.said[0]
    assert bench.run(f"ray job submit {options} --") == 1
    assert bench.said[-1] == "trainstack: ray job submit: cannot be run here: nothing stands behind its options"


def test_the_working_directory_and_a_file_of_the_runtime_environment_are_honoured(bench: Bench) -> None:
    (bench.folder / "work").mkdir()
    (bench.folder / "env.yaml").write_text("env_vars:\n  A: one\n")
    assert bench.run("ray job submit --runtime-env env.yaml --working-dir work -- python3 ../show.py") == 0
    _, env, workers, folder = bench.shown()
    assert folder == f"{bench.folder}/work"
    assert env["A"] == workers["A"] == "one"
    assert workers["PYTHONPATH"].startswith(f"{bench.folder}/work:")


def test_a_script_that_puts_its_own_environment_first_still_finds_the_stand_ins(bench: Bench) -> None:
    assert (
        bench.run(f"export PATH={bench.real}:$PATH; pkill -9 python; ray stop; ray job submit -- python3 show.py") == 0
    )
    assert [line.split(":")[1].strip() for line in bench.said[:-1]] == ["pkill -9 python", "ray stop", "ray job submit"]
    _, _, workers, _ = bench.shown()
    assert workers["PATH"].split(":")[0] == str(bench.real) and str(bench.shims) not in workers["PATH"]


def test_the_former_bash_env_is_read_too(bench: Bench) -> None:
    (bench.folder / "mine.sh").write_text("export MINE=1\n")
    assert bench.run("pkill x; echo $MINE", BASH_ENV=f"{bench.folder}/mine.sh") == 0
    assert bench.said[-1] == "1"


def test_a_pipe_that_closes_ends_the_program_as_in_a_shell(bench: Bench) -> None:
    script = 'ray job submit -- yes | head -n 1; echo "${PIPESTATUS[0]}"'
    assert bench.run(script) == 0
    assert bench.said[-2:] == ["y", "141"]


def test_the_stand_ins_are_whole_for_every_start(bench: Bench) -> None:
    for _ in range(2):
        assert bench.run("ray stop") == 0
    assert len(bench.said) == 2
    assert bench.shims.stat().st_mode & 0o777 == 0o700
    assert os.access(bench.shims / "pkill", os.X_OK)
