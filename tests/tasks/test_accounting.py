"""Every second of a run is under one heading, and a simulated run's account is what was put into it."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.accounting import AttemptTimes, PodTimes, Report, build_report
from tasks.save_interval import expected_ettr
from tasks.stretches import Kind

T0 = 1_800_000_000.0
RENT, BOOT, PREFLIGHT, RESTORE, START, DETECT = 40.0, 200.0, 50.0, 70.0, 30.0, 25.0
PACE, SAVE, EVERY, UPLOAD = 20.0, 5.0, 4, 12.0


@dataclass
class Story:
    """A run told second by second, with its records and what they must add up to."""

    at: float = T0
    total: int = 0
    pods: list[PodTimes] = field(default_factory=list)
    attempts: list[AttemptTimes] = field(default_factory=list)
    truth: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(Kind, 0.0))
    durable: int | None = None
    seen: int = -1

    def spend(self, kind: Kind, seconds: float) -> float:
        self.truth[kind] += seconds
        self.at += seconds
        return self.at

    def attempt(self, total: int, dies_after: int | None = None, partial_s: float = 7.0) -> None:
        """One pod and one attempt: to the last of `total` iterations, or until so many were trained here."""
        self.total, number = total, len(self.attempts) + 1
        rented = self.spend(Kind.RENT, RENT)
        running, ready = self.spend(Kind.BOOT, BOOT), self.spend(Kind.PREFLIGHT, PREFLIGHT)
        trainer = self.spend(Kind.RESTORE, RESTORE)
        self.spend(Kind.START, START)
        first = 0 if self.durable is None else self.durable + 1
        record: dict[str, Any] = {"restored": self.durable, "phases": {"ray": 10.0, "restore": RESTORE - 10.0}}
        last, kept = first - 1, self.durable
        spent: dict[int, float] = {}
        for n in range(first, total):
            if dies_after is not None and n - first >= dies_after:
                break
            self.at += PACE
            spent[n], last = PACE, n
            record |= {"first_iteration": first, "last_iteration": n, "last_iteration_at": self.at}
            if n > self.seen and record.get("first_new_at") is None:
                record["first_new_at"] = self.at
            if (n + 1) % EVERY == 0:
                self.spend(Kind.SAVE, SAVE)
                kept = n
        done = last == total - 1 and dies_after is None
        for n in spent:
            gone = not done and n > (-1 if kept is None else kept)
            self.truth[Kind.LOST if gone else Kind.REDO if n <= self.seen else Kind.TRAINING] += PACE
        self.durable, self.seen = kept, max(self.seen, last)
        record["durable"] = kept
        if done:
            record["phases"] |= {"train": self.at - trainer + UPLOAD, "upload": UPLOAD}
            ended = self.spend(Kind.SAVE, UPLOAD)
            end, lost, found = "completed", None, None
        else:
            lost = self.spend(Kind.LOST if spent else Kind.START, partial_s)
            found = ended = self.spend(Kind.DETECT, DETECT)
            end = "lost"
        name = f"ts-r-rl-a{number}"
        self.pods.append(PodTimes(name, rented, running, ready, ended, 3.6, None, "fox", "spot"))
        self.attempts.append(
            AttemptTimes("rl", number, name, ready, ready, ended, end, lost_at=lost, detected_at=found, **record)
        )

    def report(self, **more: Any) -> Report:
        options = {"now": self.at, "started_at": T0, "ended_at": self.at, "save_interval": EVERY, "save_cost_s": SAVE}
        return build_report("r-1", self.pods, self.attempts, **options | more)


def told(deaths: list[int], total: int = 40) -> Story:
    story = Story()
    for trained in deaths:
        story.attempt(total, dies_after=trained)
    story.attempt(total)
    return story


def adds_up(report: Report) -> None:
    assert math.fsum(report.seconds.values()) == pytest.approx(report.wall_s, abs=1e-6)
    edges = [report.begin]
    for stretch in report.stretches:
        assert stretch.begin == edges[-1] and stretch.end > stretch.begin
        edges.append(stretch.end)
    assert edges[-1] == report.end


def can_tell(story: Story) -> bool:
    """Whether some attempt trained two new iterations, so that the length of one is on record."""
    seen, found = -1, False
    for attempt in story.attempts:
        if attempt.last_iteration is not None and attempt.first_iteration is not None:
            found |= attempt.last_iteration >= max(seen, attempt.first_iteration - 1) + 2
            seen = max(seen, attempt.last_iteration)
    return found


runs = st.builds(
    lambda deaths, total: told([min(trained, total - 1) for trained in deaths], total),
    st.lists(st.integers(0, 12), max_size=6),
    st.integers(1, 60),
)


@settings(deadline=None, max_examples=150)
@given(story=runs)
def test_a_simulated_run_gets_back_what_was_put_into_it(story: Story) -> None:
    report = story.report()
    adds_up(report)
    for kind, seconds in story.truth.items():
        if can_tell(story):
            assert report.seconds[kind] == pytest.approx(seconds, abs=1e-3), kind
        elif kind is not Kind.UNKNOWN:
            assert report.seconds[kind] <= seconds + 1e-3, kind
    kept = story.truth[Kind.TRAINING] + story.truth[Kind.REDO]
    assert not can_tell(story) or report.ettr == pytest.approx(kept / report.wall_s)
    assert report.iterations == kept / PACE
    assert report.trained - report.iterations == sum(loss.iterations for loss in report.losses)


@settings(deadline=None, max_examples=150)
@given(story=runs)
def test_the_parts_of_the_way_back_add_up_for_each_loss(story: Story) -> None:
    for loss in story.report().losses:
        parts = [seconds for seconds in loss.pieces().values() if seconds is not None]
        assert loss.recovered_s is None or math.fsum(parts) == pytest.approx(loss.recovered_s)
        assert loss.rent_s == pytest.approx(RENT) and loss.detect_s == pytest.approx(DETECT)
        assert loss.boot_s == pytest.approx(BOOT) and loss.preflight_s == pytest.approx(PREFLIGHT)
        assert loss.restore_s == pytest.approx(RESTORE)


LEAVE_OUT = {"started_at": None, "phases": {}, "lost_at": None, "detected_at": None, "first_new_at": None}
POD_LEAVE_OUT = {"running_at": None, "ready_at": None, "ended_at": None}


@settings(deadline=None, max_examples=150)
@given(story=runs, data=st.data())
def test_what_is_left_out_of_the_records_is_not_guessed(story: Story, data: st.DataObject) -> None:
    """Each heading gets at most what is true; the rest stands under `not told apart` (or idle, for a lost pod)."""
    for place, attempt in enumerate(story.attempts):
        gone = data.draw(st.sets(st.sampled_from(sorted(LEAVE_OUT))))
        story.attempts[place] = replace(attempt, **{name: LEAVE_OUT[name] for name in gone})
    for place, pod in enumerate(story.pods):
        gone = data.draw(st.sets(st.sampled_from(sorted(POD_LEAVE_OUT))))
        story.pods[place] = replace(pod, **{name: POD_LEAVE_OUT[name] for name in gone})
    report = story.report()
    adds_up(report)
    for kind in set(Kind) - {Kind.UNKNOWN, Kind.IDLE}:
        assert report.seconds[kind] <= story.truth[kind] + 1e-3, kind
    for loss, true in zip(report.losses, told_again(story).losses, strict=True):
        for name, seconds in loss.pieces().items():
            whole = true.pieces()[name]
            assert name == "other" or seconds is None or whole is None or seconds <= whole + 1e-3, name


def told_again(story: Story) -> Report:
    """The report of the same run with nothing left out."""
    deaths = [
        0 if a.last_iteration is None else a.last_iteration - (a.first_iteration or 0) + 1 for a in story.attempts
    ]
    return told(deaths[:-1], story.total).report()


moments = st.floats(T0 - 1000, T0 + 5000)
maybe = st.none() | moments
numbers = st.none() | st.integers(-1, 30)
any_pod = st.builds(
    PodTimes, st.sampled_from("abc"), moments, maybe, maybe, maybe, st.none() | st.just(2.0), st.none() | st.just(1.0),
    st.none(), st.none(),
)  # fmt: skip
any_attempt = st.builds(
    AttemptTimes,
    stage=st.sampled_from(["sft", "rl"]),
    number=st.integers(1, 9),
    pod=st.none() | st.sampled_from("abcd"),
    submitted_at=moments,
    started_at=maybe,
    ended_at=maybe,
    end=st.sampled_from(["completed", "lost", "crashed", "trainer failed", "cancelled", "running"]),
    restored=numbers,
    first_iteration=numbers,
    last_iteration=numbers,
    durable=numbers,
    phases=st.dictionaries(st.sampled_from(["ray", "restore", "train", "upload"]), st.floats(0, 2000)),
    first_new_at=maybe,
    lost_at=maybe,
    detected_at=maybe,
    last_iteration_at=maybe,
)


@settings(deadline=None, max_examples=400)
@given(
    pods=st.lists(any_pod, max_size=5),
    attempts=st.lists(any_attempt, max_size=6),
    every=st.none() | st.integers(1, 8),
    cost=st.none() | st.floats(0, 100),
    began=maybe,
    ended=maybe,
)
def test_no_second_is_counted_twice_or_lost_whatever_the_records_say(
    pods: list[PodTimes],
    attempts: list[AttemptTimes],
    every: int | None,
    cost: float | None,
    began: float | None,
    ended: float | None,
) -> None:
    options: dict[str, Any] = {"started_at": began, "ended_at": ended, "save_interval": every, "save_cost_s": cost}
    report = build_report("r", pods, attempts, now=T0 + 4000, **options)
    adds_up(report)
    assert report.ettr is None or 0 <= report.ettr <= 1 + 1e-9
    assert 0 <= report.iterations <= report.trained


def test_an_empty_run() -> None:
    report = build_report("r", [], [], now=T0)
    assert (report.wall_s, report.ettr, report.losses, report.cost_per_iteration) == (0, None, (), None)


def test_a_loss_told_by_hand() -> None:
    """Six iterations, of which four were durable; the next attempt repeats two."""
    report = told([6]).report()
    (loss,) = report.losses
    assert (loss.iterations, loss.lost_s) == (2, 2 * PACE + 7)
    assert loss.pieces() == pytest.approx(
        {"detect": 25, "rent": 40, "boot": 200, "preflight": 50, "restore": 70, "redo": 40, "first new": 50, "other": 0}
    )
    assert loss.down_s == pytest.approx(25 + 40 + 200 + 50 + 70 + START)
    assert [iteration for _, row, iteration in report.saves if row == "rl 1"] == [3]
    assert report.rows == (("rl 1", "fox, spot"), ("rl 2", "fox, spot"))


def test_a_crash_on_a_pod_that_stays_needs_no_new_one() -> None:
    story = told([6])
    first, second = story.attempts
    story.pods = [replace(story.pods[0], ended_at=story.at)]
    story.attempts = [replace(first, end="crashed", lost_at=None, detected_at=None), replace(second, pod=first.pod)]
    (loss,) = story.report().losses
    assert (loss.rent_s, loss.boot_s, loss.preflight_s, loss.detect_s) == (0, 0, 0, 0)


def test_a_pod_that_never_ran_is_part_of_the_boot_after_a_loss() -> None:
    story = told([6])
    wanted = story.attempts[0].detected_at
    assert wanted is not None
    story.pods.append(PodTimes("ts-r-rl-a9", wanted + 5, None, None, wanted + 30, 3.6, 0.01, None, None))
    (loss,) = story.report().losses
    assert (loss.rent_s, loss.boot_s) == (RENT - 25, BOOT + 25)


def test_after_a_loss_without_a_new_pod_the_run_waits_and_counts_what_is_durable() -> None:
    story = Story()
    story.attempt(40, dies_after=6)
    report = story.report(now=story.at + 100, ended_at=None)
    adds_up(report)
    assert report.seconds[Kind.RENT] == RENT + 100
    assert (report.iterations, report.losses[0].iterations, report.losses[0].recovered_s) == (4, 2, None)


def test_what_a_running_attempt_trained_counts_until_now() -> None:
    story = told([6])
    running = {"end": "running", "ended_at": None, "last_iteration_at": None, "phases": {"ray": 10.0, "restore": 60.0}}
    last = story.attempts[-1]
    story.attempts[-1] = replace(last, **running)
    story.pods[-1] = replace(story.pods[-1], ended_at=None)
    report = story.report(ended_at=None)
    adds_up(report)
    assert report.end == story.at and report.iterations == 40 and report.seconds[Kind.LOST] == 47


def test_the_cost_is_the_bill_or_price_times_hours() -> None:
    pod = PodTimes("a", T0, None, None, T0 + 3600, 2.0, None, None, None)
    report = build_report("r", [pod, replace(pod, cost_usd=1.5), replace(pod, price_per_hour=None)], [], now=T0 + 9999)
    assert (report.cost_usd, report.unpriced) == (3.5, 1)
    assert replace(pod, ended_at=None).cost(T0 + 7200) == 4.0


def test_two_stages_are_two_lines_of_iterations_with_their_own_interval() -> None:
    story = told([])
    sft = replace(story.attempts[0], stage="sft")
    later = {name: getattr(sft, name) + 2000 for name in ("submitted_at", "started_at", "ended_at")}
    marks = {name: getattr(sft, name) + 2000 for name in ("first_new_at", "last_iteration_at")}
    rl = replace(sft, stage="rl", **later, **marks)
    report = build_report("r", story.pods, [sft, rl], now=T0 + 9999, save_interval={"sft": 4}, save_cost_s=SAVE)
    adds_up(report)
    assert report.iterations == 80 and {row for _, row, _ in report.saves} == {"sft 1", "rl 1"}


def test_an_attempt_may_have_an_interval_of_its_own() -> None:
    story = told([6])
    whole = story.report()
    story.attempts = [replace(a, save_interval=EVERY, save_cost_s=SAVE) for a in story.attempts]
    report = story.report(save_interval=99, save_cost_s=1.0)
    assert report.seconds == pytest.approx(whole.seconds) and report.saves == whole.saves


def test_the_model_stands_beside_what_was_measured() -> None:
    report = told([6, 9, 5]).report()
    expected = report.expected
    assert expected is not None
    assert expected.mtbl_s == report.wall_s / 3
    assert (expected.interval_s, expected.save_cost_s) == (pytest.approx(PACE * EVERY), SAVE)
    assert expected.recovery_s == pytest.approx(DETECT + RENT + BOOT + PREFLIGHT + RESTORE + START)
    assert expected.ettr == expected_ettr(report.wall_s / 3, expected.interval_s, expected.recovery_s, SAVE)
    assert told([6]).report(save_cost_s=None).expected is None
    assert told([]).report(mtbl_s=3600.0).expected is None
