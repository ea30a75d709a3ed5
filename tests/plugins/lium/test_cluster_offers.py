"""Which fabric a run can rent: enough whole nodes of one GPU, every node within every limit, the cheapest together."""

from dataclasses import replace

from plugins.lium.hosts import Fabric, Host
from plugins.lium.offers import Ranking, Rest, Wish, rank_clusters

NOW = 1_760_000_000.0
NODE = Host("e", "fox", "NVIDIA H200", "H200", 8, 8, True, 2.0, tier="secure", country="US")


def fabric(name: str, *prices: float, **changes: object) -> Fabric:
    hosts = [
        replace(NODE, executor_id=f"{name}-{number}", huid=f"{name}{number}", price_per_gpu_hour=price, **changes)
        for number, price in enumerate(prices)
    ]
    return Fabric(name, "infiniband", len(hosts), tuple(hosts))


def ranked(*fabrics: Fabric, resting: dict[str, Rest] | None = None, **wanted: object) -> Ranking:
    wish = Wish(**{"gpus": ("H200",), "gpu_count": 8, "nodes": 2, **wanted})  # type: ignore[arg-type]
    return rank_clusters(fabrics, wish, resting=resting or {}, now=NOW)


def test_the_cheapest_nodes_of_a_fabric_are_one_offer_priced_together() -> None:
    (offer,) = ranked(fabric("a", 3.0, 2.0, 2.5)).offers
    assert [host.executor_id for host in offer.hosts] == ["a-1", "a-2"]
    assert (offer.price_per_gpu_hour, offer.price_per_hour, offer.gpu_count) == (2.25, 36.0, 8)
    assert "2 nodes of one fabric" in offer.reasons


def test_fabrics_are_ordered_by_what_their_nodes_cost_together() -> None:
    found = ranked(fabric("a", 1.0, 5.0), fabric("b", 2.0, 2.0)).offers
    assert [offer.host.executor_id for offer in found] == ["b-0", "a-0"]


def test_every_node_must_be_within_the_ceiling() -> None:
    found = ranked(fabric("a", 1.0, 5.0), max_price_per_gpu_hour=4.0)
    assert found.offers == ()
    assert "1 of 2 nodes of fabric a can be had, 2 wanted" in found.explain()


def test_too_few_free_nodes_are_no_offer_and_the_key_is_named() -> None:
    found = ranked(fabric("a", 1.0), fabric("b", 1.0))
    assert found.offers == () and len(found.refused) == 2
    assert "no fabric has 2 such nodes wholly free now" in found.explain()
    assert "pod.nodes" in found.explain() and "pod.capacity_wait_minutes" in found.explain()


def test_a_part_of_a_node_is_no_offer() -> None:
    found = ranked(fabric("a", 1.0, 1.0, whole_host_only=False), gpu_count=4)
    assert found.offers == () and "a cluster takes whole nodes (8 GPUs)" in found.explain()


def test_nodes_of_different_gpus_are_not_put_together() -> None:
    mixed = Fabric("m", "roce", 2, (*fabric("x", 1.0).hosts, *fabric("y", 1.0, gpu="NVIDIA H100 80GB HBM3").hosts))
    assert ranked(mixed, gpus=("H200", "H100")).offers == ()


def test_a_node_that_rests_is_left_out_and_so_its_fabric_when_it_has_no_other() -> None:
    rest = {"a-0": Rest(until=NOW + 60, why="lost a node")}
    (offer,) = ranked(fabric("a", 1.0, 1.0), fabric("b", 3.0, 3.0), resting=rest).offers
    assert offer.host.executor_id == "b-0"
    (offer,) = ranked(fabric("a", 1.0, 1.0, 1.0), resting=rest).offers
    assert [host.executor_id for host in offer.hosts] == ["a-1", "a-2"]


def test_when_no_fabric_is_listed_the_message_says_that() -> None:
    assert "Lium lists no fabric" in ranked().explain()


def test_the_order_of_preference_of_gpus_stands_before_the_price() -> None:
    h100 = fabric("cheap", 1.0, 1.0, gpu="NVIDIA H100 80GB HBM3")
    found = ranked(h100, fabric("dear", 4.0, 4.0), gpus=("H200", "H100")).offers
    assert [offer.host.executor_id for offer in found] == ["dear-0", "cheap-0"]
