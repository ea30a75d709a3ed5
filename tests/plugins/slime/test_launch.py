import sys
from pathlib import Path

import pytest

from plugins.errors import TornCheckpoint, UserError
from plugins.slime.defaults import Machine
from plugins.slime.launch import HOME, TrainerSpec, build
from plugins.slime.layout import write_tracker
from plugins.tinyslime.flags import parse
from tests.plugins.checkpoints.conftest import Trainer

SMALL = {"rollout-batch-size": 4, "n-samples-per-prompt": 2, "rollout-max-response-len": 8}


def spec(tmp_path, **changes):
    given = {
        "kind": "tinyslime",
        "stage": "rl",
        "run_id": "demo",
        "attempt": 2,
        "save_dir": tmp_path / "save",
        "rollout_dir": tmp_path / "rollout",
        "data": tmp_path / "d.jsonl",
        "num_rollout": 20,
        "save_interval": 5,
        "args": SMALL if changes.get("stage", "rl") == "rl" else {"rollout-batch-size": 4},
    }
    return TrainerSpec(**{**given, **changes})


def value(argv, flag):
    assert argv.count(flag) == 1, (flag, argv)
    return argv[argv.index(flag) + 1]


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_the_stand_in_takes_the_same_flags_as_slime(tmp_path, stage):
    tiny = build(spec(tmp_path, stage=stage, init_dir=tmp_path / "hf", seed=7))
    slime = build(spec(tmp_path, stage=stage, init_dir=tmp_path / "hf", seed=7, kind="slime", slime_dir=tmp_path))
    script = "train_async" if stage == "sft" else "train"
    assert tiny.argv[:3] == [sys.executable, "-m", f"plugins.tinyslime.{script}"]
    assert slime.argv[:2] == ["python3", f"{script}.py"]
    assert tiny.argv[3:] == slime.argv[2:]
    args = parse(tiny.argv[3:])
    assert (args.save, args.save_interval, args.num_rollout) == (str(tmp_path / "save"), 5, 20)
    assert args.save_hf == f"{tmp_path}/save/hf/{{rollout_id}}"
    assert (args.hf_checkpoint, args.ref_load, args.load) == (str(tmp_path / "hf"), str(tmp_path / "hf"), None)
    assert (args.seed, args.rollout_seed) == (7, 7)
    assert args.custom_rollout_log_function_path == "plugins.slime.hooks.custom_rollout_log"
    assert tiny.expected_last == slime.expected_last == 19


def test_supervised_training_runs_without_engines_and_rl_with_the_http_adapter(tmp_path):
    sft, rl = build(spec(tmp_path, stage="sft")).argv, build(spec(tmp_path)).argv
    assert "--debug-train-only" in sft and "--colocate" not in sft
    assert value(sft, "--rollout-function-path") == "slime.rollout.sft_rollout.generate_rollout"
    assert value(sft, "--loss-type") == "sft_loss"
    assert value(rl, "--custom-generate-function-path") == "plugins.http_env.adapter.generate"
    assert value(rl, "--advantage-estimator") == "grpo"
    assert "--debug-train-only" not in rl and "--colocate" in rl
    assert value(rl, "--global-batch-size") == "8"


