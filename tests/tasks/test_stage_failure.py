"""How a stage tells of a failed trainer: the cause and the remedy on a line of their own, and whose fault it is."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from plugins.rayjobs.settings import HeadInfo, write_info
from plugins.slime.progress import format_line
from tasks.chain import _gist, _same_failures
from tasks.stage_attempt import PodUnfit, TrainerFailed
from tasks.stage_failure import LONGEST_LINE, LONGEST_TEXT
from tasks.train_stage import train_stage
from tests.tasks.test_train_stage import Bench, ScriptedJobs, Start

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
MINE = "ValueError: mine"
ECC = "RuntimeError: CUDA error: uncorrectable ECC error encountered"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def crash(error: str, *frames: str):
    lines = [
        "Traceback (most recent call last):",
        *(f'  File "{frame}", line 3, in f' for frame in frames or ("a.py",)),
    ]
    return lambda start: start.say(*lines, "    work()", error)


def failure(bench: Bench, trainer, kind: type[Exception] = TrainerFailed, **changes) -> str:
    with pytest.raises(kind) as caught:
        train_stage(bench.stage(**changes), ScriptedJobs(trainer, "FAILED"))
    assert type(caught.value) is kind
    return str(caught.value)


def test_the_second_line_says_what_happened_and_what_to_change(bench: Bench) -> None:
    first, second, third, *rest = failure(bench, crash(OOM)).split("\n")
    assert first.endswith(
        "before its first iteration [cuda-out-of-memory-training: torch.OutOfMemoryError: CUDA out of memory. Tried to "
        "allocate # GiB.]."
    )
    assert second.startswith("cuda-out-of-memory-training: The GPUs ran out of memory in training. What to do: Lower ")
    assert "parallelism.max_tokens_per_gpu" in second
    assert third == "Its last lines:" and rest[-1] == OOM


def test_two_equal_failures_are_known_as_such_with_and_without_a_known_cause(bench: Bench) -> None:
    said = [failure(bench, crash(error), attempt=n) for n, error in enumerate([OOM, OOM, MINE, MINE], start=1)]
    where, causes = zip(*map(_gist, said), strict=True)
    assert set(where) == {"before its first iteration"}
    assert causes[0].startswith("cuda-out-of-memory-training: ") and causes[3] == MINE
    assert _same_failures(said[:2]) and _same_failures(said[2:]) and not _same_failures(said[1:3])


def test_a_fault_of_the_machine_is_not_the_trainers(bench: Bench) -> None:
    said = failure(bench, crash(ECC), PodUnfit)
    assert "gpu-fault" in said and "another host" in said


@pytest.mark.parametrize(("promised", "kind"), [(None, TrainerFailed), (1e-9, TrainerFailed), (500, PodUnfit)])
def test_a_full_disk_is_the_hosts_when_our_files_are_far_from_what_was_asked_for(
    bench: Bench, promised: float | None, kind: type[Exception]
) -> None:
    (bench.root / "own").mkdir(parents=True)
    (bench.root / "own" / "file").write_bytes(b"some bytes")
    full = crash("OSError: [Errno 28] No space left on device: '/x'")
    assert "disk-full" in failure(bench, full, kind, pod={"min_disk_gb": promised})


def test_what_an_actor_said_after_the_drivers_death_is_looked_up_in_rays_logs(bench: Bench) -> None:
    stage, logs = bench.stage(), bench.folder / "ray-logs"
    logs.mkdir()
    stage.ray_state.mkdir(parents=True)
    write_info(stage.ray_state, HeadInfo("", "", "", str(logs), "", 1, 1))
    crashed = "\n".join(
        ["Traceback (most recent call last):", '  File "m.py", line 1, in f', "KeyError: 'optimizer'", ""]
    )

    def train(start: Start) -> None:
        (logs / "worker-a-01-7.err").write_text(f":actor_name:MegatronTrainRayActor\n{crashed}")
        start.say("the driver is gone")

    with pytest.raises(TrainerFailed, match="optimizer-not-saved: FAILED: the driver"):
        train_stage(stage, ScriptedJobs(train, "FAILED"))


def test_a_trainer_that_stands_still_is_stopped_and_fails(bench: Bench) -> None:
    quick = {"stall_minutes": 0.004, "start_minutes": 0.004}
    wait = "[2030-01-01 00:00:00] placement_group.py:64 - Waiting for placement group of 8 GPUs (elapsed 30s): 4 GPUs "
    jobs = ScriptedJobs(lambda start: start.say(f"{wait}registered with Ray, 4 available."), "RUNNING")
    with pytest.raises(TrainerFailed) as caught:
        train_stage(bench.stage(watchdog=quick), jobs)
    first, second, *_ = str(caught.value).split("\n")
    assert "made no progress and was stopped" in first and first.endswith("[stall-placement-group in start].")
    assert "4 GPUs registered with Ray" in second and "pod.ray_cpus" in second
    assert jobs.stopped == ["run-1-sft-1"]
    assert _gist(str(caught.value)) == ("before its first iteration", "stall-placement-group in start")
    warned = [line for line in bench.said if "no sign of progress" in line]
    assert len(warned) == 1
    assert any("stall-placement-group" in (beat.warning or "") for beat in bench.ear.beats)


def test_a_watchdog_that_is_off_lets_a_trainer_be(bench: Bench) -> None:
    def train(start: Start) -> None:
        bench.ear.ended.set()

    off = {"stall_minutes": None, "start_minutes": 0.001}
    with pytest.raises(Exception, match="Cancelling"):
        train_stage(bench.stage(watchdog=off), ScriptedJobs(train, "RUNNING"))


def test_output_that_is_worth_nothing_is_a_warning_of_the_heartbeat(bench: Bench) -> None:
    bad = {"rollout/truncated_ratio": 1.0, "rollout/repetition_frac": 0.9, "perf/rollout_time": 2.0}

    def train(start: Start) -> None:
        for number in range(2):
            start.say(format_line("rollout", number, {"rollout/raw_reward": 0.0}, file="a.py", line=1, now=NOW))
            start.say(format_line("perf", number, bad, file="a.py", line=1, now=NOW))
            start.say(format_line("step", number, {"train/loss": 1.0}, file="a.py", line=1, now=NOW))
        start.save(7)

    section = {"extra_args": {"rollout-batch-size": 2, "n-samples-per-prompt": 4}, "environment": {"url": "http://e"}}
    result = train_stage(bench.stage(name="rl", section=section), ScriptedJobs(train))
    beat = bench.ear.beats[-1]
    assert "garbled-output" in (beat.warning or "")
    assert beat.figures["truncated"] == 1.0 and beat.split == {"generate": 2.0}
    assert result.last == {"loss": 1.0, "reward": 0.0}
    assert json.loads(beat.model_dump_json())["figures"]["reward"] == 0.0


NOW = datetime(2030, 1, 1)


def test_long_lines_and_control_characters_do_not_get_into_the_error(bench: Bench) -> None:
    def train(start: Start) -> None:
        start.say(*["z" * 450_000] * 25, "\x1b]0;PWNED\x07\x1b[2Jlast\x00 words")

    said = failure(bench, train)
    assert len(said) < LONGEST_TEXT + 1000 and max(map(len, said.splitlines())) <= LONGEST_LINE
    assert said.endswith("last words") and not set("\x00\x07\x1b") & set(said)


def test_a_secret_at_the_place_where_a_line_is_cut_is_not_shown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    said = failure(bench, lambda start: start.say("z" * (LONGEST_LINE - 10) + "hf_verysecret"))
    assert "hf_v" not in said and "***" in said


def test_a_bar_that_a_command_never_ended_is_among_its_last_lines(bench: Bench) -> None:
    def train(start: Start) -> None:
        start.log.write_text("epoch 1\nbar 10%\rbar 20%\r")

    quick = {"stall_minutes": 0.004, "start_minutes": 0.004}
    section = {"command": "train", "num_rollout": 8}
    stage = bench.stage(watchdog=quick, trainer={"kind": "command"}, section=section)
    with pytest.raises(TrainerFailed) as caught:
        train_stage(stage, ScriptedJobs(train, "RUNNING"))
    assert str(caught.value).endswith("Its last lines:\nepoch 1\nbar 20%")


def test_a_known_cause_that_was_survived_is_mentioned_and_not_blamed(bench: Bench) -> None:
    def train(start: Start) -> None:
        crash("OSError: [Errno 28] No space left on device")(start)
        start.say("went on")
        crash(MINE)(start)

    said = failure(bench, train)
    assert said.split("\n")[0].endswith(f"[{MINE}].") and _gist(said) == ("before its first iteration", MINE)
    assert "Earlier in the log, and survived: disk-full (OSError: [Errno 28] No space left on device)." in said
