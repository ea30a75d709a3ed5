"""The list of pods that a run paid for outlives the pods, and knows of rents that nobody saw the end of."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from plugins.errors import ControlPlaneError
from plugins.lium.hosts import Host
from plugins.lium.offers import Offer
from plugins.lium.pods import Intent, PodRecord, PodRow
from tasks.pod_ledger import WARM, PodLedger, pod_number
from tests.tasks.memory_board import MemoryBoard, row

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC).timestamp()
HOST = Host("ex-1", "swift-fox-3a", "NVIDIA H200", "H200", 8, 8, False, 1.89, tier="spot")
OFFER = Offer(host=HOST, gpu_count=2, price_per_gpu_hour=1.89, price_per_hour=3.78, estimate=None)


def intent(number: int) -> Intent:
    return Intent(f"ts-r-sft-a{number}", "ex-1", f"key-{number}", "/executors/ex-1/rent", {"gpu_count": 2}, NOON)


def pod(number: int, **changes) -> PodRow:
    values = {"status": "PENDING", "price_per_hour": 3.78, "gpu_name": "NVIDIA H200", "gpu_count": 2, **changes}
    return PodRow(id=f"id-{number}", name=f"ts-r-sft-a{number}", **values)


def ledger(board: MemoryBoard | None = None, *, hours: float = 0.0) -> PodLedger:
    return PodLedger(board or MemoryBoard(), lambda: NOON + hours * 3600)


@dataclass
class Records:
    """What Lium says of pods that ended."""

    records: dict[str, PodRecord] = field(default_factory=dict)
    down: bool = False

    def record(self, pod_id: str) -> PodRecord | None:
        if self.down:
            raise ControlPlaneError("Lium does not answer")
        return self.records.get(pod_id)


def bill(number: int, cost_usd: float) -> PodRecord:
    moment = datetime(2030, 1, 1, 13, tzinfo=UTC)
    name = f"ts-r-sft-a{number}"
    return PodRecord(
        f"id-{number}", name, cost_usd, 60.0, None, 1, None, created_at=None, removed_at=moment, close_reason=None
    )


def test_a_run_without_pods_begins_with_number_one() -> None:
    assert (ledger().rows(), ledger().next_number()) == ([], 1)


def test_an_intent_is_written_down_with_all_that_is_needed_to_ask_again() -> None:
    board = MemoryBoard()
    ledger(board).intends(intent(1), OFFER)
    (found,) = board.rows
    assert (found["name"], found["id"], found["state"], found["price_per_hour"]) == (
        "ts-r-sft-a1",
        None,
        "INTENT",
        3.78,
    )
    assert ledger(board).unsettled() == [intent(1)], "another process reads the same intent"
    assert ledger(board).next_number() == 2, "its name is used up, whatever became of it"


def test_an_intent_that_cannot_be_written_down_is_an_error_so_that_nothing_is_rented() -> None:
    with pytest.raises(ControlPlaneError):
        ledger(MemoryBoard(down=True)).intends(intent(1), OFFER)


def test_a_rented_pod_settles_its_intent_and_costs_from_the_moment_of_the_rent() -> None:
    board = MemoryBoard()
    book = ledger(board)
    book.intends(intent(1), OFFER)
    book.rented(pod(1))
    book.rented(pod(1, status="RUNNING"))
    (found,) = board.rows
    assert (found["id"], found["state"], found["gpu"]) == ("id-1", "RUNNING", "2x NVIDIA H200")
    assert book.unsettled() == []
    (charge,) = book.charges()
    assert charge.usd(NOON + 1800) == pytest.approx(1.89)


def test_a_refused_rent_costs_nothing_and_is_not_asked_about_again() -> None:
    book = ledger()
    book.intends(intent(1), OFFER)
    book.refused("ts-r-sft-a1", "no machine")
    assert (book.unsettled(), book.open(), book.charges()) == ([], [], [])


def test_ended_pods_are_closed_with_lium_s_bill_and_the_living_one_stays_open() -> None:
    book = ledger(hours=2)
    for number in (1, 2):
        book.intends(intent(number), OFFER)
        book.rented(pod(number))
    book.ended(["ts-r-sft-a1"], Records({"id-1": bill(1, 0.5)}), "spot reclaim")  # type: ignore[arg-type]
    first, second = book.rows()
    assert (first["state"], first["cost_usd"], first["why"]) == ("ENDED", 0.5, "spot reclaim")
    assert first["ended_at"] == "2030-01-01T13:00:00+00:00"
    assert second["ended_at"] is None and [found["name"] for found in book.open()] == ["ts-r-sft-a2"]


def test_an_end_is_noted_once_and_its_cost_is_kept_when_lium_forgets() -> None:
    book = ledger(hours=2)
    book.intends(intent(1), OFFER)
    book.rented(pod(1))
    book.ended(["ts-r-sft-a1"], Records({"id-1": bill(1, 0.5)}))  # type: ignore[arg-type]
    before = book.rows()
    book.ended(["ts-r-sft-a1"], Records())  # type: ignore[arg-type]
    assert book.rows() == before


@pytest.mark.parametrize("lium", [Records(), Records(down=True)])
def test_without_a_bill_our_own_estimate_stands(lium: Records) -> None:
    board = MemoryBoard()
    book = ledger(board)
    book.intends(intent(1), OFFER)
    book.rented(pod(1))
    later = ledger(board, hours=2)
    later.ended(["ts-r-sft-a1"], lium)  # type: ignore[arg-type]
    (found,) = later.rows()
    assert found["cost_usd"] == pytest.approx(2 * 3.78)


def test_what_was_known_counts_on_while_prefect_is_down() -> None:
    board = MemoryBoard()
    book = ledger(board)
    book.intends(intent(1), OFFER)
    book.rented(pod(1))
    board.down = True
    assert [found["id"] for found in book.open()] == ["id-1"]
    assert len(book.charges()) == 1


def test_a_pod_left_warm_is_not_ours_until_it_is_claimed_back() -> None:
    book = ledger(hours=1)
    book.intends(intent(1), OFFER)
    book.rented(pod(1))
    book.ended(["ts-r-sft-a1"], Records({"id-1": bill(1, 99.0)}), "held warm", state=WARM)  # type: ignore[arg-type]
    assert (book.handed_on(), book.open()) == ({"ts-r-sft-a1"}, [])
    assert book.rows()[0]["cost_usd"] == pytest.approx(3.78), "what it costs from here on is another's"
    book.rented(pod(1))
    assert (book.handed_on(), len(book.open())) == (set(), 1)


def test_a_row_of_an_earlier_version_is_read_with_what_it_lacks() -> None:
    board = MemoryBoard(rows=[{"name": "ts-r-sft-a3", "id": "id-3", "ended_at": None, "state": "RUNNING"}])
    (found,) = ledger(board).open()
    assert found["fit"] is False and ledger(board).next_number() == 4


def test_a_number_is_never_used_again_even_after_its_pod_ended() -> None:
    board = MemoryBoard(
        rows=[row("ts-r-sft-a1", "id-1"), row("ts-r-sft-a12", "id-12", ended_at="2030-01-01T00:00:00+00:00")]
    )
    assert ledger(board).next_number() == 13
    assert ledger(board).next_number([pod(20)]) == 21
    assert (pod_number("ts-r-a-b-sftrl-a12"), pod_number("ts-r"), pod_number("ts-r-ab")) == (12, 0, 0)
