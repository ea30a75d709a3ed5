"""When nothing can be rented, one message names the limit that leaves none, the nearest host and who rests."""

from dataclasses import replace

import pytest

from plugins.lium.hosts import Host
from plugins.lium.limits import breaches
from plugins.lium.no_offer import HEADLINES
from plugins.lium.offers import Rest, Wish, rank

NOW = 1_760_000_000.0  # 2025-10-09 08:53:20 UTC
FOX = Host("e-1", "swift-fox-3a", "NVIDIA H200", "H200", 8, 8, False, 1.89, tier="spot", country="CA")
OWL = Host("e-2", "calm-owl-11", "NVIDIA H200", "H200", 8, 8, False, 2.49, tier="secure", country="US")
ELK = Host("e-3", "bold-elk-7c", "NVIDIA H100 80GB HBM3", "H100", 8, 8, False, 0.5, tier="secure", country="US")


def why(hosts: list[Host], resting: dict[str, Rest] | None = None, **wanted: object) -> str:
    wish = Wish(**{"gpus": ("H200",), **wanted})  # type: ignore[arg-type]
    return rank(hosts, wish, resting=resting or {}, now=NOW).explain()


def test_a_ceiling_under_every_offer_names_the_cheapest_and_the_key() -> None:
    assert why([OWL, FOX, ELK], max_price_per_gpu_hour=1.0) == (
        "price ceiling 1.00 is under every offer: the cheapest H200 is 1.89 (swift-fox-3a); "
        "raise pod.max_price_per_gpu_hour"
    )


def test_the_cheapest_that_meets_everything_else_is_the_nearest() -> None:
    said = why([OWL, FOX], max_price_per_gpu_hour=1.0, countries=("US",))
    assert said.startswith("price ceiling 1.00 is under every offer: the cheapest H200 is 2.49 (calm-owl-11)")


def test_limits_that_only_together_leave_none_are_told_by_the_nearest_host() -> None:
    assert why([OWL, FOX], max_price_per_gpu_hour=2.0, countries=("US",)) == (
        "no host meets every limit at once: the nearest is swift-fox-3a (H200 at 1.89): country CA not in US; "
        "add to pod.countries"
    )


def test_two_limits_that_each_leave_none_are_both_named() -> None:
    assert why([OWL], max_price_per_gpu_hour=2.0, countries=("FI",)) == (
        "price ceiling 2.00 is under every offer and no host is in FI: the nearest is calm-owl-11 (H200 at 2.49): "
        "price 2.49 > ceiling 2.00; country US not in FI; raise pod.max_price_per_gpu_hour, add to pod.countries"
    )


def test_too_many_gpus_say_what_is_free() -> None:
    said = why([replace(OWL, free_gpus=2)], gpu_count=8)
    assert said.startswith("no host has 8 of these GPUs to rent now: the nearest is calm-owl-11 (H200 at 2.49): 2 GPUs")
    assert "pod.capacity_wait_minutes" in said


def test_a_gpu_that_nobody_lists_names_those_on_the_list() -> None:
    assert why([ELK], gpus=("H200", "B200")) == (
        "no host of H200 or B200 is listed now; listed are NVIDIA H100 80GB HBM3 (pod.gpu)"
    )


def test_an_empty_market_is_said_to_be_empty() -> None:
    assert why([]) == "no host of H200 is listed now: Lium lists no host at all at this moment"


def test_resting_hosts_are_named_with_their_time_and_cause() -> None:
    resting = {"e-1": Rest(NOW + 600, "boot failed"), "e-2": Rest(NOW + 900, "preflight")}
    assert why([OWL, FOX], resting) == (
        "2 hosts rest after failures (pod.bad_host_hours): swift-fox-3a until 09:03 UTC (boot failed), "
        "calm-owl-11 until 09:08 UTC (preflight)"
    )


def test_a_host_that_rests_does_not_hide_why_the_others_are_out() -> None:
    said = why([OWL, FOX], {"e-1": Rest(NOW + 600, "boot failed")}, max_price_per_gpu_hour=2.0)
    assert said == (
        "price ceiling 2.00 is under every offer: the cheapest H200 is 2.49 (calm-owl-11); "
        "raise pod.max_price_per_gpu_hour. "
        "1 host rests after failures (pod.bad_host_hours): swift-fox-3a until 09:03 UTC (boot failed)"
    )


def test_many_resting_hosts_are_counted_and_few_are_named() -> None:
    hosts = [replace(FOX, executor_id=f"e-{number}", huid=f"h{number}") for number in range(5)]
    said = why(hosts, {host.executor_id: Rest(NOW + 60, "x") for host in hosts})
    assert said.startswith("5 hosts rest") and said.endswith("h2 until 08:54 UTC (x) and 2 more")


def test_hosts_without_a_price_are_not_called_too_dear() -> None:
    said = why([replace(FOX, price_per_gpu_hour=None)])
    assert said == "no host names its price: the nearest is swift-fox-3a (H200): unknown price; look again later"


def test_a_disk_that_was_worked_out_names_what_it_is_for_and_no_key_that_was_not_set() -> None:
    small = replace(OWL, disk_gb=100.0)
    disk: dict[str, object] = {"min_disk_gb": 256.0, "disk_for": "4 checkpoints of 64 GB (qwen3-4B)"}
    remedy = "the disk is for 4 checkpoints of 64 GB (qwen3-4B): lower checkpoint.keep or take a smaller model"
    assert why([small], **disk) == (
        "no host shows 256 GB of free disk: the nearest is calm-owl-11 (H200 at 2.49): free disk 100 < 256 GB; "
        f"{remedy}"
    )
    assert remedy in why([small, FOX], **disk, countries=("US",))
    assert why([small], min_disk_gb=256.0).endswith("lower pod.min_disk_gb")


ALL = Wish(
    ("H200",),
    gpu_count=9,
    tier="secure",
    max_price_per_gpu_hour=1.0,
    countries=("FI",),
    min_download_mbps=1.0,
    min_disk_gb=1.0,
    min_ram_gb=1.0,
    min_cuda=1.0,
    min_driver="1",
    min_ports=1,
)
KEYS = [breach.key for breach in breaches(replace(FOX, executor_id=""), ALL, None, NOW)]


@pytest.mark.parametrize("key", KEYS)
def test_every_limit_has_its_words_for_leaving_none(key: str) -> None:
    assert len(KEYS) == 11
    assert HEADLINES[key](ALL) in rank([replace(FOX, executor_id="")], ALL, now=NOW).explain()
