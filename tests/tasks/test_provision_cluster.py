"""Getting a cluster: one rent, one end for every node, one verdict on all of them, and one release."""

from dataclasses import replace

import pytest

from plugins.errors import CapacityError, PodLost
from plugins.lium.hosts import Fabric
from plugins.lium.preflight import Check
from tasks.pod_ledger import charge_of, ids_of
from tasks.provision_pod import living_pod, provision_pod
from tasks.release_pod import release_pods
from tests.tasks.fake_market import NO_MACHINE, Link, Scene, host, scene
from tests.tasks.memory_board import MemoryBoard

provision = provision_pod.fn
NAME = "ts-r-sft-a1"
POD = {"nodes": 2, "gpu_count": 8, "shared_dir": "/shared", "budget_usd": 1000.0}


def fabric(name: str, *numbers: int, price: float = 2.0) -> Fabric:
    return Fabric(name, "infiniband", len(numbers), tuple(host(number, price) for number in numbers))


def two_fabrics(board: MemoryBoard | None = None, link=None, **pod) -> Scene:
    here = scene(*(host(number) for number in range(1, 5)), board=board, link=link, **{**POD, **pod})
    here.market.networks = [fabric("a", 1, 2, price=1.5), fabric("b", 3, 4, price=2.0)]
    return here


def test_a_cluster_is_rented_as_one_and_stands_in_one_row_of_the_ledger() -> None:
    here = two_fabrics()
    link = provision(here.run, ["sft"])
    (order,) = here.market.orders
    assert (order.executor_id, order.others, order.gpu_count, order.name) == ("ex-1", ("ex-2",), 8, NAME)
    (found,) = here.board.rows
    assert ids_of(found) == list(link.row.ids) == [f"id-{NAME}-n0", f"id-{NAME}-n1"]
    assert (found["gpu"], found["cluster"], found["executors"]) == (
        "2 nodes of 8x NVIDIA H200", f"c-{NAME}", ["ex-1", "ex-2"],
    )  # fmt: skip
    assert found["price_per_hour"] == 32.0 and charge_of(found).price_per_hour == 32.0, "both nodes are paid for"


def test_every_node_has_its_end_before_anything_else_is_done_with_the_cluster() -> None:
    here = two_fabrics()
    here.run.ledger.rows()
    written = []
    here.board.write_ledger, write = lambda rows: (written.append(dict(here.market.ends)), write(rows)), here.board.write_ledger  # type: ignore[method-assign]  # fmt: skip  # noqa: E501
    link = provision(here.run, ["sft"])
    assert written[0] == {} and set(written[1]) == set(link.row.ids), "Lium takes no end with the rent of a cluster"
    assert len(set(here.market.ends.values())) == 1


BAD = {
    "refused rent": {"fails": {"ex-1": NO_MACHINE}},
    "boot failure of the second node": {"broken_boots": {"ex-2"}},
    "more money than listed": {"real_price": {"ex-2": 9.0}},
}


@pytest.mark.parametrize("what", BAD)
def test_a_node_that_will_not_do_sends_its_whole_cluster_to_rest_and_the_next_fabric_is_taken(what: str) -> None:
    here = two_fabrics()
    for name, value in BAD[what].items():
        setattr(here.market, name, value)
    link = provision(here.run, ["sft"])
    assert [one.executor_id for one in link.row.nodes] == ["ex-3", "ex-4"] and link.name == "ts-r-sft-a2"
    assert set(here.board.hosts) == {"ex-1", "ex-2"}
    assert [row.name for row in here.market.pods()] == ["ts-r-sft-a2"], "nothing is left of the first"


def test_a_preflight_that_fails_on_one_node_names_it() -> None:
    lie = [
        Check("node-0: GPU type", "NVIDIA H200", "H200", ok=True),
        Check("node-1: GPU type", "A10", "H200", ok=False),
    ]
    here = two_fabrics(link={"ex-1": {"checks": lie}})
    assert provision(here.run, ["sft"]).row.executor_id == "ex-3"
    assert any("node-1: GPU type" in line and "A10" in line for line in here.said)


