"""The proof of a resume: what must be seen, what must not, and what a sample cannot pretend."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from plugins.slime.cursor import Cursor
from plugins.slime.progress import Point, format_line, format_loaded, format_skipped
from plugins.slime.resume import ResumeProof, Verdict

SAVE = Path("/w/save")
NOW = datetime(2026, 11, 22, 20, 13, 27)
CURSOR = Cursor(sample_offset=80, epoch_id=0, sample_group_index=80, sample_index=640)
LOADED = format_loaded(19, SAVE, now=NOW)
REFERENCE = format_loaded(0, Path("/w/ref"), now=NOW)
STATE = f"{SAVE}/rollout/global_dataset_state_dict_19.pt"
READ_STATE = f"[2026-11-22 20:13:27] data_source.py:150 - load metadata from {STATE}"
NO_STATE = f"[2026-11-22 20:13:27] data_source.py:147 - Checkpoint {STATE} does not exist."
NO_TRACKER = f"WARNING: could not find the metadata file {SAVE}/latest_checkpointed_iteration.txt"


def said(kind: str, number: int) -> str:
    return format_line(kind, number, {"train/loss": 0.5}, file="model.py", line=918, now=NOW)


def hook(number: int, index: int = 640, group: int = 80, **more: float) -> str:
    values = {"data/first_index": index, "data/first_group": group, "data/exact": 1.0} | more
    return json.dumps({"kind": "rollout", "number": number, "values": values})


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def proof(restored: int | None = 19, cursor: Cursor | None = CURSOR, **options: object) -> ResumeProof:
    return ResumeProof(restored, cursor, **{"load_dir": SAVE, "clock": Clock(), **options})  # type: ignore[arg-type]


def after(judge: ResumeProof, *lines: str) -> Verdict:
    for line in lines:
        if line.startswith("{"):
            judge.hear_hook_line(line)
        else:
            judge.hear_line(line)
    return judge.verdict()


def test_a_resume_is_proved_by_load_line_first_iteration_and_cursor() -> None:
    judge = proof()
    assert after(judge).outcome == "pending"
    assert after(judge, LOADED, READ_STATE).outcome == "pending"
    assert after(judge, said("rollout", 20)).outcome == "pending"  # the data is not known yet
    verdict = after(judge, hook(20))
    assert verdict.proved and not verdict.failed and "19 loaded" in verdict.reason
    assert [(row.what, row.expected, row.seen, row.ok) for row in verdict.rows] == [
        ("loaded iteration", "19", "19", True),
        ("first iteration", "20", "20", True),
        ("next prompt", "80", "80", True),
        ("next sample", "640", "640", True),
        ("data cursor's file", "read", "read", True),
    ]


def test_order_of_log_and_hook_does_not_matter() -> None:
    assert after(proof(), hook(20), said("step", 20), LOADED).proved


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([format_loaded(9, SAVE, now=NOW)], "loaded iteration 9, but 19"),
        ([LOADED, said("rollout", 0)], "0 is the first iteration trained, but 20"),
        ([LOADED, said("rollout", 21)], "21 is the first"),
        ([LOADED, hook(0)], "0 is the first"),
        ([LOADED, hook(20, index=0, group=0)], "from 0, but 80 was saved as the next prompt"),
        ([LOADED, hook(20, index=648)], "from 648, but 640 was saved as the next sample"),
        ([LOADED, hook(20, index=632)], "from 632"),
        ([format_skipped("decoder.w"), LOADED], "decoder.w is not in the checkpoint"),
        ([LOADED, NO_STATE], "would start again from row 0"),
        ([NO_TRACKER], "found no tracker"),
        ([READ_STATE.replace("_19.pt", "_9.pt")], "cursor of iteration 9"),
    ],
)
def test_what_cannot_be_after_this_restore_fails_at_once(lines: list[str], words: str) -> None:
    verdict = after(proof(), *lines)
    assert verdict.failed and words in verdict.reason


def test_training_without_a_load_line_is_the_silent_fallback() -> None:
    clock = Clock()
    judge = proof(clock=clock)
    assert after(judge, REFERENCE, hook(20), said("step", 20)).outcome == "pending"  # the line may be on its way
    clock.now_s = 15.0
    verdict = judge.verdict()
    assert verdict.failed and "slime started from --ref-load" in verdict.reason
    assert after(judge, LOADED) == verdict  # a verdict stays


def test_wrong_data_without_a_load_line_names_the_fallback() -> None:
    verdict = after(proof(), hook(20, index=0, group=0))
    assert verdict.failed and "from 0, but 80" in verdict.reason and "started from --ref-load" in verdict.reason


def test_at_the_end_nothing_is_waited_for() -> None:
    judge = proof()
    after(judge, said("step", 20))
    assert judge.verdict(final=True).failed
    silent = proof()
    assert silent.verdict(final=True).outcome == "unproved"


def test_a_hook_that_tells_no_position_is_not_waited_for_for_ever() -> None:
    clock = Clock()
    judge = proof(clock=clock)
    assert after(judge, LOADED, said("rollout", 20)).outcome == "pending"
    clock.now_s = 20.0
    verdict = judge.verdict()
    assert verdict.proved
    assert [row.ok for row in verdict.rows if row.what == "next sample"] == [None]


def test_without_a_saved_cursor_load_line_and_iteration_prove() -> None:
    assert after(proof(cursor=None), LOADED, hook(20, index=7, group=7)).proved
    assert after(proof(cursor=None), LOADED, NO_STATE).failed


def test_where_samples_may_be_dropped_later_ones_are_right_and_earlier_ones_are_not() -> None:
    loose = {"data/exact": 0.0}
    assert after(proof(), LOADED, hook(20, index=656, group=82, **loose)).proved
    assert after(proof(), LOADED, hook(20, **loose)).proved
    assert after(proof(), LOADED, hook(20, index=632, group=79, **loose)).failed


def test_later_rollouts_are_not_compared_with_the_cursor() -> None:
    assert after(proof(), LOADED, hook(20), hook(21, index=648, group=81)).proved
    no_position = json.dumps({"kind": "rollout", "number": 20, "values": {"reward/samples": 0}})
    assert after(proof(), LOADED, no_position, hook(21, index=648, group=81)).outcome == "pending"


def test_step_lines_count_steps_only_when_told_how_many_make_an_iteration() -> None:
    assert after(proof(steps_per_rollout=4), LOADED, said("step", 80), hook(20)).proved
    assert after(proof(steps_per_rollout=4), LOADED, said("step", 79)).failed
    assert after(proof(), LOADED, said("step", 80)).outcome == "pending"
    assert after(proof(), LOADED, said("step", 80), hook(20)).proved


def test_a_view_must_be_what_is_loaded_and_where_the_cursor_is_read() -> None:
    view = Path("/w/load")
    loaded, read = format_loaded(19, view, now=NOW), READ_STATE.replace(str(SAVE), str(view))
    assert after(proof(load_dir=view), loaded, read, hook(20)).proved
    verdict = after(proof(load_dir=view), loaded, READ_STATE)
    assert verdict.failed and f"reads the data cursor in {SAVE}, but the right one is in {view}" in verdict.reason
    assert after(proof(load_dir=view, grace_s=0.0), LOADED, said("step", 20)).failed  # the save dir was not asked for
    assert after(proof(load_dir=view), loaded, hook(20, index=648, group=81)).failed  # the batch drawn ahead is skipped


def test_a_reference_model_is_not_taken_for_the_checkpoint() -> None:
    assert after(proof(), REFERENCE, LOADED, REFERENCE, hook(20)).proved
    assert after(proof(load_dir=None), REFERENCE, LOADED, hook(20)).proved
    assert after(proof(None, None), REFERENCE, hook(0, 0, 0)).proved
    assert after(proof(None, None, load_dir=None), REFERENCE, hook(0, 0, 0)).proved
    another = format_loaded(19, Path("/w/ref"), now=NOW)
    assert after(proof(clock=lambda: 0.0, grace_s=0.0), another, said("step", 20)).failed
    no_tracker_elsewhere = NO_TRACKER.replace("/w/save/", "/w/save/non_persistent/")
    assert after(proof(), no_tracker_elsewhere, LOADED, hook(20)).proved


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([LOADED], "a cold start was asked for"),
        ([format_loaded(0, SAVE, now=NOW)], "a cold start was asked for"),
        ([said("rollout", 20)], "20 is the first iteration trained, but 0"),
        ([hook(0, index=640, group=80)], "from 80, but 0"),
    ],
)
def test_a_cold_start_must_be_cold(lines: list[str], words: str) -> None:
    verdict = after(proof(None, None), *lines)
    assert verdict.failed and words in verdict.reason


def test_a_cold_start_is_proved_although_slime_misses_a_cursor_it_never_had() -> None:
    missing = NO_STATE.replace("save/rollout", "ref/rollout").replace("_19.pt", "_-1.pt")
    verdict = after(proof(None, None), missing, format_skipped("head.w"), hook(0, 0, 0))
    assert verdict.proved and "a cold start" in verdict.reason


def test_a_command_trainer_is_never_failed_for_silence() -> None:
    judge = proof(kind="command", cursor=None)
    assert judge.verdict().outcome == "unproved"
    judge.take(Point("step", 20, {"train/loss": 1.0}))
    judge.see_tracker(24)
    verdict = judge.verdict(final=True)
    assert (verdict.outcome, verdict.failed, verdict.proved) == ("unproved", False, False)
    assert "the tracker moved to 24" in verdict.reason


def test_a_command_trainer_is_proved_or_failed_by_what_it_says() -> None:
    assert after(proof(kind="plain", cursor=None), LOADED, said("rollout", 20)).proved
    assert after(proof(kind="plain", cursor=None), format_loaded(9, SAVE, now=NOW)).failed
    assert after(proof(kind="plain", cursor=None), said("rollout", 0)).failed


@pytest.mark.parametrize("kind", ["slime", "command"])
def test_a_tracker_that_goes_back_fails(kind: str) -> None:
    judge = proof(kind=kind)
    judge.see_tracker(None)
    judge.see_tracker(19)
    assert not judge.verdict().failed
    judge.see_tracker(4)
    assert judge.verdict().failed and "went back from 19 to 4" in judge.verdict().reason


def test_an_iteration_trained_again_fails() -> None:
    judge = proof(cursor=None)
    after(judge, said("rollout", 20))
    judge.take(Point("rollout", 19, {"rollout/rewards": 0.0}))
    assert judge.verdict().failed


def test_text_of_samples_proves_nothing_and_fails_nothing() -> None:
    speaker = "(RolloutManager pid=77) "
    judge = proof(grace_s=0.0)
    assert after(judge, f"{speaker}{LOADED}", f"{speaker}{format_skipped('x')}", f"{speaker}{NO_TRACKER}").outcome == (
        "pending"
    )
    assert after(judge, f"label: {LOADED}", f"['{LOADED}']", f"{speaker}{LOADED}").outcome == "pending"
    assert after(judge, f"(MegatronTrainRayActor pid=8) {said('step', 20)}").failed  # never loaded


def test_hearing_everything_twice_changes_nothing() -> None:
    lines = [LOADED, READ_STATE, said("rollout", 20), hook(20)]
    once, twice = after(proof(), *lines), after(proof(), *lines, *lines)
    assert once == twice
