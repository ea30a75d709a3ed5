"""The list of pods that a run paid for outlives the pods."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from uuid import UUID, uuid4

from plugins.lium.pods import PodRow
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


def test_the_end_of_a_pod_keeps_its_row_and_its_cost_and_is_noted_once() -> None:
    book = ledger()
    book.rented(pod(1))
    book.rented(pod(2))
    book.ended("id-1", 0.5)
    first_end = read_ledger(book.client, "r")[0]["ended_at"]
    book.ended("id-1", None)
    rows = read_ledger(book.client, "r")
    assert [(row["state"], row["cost_usd"]) for row in rows] == [("RELEASED", 0.5), ("PENDING", None)]
    assert rows[0]["ended_at"] == first_end is not None


def test_a_number_is_never_used_again_even_after_its_pod_ended() -> None:
    book = ledger()
    book.rented(pod(1))
    book.rented(pod(12))
    book.ended("id-12", 0.1)
    assert book.next_number() == 13
    assert (pod_number("ts-r-a-b-sft-rl-a12"), pod_number("ts-r"), pod_number("ts-r-ab")) == (12, 0, 0)