def test_slime_gets_its_folder_and_environment_and_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hush")
    launch = build(spec(tmp_path, kind="slime", slime_dir=tmp_path / "slime", init_dir=tmp_path, env_url="http://e:1"))
    assert launch.cwd == tmp_path / "slime"
    assert launch.env["PYTHONPATH"].split(":") == ["/root/Megatron-LM", str(HOME), str(tmp_path / "slime")]
    assert launch.env["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert launch.env["TRAINSTACK_ENV_URL"] == "http://e:1"
    assert "hush" not in str(launch)


def test_model_arguments_stand_first_so_that_the_recipe_wins(tmp_path):
    (tmp_path / "scripts/models").mkdir(parents=True)
    (tmp_path / "scripts/models/m.sh").write_text("MODEL_ARGS=(--rotary-base 10000)\n")
    args = {**SMALL, "rotary-base": 5}
    argv = build(spec(tmp_path, kind="slime", slime_dir=tmp_path, model="m", init_dir=tmp_path, args=args)).argv
    assert argv[2:4] == ["--rotary-base", "10000"]
    assert argv.index("--rotary-base", 4) > 4


def test_slime_needs_weights_to_start_from(tmp_path):
    with pytest.raises(UserError, match="weights"):
        build(spec(tmp_path, kind="slime"))
    args = {**SMALL, "hf-checkpoint": "/m/hf", "ref-load": "/m/dist"}
    assert value(build(spec(tmp_path, kind="slime", args=args)).argv, "--ref-load") == "/m/dist"


def test_a_command_gets_old_and_new_environment_names(tmp_path):
    launch = build(spec(tmp_path, kind="command", command=["bash", "run.sh"], load_dir=tmp_path / "save", args={}))
    assert launch.argv == ["bash", "run.sh"]
    assert launch.expected_last == 19
    for new, old in (
        ("TRAINSTACK_SAVE_DIR", "RELAY_OUTPUT_DIR"),
        ("TRAINSTACK_LOAD_DIR", "RELAY_RESUME_FROM"),
        ("TRAINSTACK_ROLLOUT_DIR", "RELAY_ROLLOUT_TRAJECTORY_ROOT"),
    ):
        assert launch.env[new] == launch.env[old] != ""
    assert launch.env["RELAY_RUN_ROOT"] == str(tmp_path)
    assert launch.env["RELAY_ROLLOUT_TRAJECTORY_PATTERN"].format(rollout_id=3) == "rollout_00000003.pt"
    assert (launch.env["TRAINSTACK_RUN_ID"], launch.env["TRAINSTACK_STAGE"]) == ("demo", "rl")
    assert (launch.env["TRAINSTACK_ATTEMPT"], launch.env["TRAINSTACK_INIT_DIR"]) == ("2", "")
    with pytest.raises(UserError, match="needs a command"):
        build(spec(tmp_path, kind="command"))


def test_an_environment_is_asked_whatever_draws_the_prompts_and_a_reward_of_slimes_own_needs_none(tmp_path):
    fully = {**SMALL, "rollout-function-path": "slime.rollout.fully_async_rollout.generate_rollout_fully_async"}
    asked = build(spec(tmp_path, kind="slime", init_dir=tmp_path, args=fully, env_url="http://e:1")).argv
    assert value(asked, "--custom-generate-function-path") == "plugins.http_env.adapter.generate"
    own = build(spec(tmp_path, kind="slime", init_dir=tmp_path, args={**SMALL, "rm-type": "math"})).argv
    assert "--custom-generate-function-path" not in own
    mine = {**SMALL, "custom-generate-function-path": "my.own.generate"}
    argv = build(spec(tmp_path, kind="slime", init_dir=tmp_path, args=mine, env_url="http://e:1")).argv
    assert value(argv, "--custom-generate-function-path") == "my.own.generate"


def test_a_resume_loads_the_save_dir_and_starts_after_its_tracker(tmp_path):
    Trainer(tmp_path / "save").save(9)
    launch = build(spec(tmp_path, load_dir=tmp_path / "save"))
    assert value(launch.argv, "--load") == str(tmp_path / "save")
    assert value(launch.argv, "--start-rollout-id") == "10"
    assert launch.env["TRAINSTACK_LOAD_DIR"] == launch.env["RELAY_RESUME_FROM"] == str(tmp_path / "save")
    assert launch.load_dir == tmp_path / "save"


def test_a_cold_start_loads_nothing_even_beside_an_old_tracker(tmp_path):
    (tmp_path / "save").mkdir()
    write_tracker(tmp_path / "save", 9)
    launch = build(spec(tmp_path))
    assert "--load" not in launch.argv and "--start-rollout-id" not in launch.argv
    assert launch.env["TRAINSTACK_LOAD_DIR"] == ""


def test_a_resume_that_slime_would_turn_into_a_cold_start_is_refused(tmp_path):
    with pytest.raises(TornCheckpoint, match="tracker"):
        build(spec(tmp_path, load_dir=tmp_path / "save"))
    Trainer(tmp_path / "save").save(9)
    (tmp_path / "save/iter_0000009/metadata.json").unlink()
    with pytest.raises(TornCheckpoint, match=r"iter_0000009: has no metadata\.json"):
        build(spec(tmp_path, load_dir=tmp_path / "save"))
    with pytest.raises(UserError, match="restore it into the save dir"):
        build(spec(tmp_path, load_dir=tmp_path / "elsewhere"))


@pytest.mark.parametrize("flag", ["save", "load", "start-rollout-id", "save-hf", "num-rollout", "wandb-key"])
def test_flags_of_the_launcher_are_refused_with_what_to_do(tmp_path, flag):
    with pytest.raises(UserError, match=rf"extra_args\.{flag}: --{flag} cannot be set: .+"):
        build(spec(tmp_path, args={**SMALL, flag: "x"}))


def test_the_recipes_flags_win_over_ours_and_can_switch_them_off(tmp_path):
    args = {**SMALL, "lr": 0.001, "rollout-shuffle": False, "rollout-num-gpus": 2, "label-key": None, "eps-clip": 0.1}
    argv = build(spec(tmp_path, args=args, machine=Machine(1, 4))).argv
    assert value(argv, "--lr") == "0.001"
    assert value(argv, "--eps-clip") == "0.1"
    assert not {"--rollout-shuffle", "--label-key", "--colocate"} & set(argv)


def test_epochs_become_rollouts_so_that_the_last_iteration_is_known(tmp_path):
    launch = build(spec(tmp_path, num_rollout=None, num_epoch=3, data_rows=11))
    assert value(launch.argv, "--num-rollout") == "6"
    assert "--num-epoch" not in launch.argv
    assert launch.expected_last == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_epoch": 1}, "exactly one of"),
        ({"num_rollout": None}, "exactly one of"),
        ({"num_rollout": None, "num_epoch": 1}, "number of data rows"),
        ({"num_rollout": None, "num_epoch": 1, "data_rows": 3}, "3 rows in batches of 4"),
        ({"num_rollout": 0}, "nothing to train on"),
        ({"save_interval": 0}, "save_interval"),
        ({"data": None}, "no data"),
        ({"args": {**SMALL, "rollout-batch-size": "many"}}, "whole number"),
        (
            {"args": {**SMALL, "global-batch-size": 3}},
            r"rollout-batch-size 4 \* .*n-samples-per-prompt 2 = 8, but .*global-batch-size 3",
        ),
        ({"args": {**SMALL, "global-batch-size": 8, "num-steps-per-rollout": 2}}, "= 16"),
        ({"args": {**SMALL, "num-steps-per-rollout": 3}}, "do not add up"),
        ({"stage": "sft", "args": {"n-samples-per-prompt": 2}}, "must be 1 for SFT"),
    ],
)
def test_numbers_that_do_not_add_up_are_refused(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        build(spec(tmp_path, **changes))


def test_several_steps_in_a_rollout_are_fine_when_they_divide_it(tmp_path):
    argv = build(spec(tmp_path, args={**SMALL, "num-steps-per-rollout": 2})).argv
    assert value(argv, "--global-batch-size") == "4"
    assert value(build(spec(tmp_path, args={**SMALL, "global-batch-size": 4})).argv, "--global-batch-size") == "4"


def test_the_progress_file_of_an_attempt_is_its_own(tmp_path):
    assert Path(build(spec(tmp_path)).env["TRAINSTACK_PROGRESS_FILE"]) == tmp_path / "rollout" / "progress-a2.jsonl"
