"""How much a pod may ask, on a clock that the test moves."""

from plugins.gateway.limits import Allowance, Bucket, Complaints, Limits


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def test_a_bucket_lets_a_burst_through_then_the_rate() -> None:
    clock = Hand()
    bucket = Bucket(rate=2.0, burst=5, clock=clock)
    assert [bucket.take() for _ in range(6)] == [0, 0, 0, 0, 0, 0.5]
    clock.at += 1.0
    assert [bucket.take() for _ in range(3)] == [0, 0, 0.5]


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    clock = Hand()
    bucket = Bucket(rate=2.0, burst=3, clock=clock)
    clock.at += 1000.0
    assert [bucket.take() for _ in range(4)].count(0) == 3


def test_what_is_owed_is_paid_by_the_calls_that_follow() -> None:
    clock = Hand()
    bucket = Bucket(rate=1.0, burst=2, clock=clock)
    bucket.owe(4)
    assert bucket.take() == 3.0
    clock.at += 3.0
    assert bucket.take() == 0.0


def test_reservations_come_one_after_another() -> None:
    bucket = Bucket(rate=2.0, burst=1, clock=Hand())
    assert [bucket.reserve() for _ in range(3)] == [0.0, 0.5, 1.0]


def test_calls_under_way_are_limited_too() -> None:
    allowance = Allowance(Limits(at_once=1), Hand())
    allowance.under_way = 1
    assert allowance.wait_s() == 1
    allowance.under_way = 0
    assert allowance.wait_s() == 0


def test_a_flood_of_refusals_is_counted_in_full_and_logged_in_part() -> None:
    clock, lines = Hand(), []
    complaints = Complaints(lines.append, clock)
    for _ in range(1000):
        complaints.note("pod-a", "GET", "/api/variables", "no")
    complaints.note("pod-b", "GET", "/api/variables", "no")
    assert complaints.count == 1001
    assert len(lines) == 6
    clock.at += 60
    complaints.note("pod-a", "GET", "/api/variables", "no")
    assert "995 more refusals of pod-a" in lines[6]
    assert len(lines) == 8


def test_what_a_stranger_wrote_cannot_forge_a_log_line() -> None:
    lines: list[str] = []
    Complaints(lines.append, Hand()).note("pod-a", "GET", "/x\nWARNING all is well\x1b[2J" + "y" * 500, "no")
    assert "\n" not in lines[0] and "\x1b" not in lines[0]
    assert len(lines[0]) < 250
