"""An older launch_stack.yaml as a recipe: it loads, nothing is dropped in silence, no secret is written."""

from pathlib import Path

import pytest

from blocks.recipe import Recipe, load_recipe
from plugins.errors import Refused, UserError
from plugins.slime.command import check_command
from tasks.check_recipe import check_recipe
from tasks.import_keys import WITHOUT
from tasks.import_stack import Imported, import_stack
from tasks.trainer_spec import Places, trainer_spec

SECRET = "hush-hush-42ab17"
HF = "hf_" + "aB3dE5" * 4
SFT = "bash /workspace/slime/scripts/run-qwen3-4B-base-sft.sh"
RL = "bash /workspace/slime/scripts/run-qwen2.5-0.5B-reproducibility.sh"
FULL = f"""
commander:
  host: "0.0.0.0"
  port: 8080
  public_url: "http://203.0.113.7:8080"
  state_path: "./commander_state.json"
  log_path: "./.relay-launch/commander.log"
  pid_path: "./.relay-launch/commander.pid"
  lease_seconds: 3600
  shared_secret: "{SECRET}"
  python_bin: "/root/venv/bin/python"
  wait_seconds: 30
  restart_if_running: true
lium:
  executor: "4"
  template_id: "relay-trainer"
  pod_name: "relay-auto-demo"
  volume: "new:name=relay-auto-demo"
  ttl: "2h"
  yes: true
  ready_timeout_seconds: 300
  poll_interval_seconds: 5
run:
  run_id: "demo-sft-run"
  mode: "MODE"
  worker_id: "relay-auto-worker-01"
  hf_repo: "me/demo"
  hf_dry_run: false
  save_rollout_trajectories: true
  rollout_trajectory_subdir: "rollout"
  rollout_trajectory_pattern: "rollout_{{rollout_id:08d}}.pt"
worker:
  local_config_path: "./.relay-launch/worker.run.yaml"
  remote_config_path: "/workspace/slime/relay-trainer/configs/run.launch.yaml"
  remote_workdir: "/workspace/slime/relay-trainer"
  remote_python_bin: "/root/venv/bin/python"
  remote_log_path: "/tmp/relay-worker.log"
  remote_pid_path: "/tmp/relay-worker.pid"
  command: "/root/venv/bin/python -m relay.worker.relay_entry"
  env:
    HF_TOKEN: "{HF}"
    TRAINSTACK_HTTP_ENV_URL: "http://127.0.0.1:18082"
    PYTHONPATH: "/workspace/slime:${{PYTHONPATH:-}}"
    DEBUG: true
    SLIME_SFT_CMD: "{SFT}"
    SLIME_RL_CMD: "{RL}"
"""


def imported(folder: Path, text: str) -> tuple[Imported, Recipe]:
    file = folder / "launch_stack.yaml"
    file.write_text(text)
    made = import_stack(file)
    recipe = folder / "recipe.yaml"
    recipe.write_text(made.recipe)
    return made, load_recipe(recipe)


@pytest.mark.parametrize(("mode", "command"), [("sft", SFT), ("rl", RL)])
def test_the_whole_older_file_becomes_a_recipe_that_runs_its_command(tmp_path: Path, mode: str, command: str) -> None:
    made, recipe = imported(tmp_path, FULL.replace("MODE", mode))
    assert recipe.stages() == [mode]
    assert (recipe.trainer.kind, recipe.trainer.slime_dir) == ("command", "/workspace/slime")
    assert recipe.stage(mode).command == command
    check_command(command)
    assert (recipe.pod.template_id, recipe.pod.volume) == ("relay-trainer", "new:name=relay-auto-demo")
    assert (recipe.pod.ready_timeout_minutes, recipe.pod.gpu_count) == (5, 8)
    assert recipe.checkpoint.stores == ["volume:/mnt/relay", "hub://me/demo"]
    assert recipe.env == {
        "TRAINSTACK_HTTP_ENV_URL": "http://127.0.0.1:18082",
        "PYTHONPATH": "/workspace/slime:${PYTHONPATH}",
        "DEBUG": "true",
    }
    assert recipe.secrets == ["HF_TOKEN"]
    assert "--run-id demo-sft-run" in made.recipe
    spec = trainer_spec(
        recipe,
        mode,
        Places(tmp_path / "save", tmp_path / "rollouts"),
        run_id="r",
        attempt=1,
        save_interval=20,
        data_rows=None,
    )
    assert spec.command == ["bash", "-c", command]


def test_every_key_is_told_of_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    text = FULL.replace("MODE", "sft").replace("lium:\n", "lium:\n  colour: red\n", 1) + "extra: {a: 1}\n"
    made, _ = imported(tmp_path, text)
    told = {fate.key: fate.outcome for fate in made.fates}
    for line in text.splitlines():
        if line.startswith("  "):
            assert [key for key in told if key.endswith(f".{line.strip().partition(':')[0]}")] or line.strip() == "env:"
    assert [key for key, outcome in told.items() if outcome == "UNKNOWN"] == ["lium.colour", "extra"]
    assert {key for key in WITHOUT if "relay_run_config" not in key} <= set(told)
    for fate in made.fates:
        assert f"#   {fate}" in made.recipe, "the recipe keeps what was said"


