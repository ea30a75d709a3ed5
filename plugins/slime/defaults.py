"""What the launcher sets where the recipe says nothing, and what it keeps for itself.

The values are those of slime's own run scripts (scripts/run-qwen3-4B.sh and run-qwen3-4B-base-sft.sh at v0.3.1); what
depends on the machine is worked out from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from plugins.errors import UserError
from plugins.slime.flag_table import known
from plugins.slime.flags import Value

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
StageName = Literal["sft", "rl"]

OWNED = {
    "save": "checkpoints go to the stage's own save dir",
    "load": "a resume is found from the checkpoint store",
    "start-rollout-id": "it follows from the restored checkpoint",
    "ckpt-step": "a resume takes the newest checkpoint that is whole",
    "save-hf": "the export goes into the stage's own save dir",
    "save-interval": "set the recipe's `save_interval`",
    "save-retain-interval": "Megatron deletes before a store has the checkpoint; set `checkpoint.keep`",
    "num-rollout": "set the recipe's `num_rollout`; it is the total, not how many more",
    "num-epoch": "set the recipe's `num_epoch`",
    "prompt-data": "set the recipe's `data`",
    "eval-prompt-data": "set the recipe's `evaluation.data`",
    "seed": "set the recipe's `seed`",
    "debug-rollout-only": "nothing would be trained",
    "load-debug-rollout-data": "old rollouts would be trained on",
    "disable-rollout-global-dataset": "a checkpoint's data cursor comes from it",
    "finetune": "Megatron would forget the iteration at each resume",
    "ckpt-format": "checkpoints are sealed in the format torch_dist only",
    "num-gpus-per-node": "set the recipe's `pod.gpu_count`",
    "custom-rollout-log-function-path": "progress is read from it",
    "custom-eval-rollout-log-function-path": "evaluations are read from it",
    "wandb-key": "Ray's job listing would show it; give WANDB_API_KEY among the recipe's secrets",
    "use-wandb": "set the recipe's `tracking.wandb_project`",
    "wandb-run-id": "slime overwrites it; the run's own id is used",
}
"""Flags that the launcher sets itself, and what to do instead of setting them."""

_COMMON: dict[str, Value] = {
    "rollout-shuffle": True,
    "optimizer": "adam",
    "weight-decay": 0.1,
    "adam-beta1": 0.9,
    "use-dynamic-batch-size": True,
    "max-tokens-per-gpu": 9216,
    "recompute-granularity": "full",
    "recompute-method": "uniform",
    "recompute-num-layers": 1,
    "attention-dropout": 0.0,  # Megatron's own default is 0.1
    "hidden-dropout": 0.0,
    "accumulate-allreduce-grads-in-fp32": True,
    "attention-softmax-in-fp32": True,
}
_SFT: dict[str, Value] = {
    "debug-train-only": True,  # no SGLang engines
    "rollout-function-path": "slime.rollout.sft_rollout.generate_rollout",
    "loss-type": "sft_loss",
    "calculate-per-token-loss": True,
    "disable-compute-advantages-and-returns": True,
    "input-key": "messages",
    "rollout-batch-size": 128,
    "lr": 1e-5,
    "min-lr": 1e-6,
    "lr-decay-style": "cosine",
    "lr-warmup-fraction": 0.1,
    "adam-beta2": 0.95,
}
_RL: dict[str, Value] = {
    "input-key": "prompt",
    "label-key": "label",
    "balance-data": True,
    "rollout-batch-size": 32,
    "n-samples-per-prompt": 8,
    "rollout-max-response-len": 8192,
    "rollout-temperature": 1.0,
    "advantage-estimator": "grpo",
    "eps-clip": 0.2,
    "eps-clip-high": 0.28,
    "entropy-coef": 0.0,
    "lr": 1e-6,
    "lr-decay-style": "constant",
    "adam-beta2": 0.98,
}
_ADAPTER = "plugins.http_env.adapter.generate"
_OWN_REWARD = ("rm-type", "custom-rm-path", "rollout-function-path")


def owned(name: str) -> str | None:
    """Why a flag cannot be set, under any of its spellings; None for one that can."""
    if not _NAME.fullmatch(name):
        return "this is no name of a flag; write it without dashes in front and without a value"
    flag = known().get(f"--{name}")
    spellings = (name, *((flag.name, *flag.also) if flag else ()))
    return next((OWNED[one] for one in (word.removeprefix("--") for word in spellings) if one in OWNED), None)


@dataclass(frozen=True)
class Machine:
    """The GPUs that one stage has: nodes that train together, and GPUs on each."""

    nodes: int = 1
    gpus_per_node: int = 1

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node

    def __str__(self) -> str:
        each = f"{self.gpus_per_node} GPU{'s' if self.gpus_per_node > 1 else ''}"
        return each if self.nodes == 1 else f"{self.nodes} nodes of {each}"


def stage_defaults(
    stage: StageName, given: Mapping[str, Value], machine: Machine, *, environment: bool = False
) -> dict[str, Value]:
    """Flags for what `given` (the recipe's flags) leaves open. environment: there is one over HTTP.

    Raises UserError when GPUs cannot be shared out.
    """
    flags = _COMMON | (_SFT if stage == "sft" else _RL)
    if "lr-warmup-iters" in given:
        flags.pop("lr-warmup-fraction", None)  # Megatron takes one of the two
    if stage == "rl" and (environment or not any(given.get(name) for name in _OWN_REWARD)):
        flags["custom-generate-function-path"] = _ADAPTER
    tensor = given.get("tensor-model-parallel-size")
    if isinstance(tensor, int) and tensor > 1:
        flags["sequence-parallel"] = True
    return flags | _shared_out(stage, given, machine)


def _shared_out(stage: StageName, given: Mapping[str, Value], machine: Machine) -> dict[str, Value]:
    """Which GPUs train and which generate; slime assumes 8 GPUs to a node unless it is told (slime.md 1.3)."""
    flags: dict[str, Value] = {"num-gpus-per-node": machine.gpus_per_node}
    separate = given.get("rollout-num-gpus") if not given.get("colocate") else None
    if stage == "rl" and separate is None:
        flags["colocate"] = True
    if "actor-num-gpus-per-node" in given or not isinstance(separate, int):
        return flags | {"actor-num-nodes": machine.nodes, "actor-num-gpus-per-node": machine.gpus_per_node}
    left = machine.gpus - separate
    if left < 1:
        raise UserError(
            f"parallelism.rollout_gpus: {separate} GPUs generate and none is left to train: there are {machine}"
        )
    nodes, rest = divmod(left, machine.gpus_per_node)
    if not rest:
        return flags | {"actor-num-nodes": nodes, "actor-num-gpus-per-node": machine.gpus_per_node}
    if machine.nodes > 1:
        raise UserError(
            f"parallelism.rollout_gpus: {separate} of {machine} leave {left} GPUs to train, no whole number of nodes; "
            f"take a multiple of {machine.gpus_per_node}, or set parallelism.gpus"
        )
    return flags | {"actor-num-nodes": 1, "actor-num-gpus-per-node": left}
