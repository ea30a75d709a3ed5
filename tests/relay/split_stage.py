"""The split again, with whole stages: attempt 1's engine, trainer and publisher live on while attempt 2 does the work.

Attempt 1's trainer saves once, hangs until attempt 2 is through, and saves again. Its stage must end as fenced, with
its trainer stopped, and the store must hold what attempt 2 trained.
"""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from blocks.recipe import Recipe
from plugins.checkpoints.stores.open import open_store
from plugins.errors import ControlPlaneError, Fenced
from plugins.slime import layout
from plugins.slime.hooks import PROGRESS_FILE
from plugins.slime.progress import format_line, format_loaded
from tasks.stage_attempt import Stage
from tasks.stage_contract import StageOrder
from tasks.train_stage import train_stage
from tests.relay.attempts import Deaf
from tests.relay.content import RUN, STAGE, Ident, ident_of, write
from tests.relay.death import Death
from tests.relay.figures import DOUBLE, Figures
from tests.relay.worlds import make_world

FIRST, LAST = 3, 7
LONGEST_S = 60.0


@dataclass
class Trainer:
    """A trainer in a thread, in the place of a Ray job: saves FIRST if it starts cold, waits for `go`, saves LAST."""

    attempt: int
    go: threading.Event
    saved: threading.Event = field(default_factory=threading.Event)
    state: str = "RUNNING"
    stopped: list[str] = field(default_factory=list)

    def wait_ready(self, _timeout_s: float) -> None:
        """Always."""

    def knows(self, _submission_id: str) -> bool:
        return False

    def submit(self, _id: str, argv: Sequence[str], env: Mapping[str, str], _cwd: Path, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._train, args=(list(argv), env, log), daemon=True).start()

    def status(self, _submission_id: str) -> str:
        return self.state

    def exit_code(self, _submission_id: str) -> int | None:
        return None

    def message(self, _submission_id: str) -> str | None:
        return None

    def stop(self, submission_id: str, timeout_s: float) -> str:
        self.stopped.append(submission_id)
        raise ControlPlaneError("Ray does not answer: the network is cut")

    def _train(self, argv: list[str], env: Mapping[str, str], log: Path) -> None:
        save_dir = Path(env["TRAINSTACK_SAVE_DIR"])
        resumed = layout.read_tracker(save_dir) if "--load" in argv else None
        with log.open("a", buffering=1) as file:
            if resumed is not None:
                file.write(format_loaded(resumed, save_dir, now=datetime(2030, 1, 1)) + "\n")
            first = 0 if resumed is None else resumed + 1
            data = {"data/first_group": first, "data/first_index": first, "data/exact": 1}
            hook = Path(env[PROGRESS_FILE])
            hook.parent.mkdir(parents=True, exist_ok=True)
            hook.write_text(json.dumps({"kind": "rollout", "number": first, "values": data}) + "\n")
            self._say(file, first)
            if resumed is None:
                self._save(save_dir, FIRST)
            self.saved.set()
            self.go.wait(LONGEST_S)
            self._save(save_dir, LAST)
            self._say(file, LAST)
        if self.attempt > 1:
            self.state = "SUCCEEDED"

    def _say(self, file: Any, step: int) -> None:
        values = {"train/loss": 1.0}
        file.write(format_line("step", step, values, file="train.py", line=1, now=datetime(2030, 1, 1)) + "\n")

    def _save(self, save_dir: Path, iteration: int) -> None:
        rng: Any = None  # a writer that does not die needs none
        write(save_dir, Ident(iteration, f"a{self.attempt}"), Death(), rng, asynchronous=False)


def _stage(folder: Path, uris: list[str], attempt: int) -> Stage:
    data = folder / "rows.jsonl"
    data.write_text("{}\n")
    section = {"data": str(data), "num_rollout": LAST + 1, "save_interval": 4, "extra_args": {"rollout-batch-size": 4}}
    checkpoint = {"store": uris, "final_upload_minutes": 1}
    raw = {"name": "split", "trainer": {"kind": "tinyslime"}, "sft": section, "checkpoint": checkpoint}
    order = StageOrder(
        run_id=RUN, stage=STAGE, attempt=attempt, pod="p", recipe=Recipe.model_validate(raw), data_path=str(data)
    )
    return Stage(order, Deaf(), lambda _line: None, lambda _line: None, root=folder / f"pod-{attempt}")


def split_stages(kind: str, folder: Path) -> Figures:
    """Two stages over one store of this kind."""
    figures, ends = Figures(), []
    world = make_world(kind, folder)
    if kind == "hub":
        os.environ["HF_TOKEN"], os.environ["HF_ENDPOINT"] = world.api.token, world.url
    uri, go = world.open().uri, threading.Event()
    uris = [uri, f"folder:{folder}/far"] if kind == "volume" else [uri]  # a volume alone is read by nobody else
    first, second = Trainer(1, go), Trainer(2, threading.Event())
    second.go.set()

    def old() -> None:
        try:
            ends.append(train_stage(_stage(folder, uris, 1), first))
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=old, daemon=True)
    thread.start()
    first.saved.wait(LONGEST_S)
    store, seeds = open_store(uri), {"a1", "a2"}
    waited = threading.Event()
    for _ in range(600):
        if store.list(RUN, STAGE):
            break
        waited.wait(0.1)
    result = train_stage(_stage(folder, uris, 2), second)
    go.set()
    thread.join(LONGEST_S)
    found = [ident_of(manifest, seeds) for manifest in store.list(RUN, STAGE)]
    checks = {
        f"attempt 2 went on from {result.resumed_from}": result.resumed_from == FIRST,
        f"attempt 1's stage ended with {ends!r}": len(ends) == 1 and isinstance(ends[0], Fenced),
        "attempt 1's trainer was not stopped": first.stopped == [f"{RUN}-{STAGE}-1"],
        f"the store holds {found}": found == [Ident(LAST, "a2"), Ident(FIRST, "a1")],
    }
    figures.kinds[f"split stages {kind}"] += 1
    for text, right in checks.items():
        if not right:
            figures.breach(DOUBLE, f"[split stages {kind}] {text}")
    return figures