def test_no_secret_is_written_only_its_name(tmp_path: Path) -> None:
    text = FULL.replace("MODE", "sft").replace("DEBUG: true", f"REPO_URL: https://me:{SECRET}@git.example.com/x")
    command = f"export WANDB_API_KEY='{SECRET}' A=1; {SFT} --wandb-key {SECRET} --wandb-key $KEPT"
    made, recipe = imported(tmp_path, text.replace(SFT, command))
    said = made.recipe + "".join(map(str, made.fates))
    assert SECRET not in said and HF not in said
    assert recipe.secrets == ["HF_TOKEN", "REPO_URL", "WANDB_API_KEY"]
    assert recipe.sft is not None
    assert recipe.sft.command == (
        f'export WANDB_API_KEY="$WANDB_API_KEY" A=1; {SFT} --wandb-key "$WANDB_API_KEY" --wandb-key $KEPT'
    )


def test_a_token_in_the_middle_of_a_command_is_refused_without_showing_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"worker\.env\.SLIME_SFT_CMD: there is what looks like a token") as refused:
        imported(tmp_path, FULL.replace("MODE", "sft").replace(SFT, f"hf auth login {HF}; {SFT}"))
    assert HF not in str(refused.value)


@pytest.mark.parametrize("mode", ["sft", "rl"])
def test_a_file_without_a_command_trains_with_the_stand_in(tmp_path: Path, mode: str) -> None:
    made, recipe = imported(tmp_path, f"run: {{mode: {mode}, run_id: demo}}\nworker: {{env: {{MOCK_MAX_STEPS: 5}}}}\n")
    assert (recipe.trainer.kind, recipe.stage(mode).num_rollout) == ("tinyslime", 5)
    local = recipe.model_copy(update={"lium": recipe.lium.model_copy(update={"base_url": "emulator"})})
    assert check_recipe(local, [mode]).last == {mode: 4}
    assert "# checkpoint: {store: [s3://your-bucket/trainstack]}" in made.recipe


def test_a_dry_run_pushes_nothing(tmp_path: Path) -> None:
    made, recipe = imported(tmp_path, FULL.replace("MODE", "sft").replace("dry_run: false", "dry_run: true"))
    assert recipe.checkpoint.stores[0].startswith("folder:")
    assert "# checkpoint: {store: [volume:/mnt/relay, hub://me/demo]}" in made.recipe


def test_what_a_run_config_of_the_worker_says_counts(tmp_path: Path) -> None:
    own = "  relay_run_config:\n    {run_id: Other_Run, mode: rl, rollout_trajectory_pattern: 'r{rollout_id}.pt'}\n"
    made, recipe = imported(tmp_path, FULL.replace("MODE", "sft").replace("  env:\n", f"{own}  env:\n", 1))
    assert recipe.stages() == ["rl"] and "--run-id other-run" in made.recipe
    assert recipe.env["RELAY_ROLLOUT_TRAJECTORY_PATTERN"] == "r{rollout_id}.pt"
    assert "worker.relay_run_config.run_id: taken over: --run-id other-run (from 'Other_Run'" in made.recipe


@pytest.mark.parametrize("run_id", ["123", "true", "1e5", "-x-", "Ü"])
def test_any_run_id_gives_a_name_that_loads(tmp_path: Path, run_id: str) -> None:
    made, recipe = imported(tmp_path, f"run: {{run_id: {run_id}}}\n")
    assert f"--run-id {recipe.name}" in made.recipe


def test_a_command_of_several_lines_stays_what_it_was(tmp_path: Path) -> None:
    lines = "cd /workspace/slime\\n\\nbash run.sh # 'x' \\\\\\n  --a\\n"
    _, recipe = imported(tmp_path, f'run: {{mode: rl}}\nworker: {{env: {{SLIME_RL_CMD: "{lines}"}}}}\n')
    assert recipe.rl is not None
    assert recipe.rl.command == "cd /workspace/slime\n\nbash run.sh # 'x' \\\n  --a"
    assert recipe.name == "launch-stack"


def test_what_was_imported_rents_nothing_before_a_ceiling_and_a_budget_are_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LIUM_BASE_URL", "LIUM_API_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LIUM_API_KEY", "x")
    monkeypatch.setenv("LIUM_SSH_KEY_PATH", str(tmp_path / "key"))
    for name in ("key", "key.pub"):
        (tmp_path / name).touch()
    monkeypatch.setenv("HF_TOKEN", "x")
    _, recipe = imported(tmp_path, FULL.replace("MODE", "sft"))
    with pytest.raises(Refused, match="lack a price ceiling, a budget"):
        check_recipe(recipe, ["sft"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [b\n", "launch_stack.yaml:2: not valid YAML"),
        (f"run: '{SECRET}\n", "not valid YAML"),
        ("- 1\n", "expected a launch_stack.yaml with commander:"),
        ("name: x\n", "expected a launch_stack.yaml with commander:"),
        ("run: {lr: 1}\nworker: {host: x}\n", "none of the older stack's keys (it has run.lr, worker.host)"),
        ("lium:\n", "none of the older stack's keys (it has only empty sections)"),
        ("run: {mode: both}\n", "run.mode: 'both': expected sft or rl"),
        ("lium: {ready_timeout_seconds: soon}\n", "lium.ready_timeout_seconds: expected a number of seconds"),
    ],
)
def test_what_is_no_such_file_is_refused_with_the_place(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UserError) as refused:
        imported(tmp_path, text)
    assert why in str(refused.value) and SECRET not in str(refused.value)
