"""The list of pods that a run paid for outlives the pods."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from uuid import UUID, uuid4

from plugins.lium.pods import PodRecord, PodRow
from tasks.pod_ledger import PodLedger, ledger_key, pod_number, read_ledger

FLOW_RUN = UUID(int=7)


@dataclass
class Artifacts:
    """The two calls of Prefect's client that the ledger makes, over a list."""

    written: list[SimpleNamespace] = field(default_factory=list)

    def create_artifact(self, artifact) -> SimpleNamespace:
        self.written.append(SimpleNamespace(id=uuid4(), **artifact.model_dump(include={"key", "data", "flow_run_id"})))
        return self.written[-1]

    def read_artifacts(self, *, artifact_filter, sort, limit: int) -> list[SimpleNamespace]:
        assert sort.value == "CREATED_DESC"
        return [one for one in reversed(self.written) if one.key in artifact_filter.key.any_][:limit]


def pod(number: int, **changes) -> PodRow:
    values = {"status": "PENDING", "price_per_hour": 1.89, "gpu_name": "NVIDIA H200", "gpu_count": 1, **changes}
    return PodRow(
        id=f"id-{number}", name=f"ts-r-sft-a{number}", created_at=datetime(2030, 1, number, tzinfo=UTC), **values
    )


def ledger() -> PodLedger:
    return PodLedger(Artifacts(), "r", FLOW_RUN)


def test_a_run_without_pods_begins_with_number_one() -> None:
    book = ledger()
    assert (read_ledger(book.client, "r"), book.next_number()) == ([], 1)


def test_a_rented_pod_is_noted_with_price_and_time() -> None:
    book = ledger()
    book.rented(pod(1))
    (row,) = read_ledger(book.client, "r")
    assert (row["name"], row["gpu"], row["price_per_hour"]) == ("ts-r-sft-a1", "1x NVIDIA H200", 1.89)
    assert (row["rented_at"], row["ended_at"], row["cost_usd"]) == ("2030-01-01T00:00:00+00:00", None, None)
    assert (book.client.written[0].key, book.client.written[0].flow_run_id) == (ledger_key("r"), FLOW_RUN)


def test_an_adopted_pod_is_not_noted_twice() -> None:
    book = ledger()
    book.rented(pod(1))
    book.rented(pod(1, status="RUNNING"))
    assert [row["state"] for row in read_ledger(book.client, "r")] == ["RUNNING"]


@dataclass
class Account:
    """What Lium says about pods: those it lists, and the records of those that ended."""

    listed: list[PodRow]
    records: dict[str, PodRecord]

    def pods(self) -> list[PodRow]:
        return self.listed

    def record(self, pod_id: str) -> PodRecord | None:
        return self.records.get(pod_id)


def ended(number: int, cost_usd: float) -> PodRecord:
    moment = datetime(2030, 2, number, tzinfo=UTC)
    name = f"ts-r-sft-a{number}"
    return PodRecord(
        f"id-{number}", name, cost_usd, 60.0, None, 1, None, created_at=None, removed_at=moment, close_reason=None
    )


def test_pods_that_ended_are_closed_with_end_and_cost_and_the_living_one_stays_open() -> None:
    book = ledger()
    for number in (1, 2, 3):
        book.rented(pod(number))
    account = Account([pod(2), pod(3, status="FAILED")], {"id-1": ended(1, 0.5), "id-3": ended(3, 0.25)})
    assert book.close(account) == 0.75
    rows = read_ledger(book.client, "r")
    assert [(row["state"], row["cost_usd"]) for row in rows] == [("ENDED", 0.5), ("PENDING", None), ("ENDED", 0.25)]
    assert [row["ended_at"] for row in rows] == ["2030-02-01T00:00:00+00:00", None, "2030-02-03T00:00:00+00:00"]


def test_an_end_is_noted_once_and_its_cost_is_kept_when_lium_forgets() -> None:
    book = ledger()
    book.rented(pod(1))
    book.close(Account([], {"id-1": ended(1, 0.5)}))
    before = read_ledger(book.client, "r")
    assert book.close(Account([], {})) == 0.5
    assert read_ledger(book.client, "r") == before


def test_a_pod_that_lium_knows_nothing_about_has_ended_at_an_unknown_cost() -> None:
    book = ledger()
    book.rented(pod(1))
    assert book.close(Account([], {})) == 0.0
    (row,) = read_ledger(book.client, "r")
    assert row["cost_usd"] is None and row["ended_at"] is not None


def test_a_number_is_never_used_again_even_after_its_pod_ended() -> None:
    book = ledger()
    book.rented(pod(1))
    book.rented(pod(12))
    book.close(Account([], {"id-12": ended(12, 0.1)}))
    assert book.next_number() == 13
    assert book.next_number([pod(20)]) == 21
    assert (pod_number("ts-r-a-b-sftrl-a12"), pod_number("ts-r"), pod_number("ts-r-ab")) == (12, 0, 0)
