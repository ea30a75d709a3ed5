"""One attempt of a stage with a real store, a real publisher and a scripted trainer instead of Ray's jobs."""

import pickle
import shutil
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from blocks.recipe import Recipe
from plugins.checkpoints.stores.folder import FolderStore
from plugins.errors import ControlPlaneError, Fenced, StoreError, UserError
from plugins.slime import layout
from plugins.slime.cursor import Cursor
from plugins.slime.progress import format_line, format_loaded
from tasks.stage_attempt import ResumeUnproved, Stage, StageEnded, TrainerFailed
from tasks.stage_contract import Heartbeat, InitFrom, StageOrder
from tasks.train_stage import train_stage
from tests.plugins.checkpoints.conftest import Trainer

RUN = "run-1"
NOW = datetime(2030, 1, 1)


@dataclass
class Start:
    """How the trainer was started."""

    argv: list[str]
    env: Mapping[str, str]
    log: Path

    def flag(self, name: str) -> str | None:
        return self.argv[self.argv.index(name) + 1] if name in self.argv else None

    def save(self, *iterations: int) -> None:
        """Save iterations as slime does, each with its log line."""
        save_dir = Path(self.env["TRAINSTACK_SAVE_DIR"])
        trainer, load_from = Trainer(save_dir), layout.read_tracker(save_dir)
        if self.flag("--load") and load_from is not None:
            self.say(format_loaded(load_from, Path(self.flag("--load") or ""), now=NOW))
        first = 0 if self.flag("--load") is None else (load_from or 0) + 1
        self.say(format_line("step", first, {"train/loss": 1.0}, file="train.py", line=1, now=NOW))
        for iteration in iterations:
            trainer.save(iteration, export=True)
            self.say(format_line("step", iteration, {"train/loss": 1.0}, file="train.py", line=1, now=NOW))

    def say(self, *lines: str) -> None:
        with self.log.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)


