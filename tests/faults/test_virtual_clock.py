"""Virtual time and the life of a process: what the fault suite rests on."""

import threading

import pytest

from tests.faults.virtual_clock import START, Killed, Process, VirtualClock


def test_events_run_in_order_while_somebody_sleeps() -> None:
    clock, seen = VirtualClock(), []
    for delay_s in (5.0, 1.0, 3.0):
        clock.after(delay_s, lambda delay_s=delay_s: seen.append((delay_s, clock.now() - START)))
    clock.sleep(4.0)
    assert seen == [(1.0, 1.0), (3.0, 3.0)]
    assert clock.monotonic() == 4.0


def test_a_sleep_ends_when_its_wake_is_set_and_not_later() -> None:
    clock, wake = VirtualClock(), threading.Event()
    clock.after(2.0, wake.set)
    clock.sleep(100.0, wake)
    assert clock.monotonic() == 2.0
    clock.sleep(100.0, wake)
    assert clock.monotonic() == 2.0


def test_a_duty_that_sleeps_lets_others_work_and_never_runs_twice_at_once() -> None:
    clock, running, turns = VirtualClock(), [0], []

    def slow() -> float:
        running[0] += 1
        assert running[0] == 1
        clock.sleep(10.0)
        running[0] -= 1
        return 1.0

    def quick() -> float:
        turns.append(running[0])
        return 1.0

    duty = clock.duty("slow", slow)
    clock.duty("quick", quick)
    duty.wake()
    clock.after(3.0, duty.wake)
    clock.sleep(30.0)
    assert len(turns) >= 30
    assert {0, 1} == set(turns)


def test_a_stopped_duty_has_no_more_turns() -> None:
    clock, turns = VirtualClock(), []
    duty = clock.duty("count", lambda: turns.append(clock.now()) or 1.0)
    clock.sleep(2.5)
    duty.stop()
    clock.sleep(10.0)
    assert len(turns) == 3


def test_a_killed_process_gets_nothing_done_whatever_it_catches() -> None:
    clock, done = VirtualClock(), []
    process = Process(clock)
    process.duty("duty", lambda: done.append("duty") or 1.0)
    clock.after(2.5, process.kill)

    def main_line() -> None:
        try:
            process.sleep(10.0)
        finally:
            process.enter()
            done.append("finally")

    with pytest.raises(Killed):
        main_line()
    clock.sleep(10.0)
    assert done == ["duty"] * 3
    assert clock.monotonic() == pytest.approx(12.5)


def test_a_process_dies_at_the_call_it_was_told_before_or_after_the_effect() -> None:
    for after_effect, expected in ((False, ["first"]), (True, ["first", "second"])):
        process, done = Process(VirtualClock(), 2, target="rent", after_effect=after_effect), []
        process.leave(process.enter(("list",)))
        process.leave(process.enter(("rent",)))
        done.append("first")
        with pytest.raises(Killed):
            call = process.enter(("rent",))
            done.append("second")
            process.leave(call)
        assert done == expected


def test_a_sleeping_laptop_does_nothing_and_its_monotonic_clock_stands() -> None:
    clock, turns, world = VirtualClock(), [], []
    process = Process(clock)
    process.duty("duty", lambda: turns.append(clock.monotonic()) or 1.0)
    clock.after(100.0, lambda: world.append("event"))
    clock.after(5.5, lambda: process.suspend(1000.0))
    process.sleep(10.0)
    assert world == ["event"]
    assert process.now() - START == pytest.approx(1005.5)
    assert process.monotonic() == pytest.approx(5.5)
    assert not [turn for turn in turns if 5.5 < turn < 1005.5]


def test_ctrl_c_is_raised_once_in_the_main_line_and_never_in_a_duty() -> None:
    clock, turns = VirtualClock(), []
    process = Process(clock)

    def duty() -> float:
        process.sleep(2.0)
        turns.append(clock.now())
        return 0.1

    process.duty("duty", duty)
    clock.after(1.0, process.interrupt)
    with pytest.raises(KeyboardInterrupt):
        process.sleep(60.0)
    process.sleep(10.0)
    assert process.dead_duties == []
    assert len(turns) > 3


def test_a_duty_that_raises_ends_and_is_noted() -> None:
    clock = VirtualClock()
    process = Process(clock)
    process.duty("broken", lambda: 1 / 0)
    process.sleep(10.0)
    assert process.dead_duties == ["broken: ZeroDivisionError: division by zero"]


def test_the_shortest_sleep_lets_time_pass() -> None:
    clock = VirtualClock()
    process = Process(clock)
    for sleeper in (clock, process):
        before = clock.now()
        sleeper.sleep(1e-13)
        assert clock.now() > before
