"""When a pod sits idle, from readings with times."""

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from plugins.lium.idle import LONGEST_GAP_S, Idle, IdleWatch


def watch() -> IdleWatch:
    return IdleWatch(limit_percent=5, after_s=300)


def every_minute(watch: IdleWatch, percent: float | None, start: int, minutes: int) -> list[Idle]:
    seen = [watch.saw(percent, start + 60.0 * minute) for minute in range(minutes)]
    return [idle for idle in seen if idle is not None]


def test_use_under_the_limit_for_the_whole_time_is_told_once() -> None:
    assert every_minute(watch(), 2.0, 1000, 30) == [Idle(since=1000, seconds=300, mean=2.0)]


def test_it_is_not_told_before_the_time_is_over() -> None:
    assert every_minute(watch(), 2.0, 0, 5) == []


def test_a_busy_reading_begins_the_time_anew() -> None:
    pod = watch()
    assert every_minute(pod, 0.0, 0, 5) == []
    assert pod.saw(5.0, 300) is None
    assert every_minute(pod, 0.0, 360, 5) == []
    assert pod.saw(0.0, 660) == Idle(360, 300, 0.0)


def test_it_is_told_again_only_after_the_pod_was_busy() -> None:
    pod = watch()
    assert len(every_minute(pod, 1.0, 0, 6)) == 1
    assert every_minute(pod, 1.0, 100_000, 60) == []  # after a gap, and still not busy
    assert pod.saw(90.0, 200_000) is None
    assert len(every_minute(pod, 1.0, 200_060, 60)) == 1


def test_a_time_without_readings_is_not_idle() -> None:
    pod = watch()
    pod.saw(0.0, 0)
    assert pod.saw(0.0, LONGEST_GAP_S + 1) is None
    assert pod.saw(0.0, 2 * LONGEST_GAP_S) is None
    assert pod.saw(0.0, 3 * LONGEST_GAP_S) == Idle(LONGEST_GAP_S + 1, 2 * LONGEST_GAP_S - 1, 0.0)


def test_readings_that_are_not_known_are_a_gap_and_never_idle() -> None:
    assert every_minute(watch(), None, 0, 100) == []
    assert every_minute(watch(), math.nan, 0, 100) == []
    pod = watch()
    pod.saw(0.0, 0)
    every_minute(pod, None, 60, 10)
    assert pod.saw(0.0, 660) is None


def test_one_missed_reading_changes_nothing() -> None:
    pod = watch()
    assert every_minute(pod, 0.0, 0, 3) == []
    assert pod.saw(None, 180) is None
    assert every_minute(pod, 0.0, 240, 2) == [Idle(0, 300, 0.0)]


def test_a_clock_that_went_back_begins_the_time_anew() -> None:
    pod = watch()
    pod.saw(0.0, 1000)
    pod.saw(0.0, 900)
    assert pod.saw(0.0, 1000) is None
    assert pod.saw(0.0, 1050) is None
    assert pod.saw(0.0, 1200) == Idle(900, 300, 0.0)


def test_the_mean_is_that_of_the_idle_time_alone() -> None:
    pod = IdleWatch(5, 100)
    pod.saw(100.0, 0)
    pod.saw(4.0, 50)
    pod.saw(1.0, 1000)  # after a gap
    assert pod.saw(3.0, 1100) == Idle(1000, 100, 2.0)


READINGS = st.lists(
    st.tuples(st.floats(0, 400), st.none() | st.sampled_from([0.0, 4.9, 5.0, 50.0])), min_size=1, max_size=60
)


@given(READINGS)
def test_whatever_is_told_was_seen(readings: list[tuple[float, float | None]]) -> None:
    """Each idleness has known readings under the limit from its beginning to its end, none far from the next."""
    pod, at, known = watch(), 0.0, []
    for pause_s, percent in readings:
        at += pause_s
        if percent is not None:
            known.append((at, percent))
        idle = pod.saw(percent, at)
        if idle is None:
            continue
        inside = [(when, use) for when, use in known if when >= idle.since]
        assert idle.seconds == at - idle.since >= 300
        assert inside[0][0] == idle.since
        assert all(use < 5 for _, use in inside)
        assert all(later[0] - earlier[0] <= LONGEST_GAP_S for earlier, later in pairwise(inside))
