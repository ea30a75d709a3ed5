"""The ranking: the same list from the same hosts in any order, nothing over a limit, a reason for every host."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugins.lium.hosts import Host
from plugins.lium.offers import Estimate, Ranking, Rest, Wish, rank, shortlist

NOW = 1_760_000_000.0
GPUS = {"H200": "NVIDIA H200", "H100": "NVIDIA H100 80GB HBM3", "RTX4090": "NVIDIA GeForce RTX 4090"}


def host(name: str, price: float | None = 2.0, gpu: str = "H200", **figures: object) -> Host:
    base = Host(name, f"huid-{name}", GPUS[gpu], gpu, 8, 8, False, price, tier="secure", country="US")
    return replace(base, **figures)  # type: ignore[arg-type]


def ids(ranking: Ranking) -> list[str]:
    return [offer.host.executor_id for offer in ranking.offers]


def order(*hosts: Host, wish: Wish | None = None, **how: object) -> list[str]:
    wish = wish or Wish(gpus=("H200", "H100"))
    return ids(rank(hosts, wish, now=NOW, **how))  # type: ignore[arg-type]


def test_the_preferred_gpu_comes_first_whatever_it_costs() -> None:
    assert order(host("a", 1.0, "H100"), host("b", 3.0, "H200")) == ["b", "a"]


def test_the_cheaper_of_two_comes_first() -> None:
    assert order(host("a", 2.5), host("b", 1.9), host("c", 2.2)) == ["b", "c", "a"]


def test_a_host_whose_rents_often_fail_comes_after_dearer_ones() -> None:
    assert order(host("a", 1.0, frequent_failures=True), host("b", 3.0)) == ["b", "a"]


def test_a_host_whose_rents_often_fail_still_comes_before_a_less_wanted_gpu() -> None:
    assert order(host("a", 1.0, frequent_failures=True), host("b", 1.0, "H100")) == ["a", "b"]


TIERS = (host("a", 1.0, tier="secure"), host("b", 3.0, tier="spot"), host("c", 0.5, tier=None))


def test_spot_first_puts_spot_before_cheaper_secure() -> None:
    assert order(*TIERS, wish=Wish(("H200",), tier="spot-first")) == ["b", "a", "c"]


def test_spot_first_puts_spot_last_while_spot_is_not_allowed() -> None:
    assert order(*TIERS, wish=Wish(("H200",), tier="spot-first"), spot_allowed=False) == ["a", "c", "b"]


def test_for_any_tier_only_the_price_counts() -> None:
    assert order(*TIERS, wish=Wish(("H200",), tier="any"), spot_allowed=False) == ["c", "a", "b"]


NEAR = (host("a", 2.00), host("b", 2.03))


@pytest.mark.parametrize(
    ("estimates", "first"),
    [
        ({}, "a"),
        ({"b": Estimate(None, True)}, "b"),
        ({"b": Estimate(20, None)}, "b"),
        ({"a": Estimate(90, False), "b": Estimate(20, False)}, "b"),
        ({"a": Estimate(600, True), "b": Estimate(20, False)}, "a"),
        ({"a": Estimate(20, True), "b": Estimate(20, True)}, "a"),
        ({"a": Estimate(float("nan"), None), "b": Estimate(60, None)}, "b"),
    ],
)
def test_image_then_boot_time_break_a_near_tie_in_price(estimates: dict[str, Estimate], first: str) -> None:
    assert order(*NEAR, estimates=estimates)[0] == first


def test_in_a_near_tie_that_no_boot_tells_apart_the_price_decides_before_reliability() -> None:
    assert order(host("a", 2.00, reliability=50.0), host("b", 2.03, reliability=99.0)) == ["a", "b"]


def test_an_image_on_the_host_does_not_outweigh_more_than_two_percent() -> None:
    assert order(host("a", 2.00), host("b", 2.05), estimates={"b": Estimate(1, True)})[0] == "a"


def test_a_chain_of_near_ties_does_not_carry_a_dear_host_to_the_front() -> None:
    chain = [host("a", 2.00), host("b", 2.03), host("c", 2.06)]
    assert order(*chain, estimates={"c": Estimate(1, True)}) == ["a", "b", "c"]


def test_equal_prices_are_told_apart_by_reliability_then_speed_then_id() -> None:
    hosts = [
        host("d", reliability=90.0, download_mbps=100.0),
        host("c", reliability=90.0, download_mbps=100.0),
        host("b", reliability=90.0, download_mbps=900.0),
        host("e", reliability=99.0),
        host("a"),
    ]
    assert order(*hosts) == ["e", "b", "c", "d", "a"]


def test_the_ceiling_admits_the_price_it_was_copied_from() -> None:
    wish = Wish(("H200",), max_price_per_gpu_hour=0.3)
    assert order(host("a", 0.1 + 0.2), wish=wish) == ["a"]
    assert order(host("a", 0.3001), wish=wish) == []


def test_an_offer_names_its_prices() -> None:
    offer = rank([host("a", 1.89)], Wish(("H200",), gpu_count=4), now=NOW).offers[0]
    assert (offer.gpu_count, offer.price_per_gpu_hour, offer.price_per_hour) == (4, 1.89, pytest.approx(7.56))


def test_reasons_say_choice_price_tier_image_and_time() -> None:
    hosts = [host("a", 1.89, tier="spot"), host("b", 2.49), host("c", 1.0, "H100", frequent_failures=True)]
    found = rank(hosts, Wish(("H200", "H100")), now=NOW, estimates={"a": Estimate(20, True)}).offers
    assert [offer.reasons for offer in found] == [
        ("1st choice H200", "$1.89 per GPU-hour, the cheapest of 2", "spot", "image on the host", "ready in ~20 s"),
        ("1st choice H200", "$2.49 per GPU-hour, 0.60 over the cheapest", "secure"),
        ("2nd choice H100", "$1.00 per GPU-hour, the only one", "secure", "its rents often fail to start"),
    ]


def test_the_first_offers_deserve_the_question_for_their_boot_time() -> None:
    ranking = rank([host(str(number), 1.0 + number) for number in range(9)], Wish(("H200",)), now=NOW)
    assert shortlist(ranking) == ("0", "1", "2", "3", "4")
    assert shortlist(ranking, 2) == ("0", "1")


def test_a_resting_host_comes_back_when_its_time_is_over() -> None:
    resting = {"a": Rest(NOW + 60, "boot failed")}
    wish = Wish(("H200",))
    assert ids(rank([host("a")], wish, resting=resting, now=NOW + 59.9)) == []
    assert ids(rank([host("a")], wish, resting=resting, now=NOW + 60)) == ["a"]


def test_a_ranking_with_offers_has_nothing_to_explain() -> None:
    assert rank([host("a")], Wish(("H200",)), now=NOW).explain() == ""


def test_the_hosts_of_a_running_server_are_ranked(world: Any) -> None:
    wish = Wish(("NVIDIA H200", "h100"), gpu_count=2, tier="spot-first", max_price_per_gpu_hour=2.49)
    ranking = rank(world.account.hosts(), wish, now=NOW)
    prices = [(offer.host.gpu_type, offer.host.tier, offer.price_per_gpu_hour) for offer in ranking.offers]
    assert prices == [("H200", "spot", 1.89), ("H200", "secure", 2.49), ("H100", "secure", 1.99)]
    assert "rents whole only (8 GPUs)" in [refusal.why for refusal in ranking.refused]


# -- properties ------------------------------------------------------------------------------------------------------

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
fitting_types = {("H200",): {"H200"}, ("H200", "H100"): {"H200", "H100"}, ("4090", "NVIDIA H200"): {"RTX4090", "H200"}}
names = st.sampled_from("abcdefghijklmn")
prices = st.sampled_from([None, 1.0, 1.01, 1.015, 1.03, 1.5, 2.0, 2.0000000001, 3.0])
maybe = st.none()
hosts_strategy = st.lists(
    st.builds(
        host,
        names,
        prices,
        st.sampled_from(sorted(GPUS)),
        free_gpus=st.integers(0, 8),
        whole_host_only=st.booleans(),
        tier=st.sampled_from([None, "spot", "secure", "other"]),
        country=st.sampled_from([None, "US", "FI", "CA"]),
        download_mbps=maybe | st.sampled_from([100.0, 1000.0]),
        disk_gb=maybe | st.sampled_from([100.0, 1000.0]),
        ram_gb=maybe | st.sampled_from([64.0, 512.0]),
        cuda=maybe | st.sampled_from([12.4, 12.8, 13.0]),
        driver=maybe | st.sampled_from(["550.1", "570.172.08", "580"]),
        ports=maybe | st.integers(0, 20),
        reliability=maybe | st.sampled_from([90.0, 99.0]),
        frequent_failures=st.sampled_from([None, True, False]),
    ),
    max_size=12,
    unique_by=lambda found: found.executor_id,
)


def seldom(*limits: object) -> st.SearchStrategy[Any]:
    """A wish with every limit set would leave no offer to look at."""
    return st.sampled_from([None] * 4 * len(limits) + list(limits))


wishes = st.builds(
    Wish,
    gpus=st.sampled_from(sorted(fitting_types)),
    gpu_count=st.sampled_from([1, 4, 8]),
    tier=st.sampled_from(["secure", "spot", "any", "spot-first"]),
    max_price_per_gpu_hour=seldom(0.5, 1.01, 2.0),
    countries=st.sampled_from([(), (), ("US",), ("US", "FI")]),
    min_download_mbps=seldom(500.0),
    min_disk_gb=seldom(500.0),
    min_ram_gb=seldom(100.0),
    min_cuda=seldom(12.8),
    min_driver=seldom("570"),
    min_ports=seldom(10),
)
rests = st.dictionaries(names, st.builds(Rest, st.floats(NOW - 9, NOW + 9), st.just("x")))
guesses = st.dictionaries(
    names,
    st.builds(Estimate, maybe | st.sampled_from([5.0, 60.0]), st.sampled_from([None, True, False])),
)


@unhurried
@given(hosts_strategy, wishes, rests, guesses, st.booleans(), st.randoms())
def test_the_order_of_the_listing_changes_nothing(hosts, wish, resting, estimates, spot_allowed, random) -> None:
    def ranked(listing: list[Host]) -> Ranking:
        return rank(listing, wish, resting=resting, now=NOW, spot_allowed=spot_allowed, estimates=estimates)

    shuffled = list(hosts)
    random.shuffle(shuffled)
    assert ranked(hosts) == ranked(shuffled)
    assert ranked(hosts).explain() == ranked(shuffled).explain()


@unhurried
@given(hosts_strategy, wishes, rests)
def test_every_host_is_offered_or_refused_with_a_reason(hosts, wish, resting) -> None:
    ranking = rank(hosts, wish, resting=resting, now=NOW)
    refused = [refusal.host.executor_id for refusal in ranking.refused]
    assert sorted(ids(ranking) + refused) == sorted(found.executor_id for found in hosts)
    assert all(refusal.why for refusal in ranking.refused)
    assert all(offer.reasons for offer in ranking.offers)
    assert bool(ranking.explain()) == (not ranking.offers)


@unhurried
@given(hosts_strategy, wishes, rests)
def test_no_offer_breaks_a_limit(hosts, wish, resting) -> None:
    for offer in rank(hosts, wish, resting=resting, now=NOW).offers:
        found = offer.host
        assert found.gpu_type in fitting_types[wish.gpus]
        assert found.price_per_gpu_hour is not None
        assert wish.max_price_per_gpu_hour is None or found.price_per_gpu_hour <= wish.max_price_per_gpu_hour + 1e-9
        assert found.gpu_count == wish.gpu_count if found.whole_host_only else True
        assert found.free_gpus >= wish.gpu_count
        assert wish.tier not in ("secure", "spot") or found.tier == wish.tier
        assert not wish.countries or found.country in wish.countries
        for name in ("download_mbps", "disk_gb", "ram_gb", "cuda", "ports"):
            least, figure = getattr(wish, f"min_{name}"), getattr(found, name)
            assert least is None or (figure is not None and figure >= least)
        assert wish.min_driver is None or found.driver in ("570.172.08", "580")


@unhurried
@given(hosts_strategy, wishes, rests)
def test_a_resting_host_is_never_offered_before_its_time(hosts, wish, resting) -> None:
    offered = ids(rank(hosts, wish, resting=resting, now=NOW))
    assert not any(resting[name].until > NOW for name in offered if name in resting)
    awake = ids(rank(hosts, wish, resting=resting, now=NOW + 10))
    assert awake == ids(rank(hosts, wish, now=NOW))


@unhurried
@given(hosts_strategy, wishes)
def test_no_fitting_host_is_left_out_for_another_ones_sake(hosts, wish) -> None:
    alone = {found.executor_id for found in hosts if rank([found], wish, now=NOW).offers}
    assert set(ids(rank(hosts, wish, now=NOW))) == alone
