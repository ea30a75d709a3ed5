"""One stage of one run, attempt after attempt: each a forked child that runs the real stage, watched and killed.

parent (the control plane, and fate)  --fork-->  engine: train_stage  --subprocess-->  trainer
"""

import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from blocks.recipe import Recipe
from plugins.slime import layout
from tasks.stage_attempt import Stage
from tasks.stage_contract import Heartbeat, StageOrder
from tasks.train_stage import train_stage
from tests.relay.fates import Fate, Losses
from tests.relay.processes import ProcessJobs, end_jobs

RUN = "run-1"
ROWS, BATCH = 30, 4
ROLLOUTS = {"sft": 11, "rl": 5}
MOST_ATTEMPTS = 10
ATTEMPT_S, NOTICE_S = 90.0, 25.0
DATA = Path(__file__).parents[2] / "deployments" / "recipes" / "data"
MODEL = {"num-layers": 1, "hidden-size": 32, "ffn-hidden-size": 64, "num-attention-heads": 2}
SECTIONS: dict[str, dict[str, Any]] = {
    "sft": {"rollout": {"batch_size": BATCH}, "optimisation": {"lr": 3e-3}, "extra_args": {}},
    "rl": {
        "environment": {"task": "arithmetic"},
        "rollout": {"batch_size": BATCH, "n_samples": 2, "max_response_len": 3},
        "optimisation": {"lr": 1e-3},
        "extra_args": {},
    },
}


class Noted:
    """A listener that writes heartbeats down, as Prefect keeps them."""

    def __init__(self, file: Path) -> None:
        self._file, self._last = file, ""

    def beat(self, beat: Heartbeat) -> None:
        text = beat.model_dump_json(include={"stage", "attempt", "phase", "durable", "iteration", "restored"})
        if text != self._last:
            self._last = text
            with self._file.open("a") as file:
                file.write(f"{text}\n")

    def ended_from_outside(self) -> str | None:
        return None