@dataclass
class ScriptedJobs:
    """`RayJobs` whose job is a function: it runs to its end in `submit`, then the job has its last status."""

    trainer: Callable[[Start], None]
    last: str = "SUCCEEDED"
    known: set[str] = field(default_factory=set)
    stopped: list[str] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    deaf: bool = False

    def wait_ready(self, timeout_s: float) -> None:
        pass

    def knows(self, submission_id: str) -> bool:
        return submission_id in self.known

    def submit(self, submission_id: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> None:
        self.known.add(submission_id)
        log.parent.mkdir(parents=True, exist_ok=True)
        self.starts.append(Start(list(argv), env, log))
        self.trainer(self.starts[-1])

    def status(self, submission_id: str) -> str:
        return self.last

    def exit_code(self, submission_id: str) -> int | None:
        return 1 if self.last == "FAILED" else None

    def message(self, submission_id: str) -> str | None:
        return None

    def stop(self, submission_id: str, timeout_s: float) -> str:
        self.stopped.append(submission_id)
        if self.deaf:
            raise ControlPlaneError("Ray does not answer")
        return "STOPPED"


@dataclass
class Ear:
    """Keeps the heartbeats; says that the flow run was ended once `ended` is set."""

    ended: threading.Event = field(default_factory=threading.Event)
    beats: list[Heartbeat] = field(default_factory=list)

    def beat(self, beat: Heartbeat) -> None:
        self.beats.append(beat)

    def ended_from_outside(self) -> str | None:
        return "Cancelling" if self.ended.is_set() else None


class Bench:
    """Makes attempts of one stage on one pod (its `root`) with one store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.store = folder, folder / "pod", FolderStore(folder / "store")
        self.data = folder / "rows.jsonl"
        self.data.write_text("{}\n")
        self.ear, self.said = Ear(), []

    def stage(self, attempt: int = 1, *, name: Any = "sft", root: Path | None = None, **changes: Any) -> Stage:
        init = changes.pop("init", None)
        section = {
            "data": str(self.data),
            "num_rollout": 8,
            "save_interval": 4,
            "extra_args": {"rollout-batch-size": 4},
        }
        raw: dict[str, Any] = {
            "name": "small",
            "trainer": {"kind": "tinyslime"},
            name: section | changes.pop("section", {}),
            "checkpoint": {"store": self.store.uri, "final_upload_minutes": 0.5} | changes.pop("checkpoint", {}),
            **changes,
        }
        order = StageOrder(
            run_id=RUN,
            stage=name,
            attempt=attempt,
            pod="p",
            recipe=Recipe.model_validate(raw),
            data_path=str(self.data),
            data_rows=8,
            init=init,
        )
        return Stage(order, self.ear, self.said.append, lambda _line: None, root=root or self.root)

    def stored(self, stage: str = "sft") -> list[int]:
        return [manifest.iteration for manifest in self.store.list(RUN, stage)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_trainer_that_reaches_its_end_gives_a_result_and_a_durable_checkpoint(bench: Bench) -> None:
    jobs = ScriptedJobs(lambda start: start.save(3, 7))
    result = train_stage(bench.stage(), jobs)
    assert (result.outcome, result.first_iteration, result.last_iteration) == ("completed", 0, 7)
    assert (result.resumed_from, result.first, result.last) == (None, {"loss": 1.0}, {"loss": 1.0})
    assert result.checkpoint_uri == f"{bench.store.uri}/{RUN}/sft/iter_0000007"
    assert result.export_uri == f"{result.checkpoint_uri}/hf/7"
    assert bench.stored()[0] == 7 and set(result.seconds) >= {"ray", "restore", "train"}
    assert jobs.starts[0].flag("--load") is None
    assert jobs.stopped == []
    last = bench.ear.beats[-1]
    assert (last.of, last.attempt, last.stage) == (8, 1, "sft")


def test_a_next_attempt_on_another_pod_resumes_from_the_store(bench: Bench) -> None:
    with pytest.raises(TrainerFailed):
        train_stage(bench.stage(), ScriptedJobs(lambda start: start.save(3), last="FAILED"))
    jobs = ScriptedJobs(lambda start: start.save(7))
    stage = bench.stage(2, root=bench.folder / "second-pod")
    result = train_stage(stage, jobs)
    assert (result.resumed_from, result.first_iteration, result.last_iteration) == (3, 4, 7)
    assert {row["what"]: row["verdict"] for row in result.proof}["loaded iteration"] == "ok"
    (start,) = jobs.starts
    assert start.flag("--load") == str(stage.save_dir) == start.env["TRAINSTACK_LOAD_DIR"]
    assert start.flag("--start-rollout-id") == "4"
    assert bench.store.latest(RUN, "sft").parent is None or bench.stored() == [7, 3]


def test_a_stage_that_is_complete_starts_no_trainer(bench: Bench) -> None:
    train_stage(bench.stage(), ScriptedJobs(lambda start: start.save(7)))
    jobs = ScriptedJobs(lambda start: pytest.fail("started"))
    result = train_stage(bench.stage(2), jobs)
    assert (result.outcome, result.last_iteration, jobs.starts) == ("already complete", 7, [])


@pytest.mark.parametrize(
    ("trainer", "last", "why"),
    [
        (lambda start: start.say("Traceback", "ValueError: no such thing"), "FAILED", r"ended FAILED \(exit code 1\)"),
        (lambda start: start.save(), "SUCCEEDED", "saved nothing new"),
        (lambda start: start.save(3), "SUCCEEDED", "ended well at iteration 3 although the last one is 7"),
        (lambda start: start.save(7), "STOPPED", r"ended STOPPED \(Ray gives no reason\)"),
    ],
)
def test_a_trainer_that_does_not_reach_its_end_has_failed_whatever_its_exit_code(
    bench: Bench, trainer: Callable[[Start], None], last: str, why: str
) -> None:
    with pytest.raises(TrainerFailed, match=rf"Run {RUN}, {RUN}-sft-1: the trainer .*{why}"):
        train_stage(bench.stage(), ScriptedJobs(trainer, last))


def test_the_message_of_a_failure_ends_with_the_last_lines_of_the_trainers_log(bench: Bench) -> None:
    lines = [f"line {number}" for number in range(60)]
    with pytest.raises(TrainerFailed) as caught:
        train_stage(bench.stage(), ScriptedJobs(lambda start: start.say(*lines, "ValueError: nan"), "FAILED"))
    said = str(caught.value).splitlines()
    assert said[-1] == "ValueError: nan" and said[0].endswith("Its last lines:")
    assert "line 59" in said and "line 20" not in said
    with pytest.raises(TrainerFailed, match=r"\(it wrote nothing\)$"):
        train_stage(bench.stage(2), ScriptedJobs(lambda start: None, "FAILED"))


def test_what_a_failed_trainer_completed_is_in_the_store_before_the_stage_ends(bench: Bench) -> None:
    with pytest.raises(TrainerFailed):
        train_stage(bench.stage(), ScriptedJobs(lambda start: start.save(3), "FAILED"))
    assert bench.stored() == [3]


def test_a_trainer_that_loaded_another_iteration_than_the_restored_one_has_failed(bench: Bench) -> None:
    with pytest.raises(TrainerFailed):
        train_stage(bench.stage(), ScriptedJobs(lambda start: start.save(3), "FAILED"))
    jobs = ScriptedJobs(lambda start: start.say(format_loaded(1, Path(start.flag("--save")), now=NOW)), "RUNNING")
    with pytest.raises(ResumeUnproved, match="loaded iteration 1, but 3 was restored"):
        train_stage(bench.stage(2), jobs)
    assert jobs.stopped == [f"{RUN}-sft-2"]


def test_a_trainer_that_starts_from_zero_after_a_restore_is_stopped(bench: Bench) -> None:
    with pytest.raises(TrainerFailed):
        train_stage(bench.stage(), ScriptedJobs(lambda start: start.save(3), "FAILED"))
    zero = format_line("step", 0, {"train/loss": 1.0}, file="train.py", line=1, now=NOW)
    with pytest.raises(ResumeUnproved, match="0 is the first iteration trained, but 4 comes first"):
        train_stage(bench.stage(2), ScriptedJobs(lambda start: start.say(zero), "RUNNING"))


def test_a_resumed_trainer_that_never_says_what_it_loaded_has_not_resumed(bench: Bench) -> None:
    with pytest.raises(TrainerFailed):
        train_stage(bench.stage(), ScriptedJobs(lambda start: start.save(3), "FAILED"))

    def train(start: Start) -> None:
        Trainer(Path(start.env["TRAINSTACK_SAVE_DIR"])).save(7, export=True)
        start.say(format_line("step", 4, {"train/loss": 1.0}, file="train.py", line=1, now=NOW))

    with pytest.raises(ResumeUnproved, match="slime started from --ref-load"):
        train_stage(bench.stage(2), ScriptedJobs(train))


def test_what_a_killed_attempt_saved_before_its_start_was_proved_is_not_taken_up(bench: Bench) -> None:
    stage = bench.stage(2)
    stage.save_dir.mkdir(parents=True)
    Trainer(stage.save_dir).save(3, export=True)
    stage.unproved_mark.touch()
    result = train_stage(stage, ScriptedJobs(lambda start: start.save(7)))
    assert result.resumed_from is None and bench.stored() == [7]
    assert any("was not proved" in line for line in bench.said) and not stage.unproved_mark.exists()


def test_a_trainer_that_is_done_before_it_said_where_it_started_still_has_its_last_checkpoint_stored(
    bench: Bench,
) -> None:
    jobs = ScriptedJobs(lambda start: Trainer(Path(start.env["TRAINSTACK_SAVE_DIR"])).save(7, export=True))
    assert train_stage(bench.stage(), jobs).last_iteration == 7 and bench.stored() == [7]


def drew(start: Start, **counters: int) -> None:
    """Save iteration 3, trained on 4 rollouts of 4 prompts, with such a cursor."""
    start.save(3)
    cursor = {"sample_offset": 20, "epoch_id": 0, "sample_group_index": 20, "sample_index": 20} | counters
    with zipfile.ZipFile(layout.dataset_state_file(Path(start.env["TRAINSTACK_SAVE_DIR"]), 3), "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(cursor, protocol=2))


def test_a_batch_that_was_drawn_ahead_is_drawn_again_from_a_view_of_the_save_dir(bench: Bench) -> None:
    with pytest.raises(TrainerFailed):
        train_stage(bench.stage(), ScriptedJobs(drew, "FAILED"))
    jobs, stage = ScriptedJobs(lambda start: start.save(7)), bench.stage(2)
    result = train_stage(stage, jobs)
    assert stage.load_dir == stage.dir / "load" and stage.cursor == Cursor(16, 0, 16, 16)
    (start,) = jobs.starts
    assert start.flag("--load") == str(stage.load_dir) == start.env["TRAINSTACK_LOAD_DIR"]
    assert start.flag("--save") == str(stage.save_dir) == start.env["TRAINSTACK_SAVE_DIR"]
    assert {row["what"]: row["verdict"] for row in result.proof}["loaded iteration"] == "ok"
    assert "the data goes on at prompt 16, sample 16 (epoch 0): 4 prompts had been drawn ahead" in "\n".join(bench.said)
    assert bench.stored() == [7, 3]


def test_prompts_that_a_resume_skips_are_counted(bench: Bench) -> None:
    with pytest.raises(TrainerFailed):
        train_stage(bench.stage(), ScriptedJobs(lambda start: drew(start, sample_offset=1), "FAILED"))
    train_stage(bench.stage(2), ScriptedJobs(lambda start: start.save(7)))
    said = "WARNING 4 prompts were drawn and never trained before iteration 3; the cursor cannot be put back"
    assert any(line.startswith(said) for line in bench.said), bench.said


def test_a_resumed_trainer_that_saves_nothing_new_has_failed(bench: Bench) -> None:
    with pytest.raises(TrainerFailed):
        train_stage(bench.stage(), ScriptedJobs(lambda start: start.save(3), "FAILED"))
    with pytest.raises(TrainerFailed, match=r"saved nothing new \(tracker: 3, restored: 3\)"):
        train_stage(bench.stage(2), ScriptedJobs(lambda start: None))


@pytest.mark.parametrize("deaf", [False, True], ids=["Ray answers", "Ray is silent"])
def test_a_cancel_stops_the_trainer_and_seals_what_is_complete(bench: Bench, deaf: bool) -> None:
    jobs = ScriptedJobs(lambda start: (start.save(3), bench.ear.ended.set()), "RUNNING", deaf=deaf)
    with pytest.raises(StageEnded, match="Cancelling"):
        train_stage(bench.stage(), jobs)
    assert jobs.stopped == [f"{RUN}-sft-1"]
    assert bench.stored() == [3]


def test_trainers_of_older_attempts_on_this_pod_are_stopped_before_anything_is_touched(bench: Bench) -> None:
    jobs = ScriptedJobs(lambda start: start.save(7), known={f"{RUN}-sft-1", f"{RUN}-sft-3", f"{RUN}-rl-1"})
    train_stage(bench.stage(4), jobs)
    assert jobs.stopped == [f"{RUN}-sft-1", f"{RUN}-sft-3"]


def test_an_attempt_that_was_overtaken_starts_no_trainer(bench: Bench) -> None:
    bench.store.claim(RUN, "sft", 5)
    jobs = ScriptedJobs(lambda start: start.save(7))
    with pytest.raises(Fenced):
        train_stage(bench.stage(4), jobs)
    assert jobs.starts == []


def test_an_attempt_that_is_overtaken_while_it_trains_stops_and_publishes_nothing_more(bench: Bench) -> None:
    jobs = ScriptedJobs(lambda start: (bench.store.claim(RUN, "sft", 2), start.save(3)), "RUNNING")
    with pytest.raises(Fenced):
        train_stage(bench.stage(), jobs)
    assert jobs.stopped == [f"{RUN}-sft-1"] and bench.stored() == []


def test_a_checkpoint_that_a_killed_attempt_completed_is_sealed_by_the_next_one(bench: Bench) -> None:
    stage = bench.stage(2)
    stage.save_dir.mkdir(parents=True)
    Trainer(stage.save_dir).save(3, export=True)
    result = train_stage(stage, ScriptedJobs(lambda start: start.save(7)))
    assert result.resumed_from == 3
    assert bench.stored() == [7, 3]


def test_a_torn_checkpoint_of_a_killed_attempt_is_not_used(bench: Bench) -> None:
    stage = bench.stage(2)
    stage.save_dir.mkdir(parents=True)
    Trainer(stage.save_dir).save(3, export=True, upto=7)
    jobs = ScriptedJobs(lambda start: start.save(7))
    assert train_stage(stage, jobs).resumed_from is None
    assert jobs.starts[0].flag("--load") is None
    assert any("incomplete checkpoint, which is not used" in line for line in bench.said)


def test_when_every_checkpoint_is_damaged_the_stage_does_not_silently_start_from_zero(bench: Bench) -> None:
    train_stage(bench.stage(), ScriptedJobs(lambda start: start.save(3, 7)))
    for file in (bench.folder / "store").rglob("common.pt"):
        file.write_bytes(bytes(len(file.read_bytes())))
    jobs = ScriptedJobs(lambda start: start.save(7))
    with pytest.raises(UserError, match=rf"(?s)No checkpoint of {RUN}/sft .* can be restored.*use a new run id"):
        train_stage(bench.stage(2, root=bench.folder / "second-pod"), jobs)
    assert jobs.starts == []


def test_a_stage_that_was_durable_once_never_starts_from_zero_even_if_its_store_is_empty(bench: Bench) -> None:
    jobs, stage = ScriptedJobs(lambda start: start.save(7)), bench.stage(3)
    stage.order = stage.order.model_copy(update={"durable": 7})
    with pytest.raises(UserError, match="durable before: iteration 7"):
        train_stage(stage, jobs)
    assert jobs.starts == []


def test_a_store_that_never_takes_the_last_checkpoint_is_a_store_error_in_bounded_time(bench: Bench) -> None:
    def lose_the_store(start: Start) -> None:
        start.save(7)
        shutil.rmtree(bench.folder / "store")
        (bench.folder / "store").write_text("in the way")

    with pytest.raises(StoreError, match="Checkpoint 7 is not durable yet"):
        train_stage(bench.stage(checkpoint={"final_upload_minutes": 0.002}), ScriptedJobs(lose_the_store))
    assert bench.ear.beats[-1].phase == "upload"


def test_a_cancel_during_the_last_upload_is_heard(bench: Bench) -> None:
    def fill_the_store(start: Start) -> None:
        start.save(7)
        shutil.rmtree(bench.folder / "store")
        (bench.folder / "store").write_text("in the way")

    class CancelledInTheUpload(Ear):
        def ended_from_outside(self) -> str | None:
            if self.beats[-1].phase != "upload":
                return None
            (bench.folder / "store").unlink(missing_ok=True)
            return "Cancelling"

    bench.ear = CancelledInTheUpload()
    with pytest.raises(StageEnded):
        train_stage(bench.stage(), ScriptedJobs(fill_the_store))
    assert bench.stored() == [7]


def test_a_command_trainer_needs_the_tracker_and_the_folder_only(bench: Bench) -> None:
    def train(start: Start) -> None:
        folder = layout.iteration_dir(Path(start.env["TRAINSTACK_SAVE_DIR"]), 7)
        folder.mkdir(parents=True)
        (folder / "weights.bin").write_bytes(b"weights")
        layout.write_tracker(folder.parent, 7)

    section = {"command": ["my-trainer", "--fast"], "extra_args": {}, "num_rollout": None}
    jobs = ScriptedJobs(train)
    result = train_stage(bench.stage(trainer={"kind": "command"}, section=section), jobs)
    assert jobs.starts[0].argv[-2:] == ["my-trainer", "--fast"]
    assert (result.last_iteration, result.export_uri) == (7, None)


RL = {"environment": {"task": "arithmetic"}, "extra_args": {"rollout-batch-size": 2, "n-samples-per-prompt": 4}}


def test_rl_starts_from_the_export_of_another_stage_and_has_its_environment_served(bench: Bench) -> None:
    sft = train_stage(bench.stage(), ScriptedJobs(lambda start: start.save(7)))

    def train(start: Start) -> None:
        assert httpx.get(f"{start.env['TRAINSTACK_ENV_URL']}/health", timeout=10).is_success
        start.save(7)

    jobs = ScriptedJobs(train)
    init = InitFrom(run_id=RUN, stage="sft", iteration=sft.last_iteration)
    train_stage(bench.stage(name="rl", section=RL, init=init), jobs)
    (start,) = jobs.starts
    weights = Path(start.flag("--hf-checkpoint") or "")
    assert weights.parent.name == "hf" and (weights / "config.json").is_file()
    assert bench.stored("rl") == [7]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{start.env['TRAINSTACK_ENV_URL']}/health", timeout=10)


def test_start_weights_that_the_store_does_not_have_are_named(bench: Bench) -> None:
    init = InitFrom(run_id="other", stage="sft", iteration=9)
    with pytest.raises(UserError, match=r"starts from other/sft iteration 9, which folder:.* does not have"):
        train_stage(bench.stage(name="rl", section=RL, init=init), ScriptedJobs(lambda start: start.save(7)))
