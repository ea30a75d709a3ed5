"""Wrong recipes for slime, and what each is told before anything is rented: what, where, and what would be right."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from blocks.recipe import parse_recipe
from plugins.errors import UserError
from tasks.check_recipe import check_recipe

CHAT = {"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]}
PROMPT = {"prompt": "1+1", "label": "2"}

GOOD: dict[str, Any] = {
    "name": "right",
    "lium": {"base_url": "emulator"},
    "pod": {"gpu": "H100", "gpu_count": 8},
    "model": {"hf_checkpoint": "/models/Qwen3-4B", "name": "qwen3-4B"},
    "rl": {
        "data": "rl.jsonl",
        "environment": {"task": "arithmetic"},
        "num_rollout": 10,
        "rollout": {"batch_size": 32, "n_samples": 8, "max_response_len": 1024},
        "parallelism": {"tensor": 2},
    },
}

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("misspelt flag", {"rl.extra_args": {"lerning-rate": 1e-6}}, "--lerning-rate is no flag of slime"),
    ("flag with _ for -", {"rl.extra_args": {"use_tis": True}}, "did you mean --use-tis"),
    ("value of a wrong type", {"rl.extra_args": {"clip-grad": "1x"}}, "--clip-grad"),
    ("flag set twice", {"rl.optimisation": {"lr": 1e-6}, "rl.extra_args": {"lr": 1e-5}}, "set twice: optimisation.lr"),
    ("save dir of one's own", {"rl.extra_args": {"save": "/x"}}, "--save cannot be set: checkpoints go to the stage's"),
    ("W&B key in the open", {"rl.extra_args": {"wandb-key": "k"}}, "give WANDB_API_KEY among the recipe's secrets"),
    ("W&B without a key", {"tracking": {"wandb_project": "p"}}, "name WANDB_API_KEY in `secrets:`"),
    ("secret in env", {"env": {"HF_TOKEN": "t"}}, "env.HF_TOKEN: Ray shows the environment"),
    ("batches", {"rl.rollout.global_batch_size": 100}, "rollout.batch_size 32 * rollout.n_samples 8 = 256, but"),
    ("more GPUs than the pod has", {"rl.parallelism": {"gpus": 16}}, "slime would wait for them for ever"),
    ("tensor does not divide", {"rl.parallelism": {"tensor": 3}}, "parallelism.tensor"),
    (
        "engine does not divide",
        {"rl.engine": {"gpus_per_engine": 3}},
        "engine.gpus_per_engine: 3 does not divide the 8",
    ),
    ("asynchronous and colocated", {"rl.rollout.asynchronous": True}, "set parallelism.rollout_gpus"),
    ("one answer with grpo", {"rl.rollout.n_samples": 1}, "every advantage is 0"),
    ("evaluation without data", {"rl.evaluation": {"interval": 5}}, "evaluation.interval: missing data"),
    (
        "no reward",
        {"rl.environment": None},
        "rl.environment: missing; give 'task:' or 'url:', or a reward of",
    ),
    ("ppo", {"rl.extra_args": {"advantage-estimator": "ppo"}}, "saves over the actor's checkpoint"),
    ("two rewards", {"rl.rollout.reward": "math"}, "rl.rollout.reward: `environment` gives the reward already"),
    (
        "no such reward",
        {"rl.environment": None, "rl.rollout.reward": "mathh"},
        "slime has no reward 'mathh'; did you mean math",
    ),
    ("one answer with gspo", {"rl.rollout.n_samples": 1, "rl.optimisation": {"advantage": "gspo"}}, "gspo compares"),
    ("clip range upside down", {"rl.optimisation": {"eps_clip": 0.3, "eps_clip_high": 0.2}}, "0.2 is less than"),
    (
        "no room for a prompt",
        {"rl.engine": {"context_length": 512}},
        "leave no room for a prompt beside an answer of 1024",
    ),
    ("nothing trained", {"rl.extra_args": {"debug-rollout-only": True}}, "nothing would be trained"),
    ("no data cursor", {"rl.extra_args": {"disable-rollout-global-dataset": True}}, "data cursor comes from it"),
    ("resume without iteration", {"rl.extra_args": {"finetune": True}}, "forget the iteration at each resume"),
    ("another spelling", {"rl.extra_args": {"persistent-save-interval": 5}}, "set the recipe's `save_interval`"),
    ("value in the name", {"rl.extra_args": {"start-rollout-id=5": True}}, "this is no name of a flag"),
    ("optimizer set twice", {"rl.extra_args": {"no-save-optim": True}}, "set it by checkpoint.optimizer"),
    (
        "tracking set twice",
        {
            "tracking": {"wandb_project": "x"},
            "env": {"WANDB_MODE": "offline"},
            "rl.extra_args": {"wandb-project": "y"},
        },
        "extra_args.wandb-project: set twice",
    ),
    ("variable of ours", {"env": {"TRAINSTACK_SAVE_DIR": "/x"}}, "env.TRAINSTACK_SAVE_DIR: trainstack, Ray or slime"),
    ("no variable", {"env": {"A b": "x"}}, "env.A b: this is no name"),
    ("no architecture", {"model": {"hf_checkpoint": "/models/x"}}, "model.name: missing; name a file of slime's"),
    ("no weights", {"model": {"name": "qwen3-4B"}}, "model.hf_checkpoint: missing"),
    ("no such model", {"model.name": "qwen3-4b"}, "did you mean qwen3-4B"),
    (
        "model too large",
        {"pod.gpu_count": 2, "model.name": "qwen3-32B"},
        "rl.parallelism: the model needs 295 GB",
    ),
    (
        "more prompts than rows",
        {"rl.rollout.batch_size": 64, "rl.rollout.n_samples": 4},
        "more than the data's 40 rows",
    ),
    ("warm-up of all steps", {"rl.optimisation": {"lr_warmup_iters": 10}}, "all of the schedule's 10"),
    ("several nodes without a shared folder", {"pod.nodes": 2}, "pod.shared_dir: missing; with pod.nodes 2 every rank"),
    ("total and epochs", {"rl.num_epoch": 1}, "exactly one of `num_rollout` and `num_epoch`"),
    (
        "a command that kills the pod's services",
        {"trainer": {"kind": "command"}, "rl.command": "/usr/bin/pkill -9 python; python3 train.py"},
        "/usr/bin/pkill",
    ),
]


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    raw = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = raw
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    return raw


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a recipe with these changes is told; empty when it is right."""
    for name in ("LIUM_BASE_URL", "LIUM_API_KEY", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRAINSTACK_DIR", str(tmp_path / "state"))
    (tmp_path / "rl.jsonl").write_text((json.dumps(PROMPT) + "\n") * 40)

    def tell(changes: dict[str, Any]) -> str:
        try:
            recipe = parse_recipe(changed(changes), source="recipe.yaml", folder=tmp_path)
            check_recipe(recipe, recipe.stages())
        except UserError as error:
            return str(error)
        return ""

    return tell


def test_the_recipe_that_the_wrong_ones_come_from_is_right(told: Any) -> None:
    assert told({}) == ""


@pytest.mark.parametrize(("what", "changes", "said"), WRONG, ids=[what for what, _, _ in WRONG])
def test_a_wrong_recipe_is_told_what_and_where(what: str, changes: dict[str, Any], said: str, told: Any) -> None:
    message = told(changes)
    print(f"{what}: {message}")
    assert said in message
    assert message.startswith("Recipe 'right': ")