@dataclass
class Relay:
    """One stage of one run, attempt after attempt. pods: how many there were. log: what happened, for a breach."""

    folder: Path
    plan: Losses
    attempt: int = 0
    pods: int = 0
    silent_until: float = 0.0
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.stores = [self.folder / f"store-{number}" for number in range(self.plan.stores)]
        self.data = self.folder / "rows.jsonl"
        lines = (DATA / f"demo_{self.plan.stage}.jsonl").read_text().splitlines(keepends=True)
        self.data.write_text("".join(lines[:ROWS]))
        self.beats, self.batches = self.folder / "beats.jsonl", self.folder / "batches.jsonl"
        self.beats.touch()

    @property
    def pod(self) -> Path:
        return self.folder / f"pod-{self.pods}"

    @property
    def save_dir(self) -> Path:
        return self.pod / "runs" / RUN / self.plan.stage / "save"

    @property
    def jobs(self) -> Path:
        return self.pod / "jobs"

    def heard(self) -> list[Heartbeat]:
        """All heartbeats of all attempts."""
        return [Heartbeat.model_validate_json(line) for line in lines_of(self.beats)]

    def stage(self) -> Stage:
        """The attempt as its engine makes it, knowing what the control plane heard of those before."""
        beats = self.heard()
        section = SECTIONS[self.plan.stage]
        args = section["extra_args"] | ({"async-save": True} if self.plan.asynchronous else {})
        more = {"num_rollout": ROLLOUTS[self.plan.stage], "save_interval": self.plan.save_interval}
        uris = [f"folder:{store}" for store in self.stores]
        raw = {
            "name": "losses",
            "trainer": {"kind": "tinyslime"},
            "model": {"args": MODEL},
            self.plan.stage: {**section, "data": str(self.data), "extra_args": args, **more},
            "checkpoint": {"store": uris, "final_upload_minutes": 1, "store_patience_minutes": 1},
            "env": {"TINYSLIME_BATCH_LOG": str(self.batches), "TINYSLIME_STEP_DELAY_S": "0.03"},
        }
        order = StageOrder(
            run_id=RUN,
            stage=self.plan.stage,
            attempt=self.attempt,
            pod=f"p{self.pods}",
            recipe=Recipe.model_validate(raw),
            data_path=str(self.data),
            data_rows=ROWS,
            durable=max((beat.durable for beat in beats if beat.durable is not None), default=None),
            trained=max((beat.iteration for beat in beats if beat.iteration is not None), default=None),
            save_interval=self.plan.save_interval,
        )
        said = self.folder / f"said-{self.attempt}.txt"
        return Stage(order, Noted(self.beats), lambda line: _append(said, line), lambda _line: None, root=self.pod)

    def engine(self) -> NoReturn:
        """The stage engine, in a child: ends with 0 when the stage is complete."""
        signal.signal(signal.SIGTERM, _raise_ended)
        code = 1
        try:
            train_stage(self.stage(), ProcessJobs(self.jobs))
            code = 0
        except BaseException:
            _append(self.folder / f"said-{self.attempt}.txt", traceback.format_exc(limit=-3))
        finally:
            os._exit(code)

    def run(self) -> bool:
        """Until complete; False when it never is."""
        fates = list(self.plan.fates)
        while self.attempt < MOST_ATTEMPTS:
            self.attempt += 1
            engine = os.fork()
            if engine == 0:
                self.engine()
            code = self._watch(engine, fates.pop(0) if fates else None)
            if code == 0:
                return True
        return False

    def batches_of(self, attempt: int) -> int:
        return sum(f'"attempt": "{attempt}"' in line for line in lines_of(self.batches))

    def _watch(self, engine: int, fate: Fate | None) -> int | None:
        """Wait for the engine, or for the moment when fate strikes; its exit code, None when it was killed."""
        struck = _due(self, fate) if fate else (lambda: False)
        silent, since = self.plan.silent, time.monotonic()
        deaf = self.stores[-1] if silent and silent[0] == self.attempt else None
        while time.monotonic() - since < ATTEMPT_S:
            if deaf and self.batches_of(self.attempt):
                _go_silent(deaf)
                self.silent_until, deaf = time.monotonic() + silent[1], None  # type: ignore[index]
            if self.stores[-1].is_file() and time.monotonic() >= self.silent_until:
                _answer_again(self.stores[-1])
            if (code := _ended(engine)) is not None:
                self.log.append(f"attempt {self.attempt} ended by itself with {code}")
                return code
            if struck():
                time.sleep(fate.delay_s if fate else 0)
                return self._strike(engine, fate)
            time.sleep(0.003)
        self.log.append(f"attempt {self.attempt} hung for {ATTEMPT_S:g} s")
        return self._strike(engine, Fate("pod", "", 0, 0, False))

    def _strike(self, engine: int, fate: Fate | None) -> int | None:
        assert fate
        self.log.append(f"attempt {self.attempt}: {fate.kind} lost at {fate.trigger}, disk kept: {fate.keeps_disk}")
        if fate.kind == "trainer":
            end_jobs(self.jobs)
            code = _wait(engine, NOTICE_S)
        elif fate.kind == "notice":
            os.kill(engine, signal.SIGTERM)
            code = _wait(engine, NOTICE_S)
        else:
            os.kill(engine, signal.SIGKILL)
            code = _wait(engine, NOTICE_S)
            if fate.kind != "engine":
                end_jobs(self.jobs)
        if not fate.keeps_disk:
            end_jobs(self.jobs)
            if self.pods:
                shutil.rmtree(self.pod, ignore_errors=True)
            self.pods += 1
        return code if code == 0 else None


def _due(relay: Relay, fate: Fate) -> Callable[[], bool]:
    before = set(_names(relay.save_dir))
    tracker = layout.TRACKER

    def text() -> str:
        file = relay.save_dir / tracker
        return file.read_text() if file.exists() else ""

    was, beats = text(), len(lines_of(relay.beats))

    def durable() -> bool:
        return any('"durable":null' not in line for line in lines_of(relay.beats)[beats:])

    return {
        "batch": lambda: relay.batches_of(relay.attempt) >= fate.batches,
        "saving": lambda: any(name.startswith("iter_") for name in set(_names(relay.save_dir)) - before),
        "tracker": lambda: text() != was,
        "sealed": lambda: any(name.endswith(".manifest.json") for name in set(_names(relay.save_dir)) - before),
        "durable": durable,
        "start": lambda: (relay.jobs / f"{RUN}-{relay.plan.stage}-{relay.attempt}.pid").exists(),
    }[fate.trigger]


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _append(file: Path, line: str) -> None:
    with file.open("a") as output:
        output.write(f"{line}\n")


def _raise_ended(_number: int, _frame: object) -> NoReturn:
    raise SystemExit("terminated")


def _ended(child: int) -> int | None:
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _wait(child: int, timeout_s: float) -> int:
    deadline = time.monotonic() + timeout_s
    while (code := _ended(child)) is None:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return code


def _go_silent(store: Path) -> None:
    if store.is_dir():
        store.rename(store.with_name(f"{store.name}.away"))
    store.write_text("in the way")


def _answer_again(store: Path) -> None:
    store.unlink()
    away = store.with_name(f"{store.name}.away")
    if away.is_dir():
        away.rename(store)
