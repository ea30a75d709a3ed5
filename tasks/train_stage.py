"""One attempt of a stage, on the pod: find where to start from, start the trainer, follow it, publish what it saves.

What an attempt is stands in `stage_attempt.py`; where it starts from in `stage_restore.py` and `stage_weights.py`; the
trainer in `stage_trainer.py`; sealing and sending in `stage_publish.py`.
"""

import ctypes
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plugins.checkpoints.stores.several import SeveralStores
from plugins.errors import ControlPlaneError, StoreError
from plugins.rayjobs.jobs import RayJobs
from plugins.slime.command import check_scripts
from plugins.slime.dry_run import run_dry_parse
from plugins.slime.launch import TrainerSpec, build
from plugins.slime.nvlink import has_nvlink
from plugins.slime.shims import under_shims
from plugins.slime.weights import Weights
from tasks.nodes import own_address, trainer_env, wait_for_nodes
from tasks.stage_attempt import Stage
from tasks.stage_contract import StageResult
from tasks.stage_publish import publishing
from tasks.stage_restore import claim, find_start
from tasks.stage_trainer import run_trainer
from tasks.stage_weights import find_weights
from tasks.stores import stores_on_pod
from tasks.trainer_spec import Places, trainer_spec, with_own

RAY_READY_S = 180.0


def train_stage(stage: Stage, jobs: RayJobs | None = None) -> StageResult:
    """Carry one attempt through and return its result. jobs: None takes those of the pod's own Ray head.

    Raises TrainerFailed, ResumeUnproved, StageEnded, Fenced, StoreError, UserError; the trainer is stopped and what is
    complete is sealed before any of them leaves.
    """
    order = stage.order
    stores = stores_on_pod(order.recipe, stage.log)
    claim(stage, stores)
    stage.attempt_dir.mkdir(parents=True, exist_ok=True)
    stage.save_dir.mkdir(parents=True, exist_ok=True)
    with stage.timed("ray"):
        jobs = jobs or RayJobs(stage.ray_state)
        jobs.wait_ready(RAY_READY_S)
        wait_for_nodes(stage, jobs)
        _stop_older_attempts(stage, jobs)
    with stage.timed("restore"):
        find_start(stage, stores)
    with stage.timed("weights"):
        weights = find_weights(stage, stores)
    with _environment_server(stage) as env_url:
        launch = build(_trainer_spec(stage, weights, env_url))
        stage.expected_last, stage.load_dir = launch.expected_last, launch.load_dir
        if launch.architecture:
            order.lineage["model_args"] = shlex.join(launch.architecture)
        stage.progress.steps_per_rollout = _steps_per_rollout(launch.argv)
        stage.progress.trained_before = order.trained
        stage.progress.rewarded = order.stage == "rl"
        if _is_complete(stage):
            return _result(stage, stores, "already complete")
        if order.recipe.trainer.kind == "command":
            check_scripts(launch.argv, launch.cwd)
            launch = under_shims(launch, stage.attempt_dir / "shims")
        if order.recipe.trainer.kind == "slime":
            with stage.timed("flags"):
                run_dry_parse(launch.argv[0], launch.argv[2:], with_own(launch.env, order.recipe.env), launch.cwd)
        with publishing(stage, stores) as publisher:
            if stage.restored is not None and stage.restored not in stores.list(order.run_id, order.stage):
                publisher.offer(stage.restored.iteration)  # found on this pod: the stores get it in the background
            with stage.timed("train"):
                run_trainer(stage, jobs, launch, publisher)
    return _result(stage, stores, "completed")


def _stop_older_attempts(stage: Stage, jobs: RayJobs) -> None:
    """A stage engine that was killed leaves its Ray job training; two trainers must never share a save dir."""
    for number in range(1, stage.order.attempt):
        older = f"{stage.order.run_id}-{stage.order.stage}-{number}"
        if jobs.knows(older):
            jobs.stop(older, timeout_s=30)


@contextmanager
def _environment_server(stage: Stage) -> Iterator[str | None]:
    """The URL of the RL environment; a built-in task is served from here and ends with the stage."""
    section = stage.order.recipe.rl if stage.order.stage == "rl" else None
    environment = section.environment if section else None
    if environment is None or environment.task is None:
        yield environment.url if environment else None
        return
    ready = stage.attempt_dir / "environment.json"
    ready.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "plugins.http_env.server", "--task", environment.task, "--port", "0"]
    argv += ["--host", own_address(stage.order.recipe)]
    with (stage.attempt_dir / "environment.log").open("ab") as output:
        server = subprocess.Popen(
            [*argv, "--ready-file", str(ready)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
        )
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise ControlPlaneError(f"The environment server did not start; see {output.name} on the pod.")
            time.sleep(0.05)
        yield str(json.loads(ready.read_text())["url"])
    finally:
        server.terminate()
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a killed stage leaves no server behind


def _trainer_spec(stage: Stage, weights: Weights | None, env_url: str | None) -> TrainerSpec:
    order, recipe = stage.order, stage.order.recipe
    places = Places(
        save_dir=stage.save_dir,
        load_dir=stage.save_dir if stage.restored else None,
        init_dir=weights.hf_checkpoint if weights else None,
        ref_dir=weights.ref_load if weights else None,
        rollout_dir=stage.attempt_dir / "rollouts",
        data=Path(order.data_path) if order.data_path else None,
        eval_data={name: Path(path) for name, path in order.eval_paths.items()},
        env_url=env_url,
    )
    return trainer_spec(
        recipe,
        order.stage,
        places,
        run_id=order.run_id,
        attempt=order.attempt,
        save_interval=order.save_interval,
        data_rows=order.data_rows,
        nvlink=has_nvlink() if recipe.trainer.kind == "slime" else None,
        network=trainer_env(recipe),
    )


def _steps_per_rollout(argv: list[str]) -> int:
    flag = "--num-steps-per-rollout"
    return int(argv[argv.index(flag) + 1]) if flag in argv else 1


def _proof(stage: Stage) -> list[dict[str, str]]:
    """What showed that the start was the one asked for, for the result and its table."""
    rows = stage.proof.verdict(final=True).rows if stage.proof else ()
    words = {True: "ok", False: "WRONG", None: "not said"}
    return [
        {"what": row.what, "expected": row.expected, "seen": row.seen, "source": row.source, "verdict": words[row.ok]}
        for row in rows
    ]


def _is_complete(stage: Stage) -> bool:
    return stage.restored is not None and stage.restored.iteration == stage.expected_last


def _result(stage: Stage, store: SeveralStores, outcome: str) -> StageResult:
    order = stage.order
    newest = store.latest(order.run_id, order.stage)
    if newest is None:
        raise StoreError(
            f"{store.uri} has no checkpoint of {order.run_id}/{order.stage} although the stage ended well."
        )
    uri = store.uri_of(newest)
    place, *query = uri.split("?", 1)  # an S3 endpoint stands behind the path
    first, last = stage.progress.ends()
    exported = any(entry.path.startswith("hf/") for entry in newest.files)
    return StageResult(
        run_id=order.run_id,
        stage=order.stage,
        attempt=order.attempt,
        outcome="already complete" if outcome == "already complete" else "completed",
        resumed_from=stage.restored.iteration if stage.restored else None,
        first_iteration=stage.progress.first_iteration,
        last_iteration=newest.iteration,
        checkpoint_uri=uri,
        export_uri="?".join([f"{place}/hf/{newest.iteration}", *query]) if exported else None,
        first=first,
        last=last,
        seconds=stage.seconds,
        proof=_proof(stage),
        milestones=stage.pusher.done if stage.pusher else [],
        missed=stage.missed,
    )
