"""The bandwidth limit: a mean speed over all threads, and no credit for hours without work."""

from plugins.checkpoints.throttle import BURST_S, Throttle


class Time:
    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def throttle(limit: float | None) -> tuple[Throttle, Time]:
    time = Time()
    return Throttle(limit, now=time.now, sleep=time.sleep), time


def test_sending_takes_as_long_as_the_limit_says() -> None:
    limit, time = throttle(100.0)
    for _ in range(50):
        limit(20)
    assert 10.0 - BURST_S <= time.now_s <= 10.0


def test_what_is_slower_than_the_limit_is_not_held_up() -> None:
    limit, time = throttle(100.0)
    for _ in range(5):
        time.now_s += 1
        limit(50)
    assert time.now_s == 5.0


def test_an_idle_hour_buys_no_burst() -> None:
    limit, time = throttle(100.0)
    time.now_s = 3600.0
    limit(1000)
    assert time.now_s >= 3600.0 + 10.0 - BURST_S


def test_no_limit_is_no_limit() -> None:
    limit, time = throttle(None)
    limit(10**12)
    assert time.now_s == 0.0
