"""The machine's own clock: sleeps that can be woken, and duties in threads."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from plugins.lium.clock import DutyThread, SystemClock

HOUR_S = 3600.0
PATIENCE_S = 20.0


@pytest.fixture
def begin() -> Iterator[Callable[[Callable[[], float]], DutyThread]]:
    made: list[DutyThread] = []

    def start(turn: Callable[[], float]) -> DutyThread:
        made.append(SystemClock().duty("test-duty", turn))
        return made[-1]

    yield start
    for duty in made:
        duty.stop()
        assert not duty._thread.is_alive()


class Turns:
    """Counts turns; `wait_for(n)` waits until the n-th has begun."""

    def __init__(self, pause_s: float = HOUR_S) -> None:
        self.pause_s = pause_s
        self.threads: list[threading.Thread] = []
        self._begun = threading.Semaphore(0)

    def __call__(self) -> float:
        self.threads.append(threading.current_thread())
        self._begun.release()
        return self.pause_s

    def wait_for(self, number: int) -> bool:
        while len(self.threads) < number:
            if not self._begun.acquire(timeout=PATIENCE_S):
                return False
        return True


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def ended(thread: threading.Thread) -> bool:
    thread.join(PATIENCE_S)
    return not thread.is_alive()


def test_it_tells_the_machines_time() -> None:
    clock = SystemClock()
    for ours, machines in ((clock.now, time.time), (clock.monotonic, time.monotonic)):
        before = machines()
        assert before <= ours() <= machines()


def test_a_sleep_lasts_no_less_than_asked_and_nothing_when_negative() -> None:
    clock = SystemClock()
    for wake in (None, threading.Event()):
        began = clock.monotonic()
        clock.sleep(0.02, wake)
        assert clock.monotonic() - began >= 0.019
        clock.sleep(-5.0, wake)


def test_a_sleep_ends_when_it_is_woken() -> None:
    wake = threading.Event()
    sleeper = in_thread(lambda: SystemClock().sleep(HOUR_S, wake))
    assert sleeper.is_alive()
    wake.set()
    assert ended(sleeper)
    assert ended(in_thread(lambda: SystemClock().sleep(HOUR_S, wake)))  # woken before it began


def test_the_first_turn_is_at_once_in_a_daemon_thread_of_its_own(begin) -> None:
    turns = Turns()
    begin(turns)
    assert turns.wait_for(1)
    assert turns.threads[0] is not threading.current_thread()
    assert turns.threads[0].daemon and turns.threads[0].name == "test-duty"


def test_turns_follow_each_other_in_one_thread_after_the_pause_each_asks_for(begin) -> None:
    turns = Turns(pause_s=0.0)
    begin(turns)
    assert turns.wait_for(5)
    assert len(set(turns.threads)) == 1


def test_waking_lets_the_next_turn_begin_now(begin) -> None:
    turns = Turns()
    duty = begin(turns)
    for number in (1, 2, 3):
        assert turns.wait_for(number)
        duty.wake()
    assert turns.wait_for(4)


def test_waking_during_a_turn_is_not_lost(begin) -> None:
    turns, in_turn, go_on = Turns(), threading.Event(), threading.Event()

    def turn() -> float:
        if not turns.threads:
            in_turn.set()
            assert go_on.wait(PATIENCE_S)
        return turns()

    duty = begin(turn)
    assert in_turn.wait(PATIENCE_S)
    duty.wake()
    go_on.set()
    assert turns.wait_for(2)


def test_after_stopping_no_turn_begins_and_the_thread_ends(begin) -> None:
    turns = Turns()
    duty = begin(turns)
    assert turns.wait_for(1)
    duty.stop(patience_s=0.0)
    assert ended(turns.threads[0])
    duty.stop()
    duty.wake()
    assert len(turns.threads) == 1


def test_stopping_waits_for_the_turn_under_way(begin) -> None:
    in_turn, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def turn() -> float:
        in_turn.set()
        assert go_on.wait(PATIENCE_S)
        done.set()
        return HOUR_S

    duty = begin(turn)
    assert in_turn.wait(PATIENCE_S)
    duty.stop(patience_s=0.0)  # it does not wait for ever
    assert not done.is_set()
    seen: list[bool] = []

    def stop() -> None:
        duty.stop(PATIENCE_S)
        seen.append(done.is_set())

    stopping = in_thread(stop)
    go_on.set()
    assert ended(stopping)
    assert seen == [True]


def test_a_turn_may_stop_its_own_duty(begin) -> None:
    begun, stopped = threading.Event(), threading.Event()
    duties: list[DutyThread] = []

    def turn() -> float:
        assert begun.wait(PATIENCE_S)
        duties[0].stop()
        stopped.set()
        return 0.0

    duties.append(begin(turn))
    begun.set()
    assert stopped.wait(PATIENCE_S)
    assert ended(duties[0]._thread)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_turn_that_raises_ends_the_duty(begin) -> None:
    turns = Turns(pause_s=0.0)

    def turn() -> float:
        turns()
        raise RuntimeError("this turn fails")

    duty = begin(turn)
    assert turns.wait_for(1)
    assert ended(turns.threads[0])
    duty.wake()
    duty.stop()
    assert len(turns.threads) == 1
