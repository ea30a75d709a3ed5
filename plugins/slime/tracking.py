"""Curves outside Prefect that go on over a resume: one W&B run and one TensorBoard folder for all attempts of a stage.

slime makes a new W&B run at each start: it gives `wandb.init` no id and drops `--wandb-run-id`
(slime v0.3.1 slime/utils/wandb_utils.py:23-84). W&B itself then takes the id from the environment, and with `allow` it
goes on with that run where there is one. TensorBoard writes where TENSORBOARD_DIR says (tensorboard_utils.py:34-40);
without it each process and each start makes a folder of its own. The key of W&B is a secret and never stands here.
"""

from __future__ import annotations

from pathlib import Path

from plugins.slime.flags import Value


def tracking_env(run_id: str, stage: str, folder: Path | None = None) -> dict[str, str]:
    """Variables that make a restarted trainer go on with its own curves.

    folder: where TensorBoard files belong, a folder that outlives the attempt; None leaves TensorBoard out.
    """
    env = {"WANDB_RUN_ID": f"{run_id}-{stage}", "WANDB_RESUME": "allow"}
    return env if folder is None else env | {"TENSORBOARD_DIR": str(folder / "tensorboard")}


def tracking_flags(
    run_id: str,
    stage: str,
    *,
    wandb_project: str | None = None,
    wandb_team: str | None = None,
    tensorboard: bool = False,
) -> dict[str, Value]:
    """slime's flags for the trackers that are asked for, without dashes; empty for none.

    slime names a W&B run after its group (wandb_utils.py:46-52), so each stage has a group of its own; the random
    suffix is left off, which would be another one at each start.
    """
    flags: dict[str, Value] = {}
    if wandb_project:
        flags |= {"use-wandb": True, "wandb-project": wandb_project, "wandb-group": f"{run_id}-{stage}"}
        flags["disable-wandb-random-suffix"] = True
        if wandb_team:
            flags["wandb-team"] = wandb_team
    if tensorboard:
        flags["use-tensorboard"] = True
    return flags