def test_a_fabric_with_too_few_nodes_is_waited_for_and_the_message_names_it() -> None:
    here = two_fabrics(capacity_wait_minutes=1)
    here.market.networks = [fabric("a", 1)]
    with pytest.raises(CapacityError, match=r"no fabric has 2 such nodes.*pod\.nodes"):
        provision(here.run, ["sft"])
    assert sum(here.run.clock.slept) == pytest.approx(60)


def adopted(here: Scene) -> Scene:
    """The same run steered by another process."""
    again = two_fabrics(board=here.board)
    again.market.listed = here.market.listed
    return again


def test_a_cluster_of_the_run_is_adopted_whole() -> None:
    here = two_fabrics()
    provision(here.run, ["sft"])
    again = adopted(here)
    link = provision(again.run, ["sft"])
    assert again.market.orders == [] and len(link.row.ids) == 2 and set(again.market.ends) == set(link.row.ids)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_cluster_that_lost_a_node_while_nobody_looked_is_given_back_and_another_is_rented(lost: int) -> None:
    here = two_fabrics()
    del here.market.listed[provision(here.run, ["sft"]).row.ids[lost]]
    again = adopted(here)
    link = provision(again.run, ["sft"])
    assert link.name == "ts-r-sft-a2" and [row.name for row in again.market.pods()] == ["ts-r-sft-a2"]
    assert again.market.ended_clusters == [f"c-{NAME}"]
    assert {"ex-1", "ex-2"} <= set(again.board.hosts)


def test_a_node_that_only_the_listing_lacks_is_no_loss() -> None:
    here = two_fabrics()
    ids = provision(here.run, ["sft"]).row.ids
    again = adopted(here)
    again.market.hidden.add(ids[1])
    found = living_pod(again.run)
    assert found is not None and found.ids == ids and again.market.released == []


def test_a_recipe_that_asks_for_another_number_of_nodes_gets_another_pod_and_blames_nobody() -> None:
    here = two_fabrics()
    provision(here.run, ["sft"])
    again = scene(host(5), board=here.board)
    again.market.listed = here.market.listed
    assert len(provision(again.run, ["sft"]).row.ids) == 1
    assert [row.name for row in again.market.pods()] == ["ts-r-sft-a2"] and again.board.hosts == {}


def test_a_rent_whose_answer_nobody_heard_is_asked_about_and_adopted() -> None:
    here = two_fabrics()
    row = provision(here.run, ["sft"]).row
    (found,) = here.board.rows
    intent = {"name": NAME, "executor_id": "ex-1", "key": "k", "endpoint": "/", "payload": {}, "at": 1.9e9}
    here.board.rows = [found | {"state": "INTENT", "id": None, "nodes": [], "cluster": None, "intent": intent}]
    again = adopted(here)
    again.market.settled[NAME] = row
    assert provision(again.run, ["sft"]).row.ids == row.ids and again.market.orders == []
    assert ids_of(again.board.rows[0]) == list(row.ids)


def test_the_cluster_is_given_back_as_one_thing_and_its_nodes_by_their_ids() -> None:
    here = two_fabrics()
    link = provision(here.run, ["sft"])
    here.market.hidden.update(link.row.ids)
    release_pods.fn(here.run, link)
    assert here.market.listed == {} and here.market.ended_clusters == [f"c-{NAME}"]
    assert here.board.rows[0]["state"] == "ENDED"


def test_the_bill_of_a_cluster_is_that_of_all_its_nodes() -> None:
    here = two_fabrics()
    link = provision(here.run, ["sft"])
    end = here.run.clock.now() + 3600
    from datetime import UTC, datetime

    from plugins.lium.pods import PodRecord

    bill = PodRecord("", NAME, 7.0, 3600.0, None, 8, None, None, datetime.fromtimestamp(end, UTC), None)
    here.market.record = lambda pod_id: replace(bill, pod_id=pod_id)  # type: ignore[assignment,method-assign]
    assert release_pods.fn(here.run, link) == 14.0


def test_a_cluster_whose_node_cannot_be_reached_is_left() -> None:
    here = two_fabrics(link={"ex-1": PodLost("node 1: SSH does not answer")})
    assert provision(here.run, ["sft"]).row.executor_id == "ex-3"
    assert isinstance(here.links[-1], Link)
