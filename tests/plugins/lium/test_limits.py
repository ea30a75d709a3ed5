"""What a host does not meet is said with the figure found and the limit; silence never passes for enough."""

import subprocess
import sys
from dataclasses import replace

import pytest

from plugins.lium.countries import CODES
from plugins.lium.hosts import Host
from plugins.lium.limits import Refusal, Rest, Wish, breaches, choice, money, time_text

NOW = 1_760_000_000.0  # 2025-10-09 08:53:20 UTC
HOST = Host(
    "e-1",
    "swift-fox-3a",
    "NVIDIA H200",
    "H200",
    8,
    6,
    False,
    2.49,
    tier="spot",
    country="CA",
    download_mbps=500.0,
    disk_gb=100.0,
    ram_gb=64.0,
    cuda=12.4,
    driver="550.1",
    ports=2,
)
WISH = Wish(("H200",))
LIMITS = [
    ("pod.max_price_per_gpu_hour", {"max_price_per_gpu_hour": 2.0}, "price 2.49 > ceiling 2.00"),
    ("pod.countries", {"countries": ("US", "FI")}, "country CA not in US, FI"),
    ("pod.gpu_count", {"gpu_count": 8}, "6 GPUs free, 8 wanted"),
    ("pod.tier", {"tier": "secure"}, "tier spot, secure wanted"),
    ("pod.min_download_mbps", {"min_download_mbps": 1000.0}, "download speed 500 < 1000 Mbit/s"),
    ("pod.min_disk_gb", {"min_disk_gb": 500.0}, "free disk 100 < 500 GB"),
    ("pod.min_ram_gb", {"min_ram_gb": 128.0}, "memory 64 < 128 GB"),
    ("pod.min_cuda", {"min_cuda": 12.8}, "CUDA 12.4 < 12.8"),
    ("pod.min_ports", {"min_ports": 3}, "ports 2 < 3"),
    ("pod.min_driver", {"min_driver": "570"}, "driver 550.1 < 570"),
]
SILENT = {
    "country": ({"countries": ("US",)}, "unknown country not in US"),
    "tier": ({"tier": "secure"}, "unknown tier, secure wanted"),
    "price_per_gpu_hour": ({}, "unknown price"),
    "download_mbps": ({"min_download_mbps": 1.0}, "unknown download speed"),
    "disk_gb": ({"min_disk_gb": 1.0}, "unknown free disk"),
    "ram_gb": ({"min_ram_gb": 1.0}, "unknown memory"),
    "cuda": ({"min_cuda": 1.0}, "unknown CUDA"),
    "ports": ({"min_ports": 1}, "unknown ports"),
    "driver": ({"min_driver": "1"}, "unknown driver"),
}


def found(host: Host, rest: Rest | None = None, **wanted: object) -> list[tuple[str, str]]:
    wish = replace(WISH, **wanted)  # type: ignore[arg-type]
    return [(breach.key, breach.found) for breach in breaches(host, wish, rest, NOW)]


def test_a_host_that_meets_everything_breaks_nothing() -> None:
    assert found(HOST) == []


@pytest.mark.parametrize(("key", "wanted", "words"), LIMITS, ids=[key for key, _, _ in LIMITS])
def test_a_broken_limit_names_its_key_the_figure_and_the_limit(key: str, wanted: dict, words: str) -> None:
    assert found(HOST, **wanted) == [(key, words)]


@pytest.mark.parametrize("figure", SILENT)
def test_a_figure_that_is_not_given_does_not_meet_a_limit(figure: str) -> None:
    wanted, words = SILENT[figure]
    host = replace(HOST, **{figure: None})  # type: ignore[arg-type]
    assert [said for _, said in found(host, **wanted)] == [words]


@pytest.mark.parametrize("tier", ["secure", "community", None])
def test_who_asks_for_spot_gets_spot_only(tier: str | None) -> None:
    named = f"tier {tier}" if tier else "unknown tier"
    assert found(replace(HOST, tier=tier), tier="spot") == [("pod.tier", f"{named}, spot wanted")]
    assert found(replace(HOST, tier=tier), tier="spot-first") == found(replace(HOST, tier=tier), tier="any") == []


def test_a_figure_equal_to_its_limit_is_enough() -> None:
    enough = {"min_download_mbps": 500.0, "min_disk_gb": 100.0, "min_ram_gb": 64.0, "min_cuda": 12.4, "min_ports": 2}
    assert found(HOST, min_driver="550.1", gpu_count=6, max_price_per_gpu_hour=2.49, **enough) == []


def test_all_broken_limits_are_told_at_once() -> None:
    wanted = {name: value for _, limits, _ in LIMITS for name, value in limits.items()}
    assert [words for _, words in found(HOST, **wanted)] == [
        words for _, _, words in sorted(LIMITS, key=lambda row: _place(row[0]))
    ]


def _place(key: str) -> int:
    first = ["pod.gpu_count", "pod.max_price_per_gpu_hour", "pod.tier", "pod.countries"]
    rest = ["pod.min_download_mbps", "pod.min_disk_gb", "pod.min_ram_gb", "pod.min_cuda", "pod.min_ports"]
    return [*first, *rest, "pod.min_driver"].index(key)


def test_another_gpu_is_the_only_reason_for_a_host_that_has_one() -> None:
    assert found(HOST, gpus=("H100", "A100"), countries=("US",)) == [("pod.gpu", "NVIDIA H200 is not H100 or A100")]


@pytest.mark.parametrize(("wanted", "said"), [(1, ["rents whole only (8 GPUs)"]), (8, [])])
def test_a_whole_host_is_rented_for_its_whole_count_only(wanted: int, said: list[str]) -> None:
    host = replace(HOST, whole_host_only=True, free_gpus=8)
    assert [words for _, words in found(host, gpu_count=wanted)] == said


def test_a_whole_host_that_is_partly_rented_is_not_free() -> None:
    host = replace(HOST, whole_host_only=True, free_gpus=0)
    assert found(host, gpu_count=8) == [("pod.gpu_count", "0 GPUs free, 8 wanted")]


def test_a_resting_host_says_until_when_and_why() -> None:
    assert found(HOST, Rest(NOW + 600, "boot failed")) == [
        ("pod.bad_host_hours", "rests until 09:03 UTC: boot failed"),
    ]
    assert found(HOST, Rest(NOW, "boot failed")) == []


def test_a_host_without_an_id_cannot_be_rented() -> None:
    assert found(replace(HOST, executor_id="")) == [("listing", "is listed without an id")]


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (NOW + 60, "08:54 UTC"),
        (NOW + 86400, "2025-10-10 08:53 UTC"),
        (float("inf"), "further notice"),
        (1e300, "further notice"),
    ],
)
def test_a_time_carries_its_day_unless_it_is_today(at: float, text: str) -> None:
    assert time_text(at, NOW) == text


@pytest.mark.parametrize(
    ("have", "need", "fits"),
    [
        ("570", "570.0", True),
        ("570.86.10", "570.86.9", True),
        ("99.9", "570", False),
        ("570.172.08-open", "570.172.8", True),
        ("open", "1", False),
    ],
)
def test_drivers_compare_as_numbers_part_by_part(have: str, need: str, fits: bool) -> None:
    assert (found(replace(HOST, driver=have), min_driver=need) == []) is fits


@pytest.mark.parametrize(
    ("asked", "gpu"),
    [
        ("H200", "NVIDIA H200"),
        ("h200", "NVIDIA H200"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("nvidia  h200", "NVIDIA H200"),
        ("RTX4090", "NVIDIA GeForce RTX 4090"),
        ("rtx 4090", "NVIDIA GeForce RTX 4090"),
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("A100", "NVIDIA A100-SXM4-80GB"),
        ("pro6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition"),
    ],
)
def test_a_gpu_is_known_by_every_name_people_give_it(asked: str, gpu: str) -> None:
    assert choice(replace(HOST, gpu=gpu), (asked,)) == 0


@pytest.mark.parametrize("asked", ["H20", "H100", "NVIDIA H100", "GH200", "20", "", " ", "NVIDIA"])
def test_another_gpus_name_does_not_pass(asked: str) -> None:
    assert choice(HOST, (asked,)) is None


def test_a_variant_that_the_sdk_gives_the_same_short_name_is_not_taken_for_the_gpu() -> None:
    assert choice(replace(HOST, gpu="NVIDIA GH200 480GB", gpu_type="H200"), ("H200",)) is None


def test_a_gpu_without_a_name_is_nobodys_choice() -> None:
    nameless = replace(HOST, gpu="", gpu_type="Unknown")
    assert choice(nameless, ("H200", "", " ")) is None
    assert choice(HOST, ("H100", "H200")) == 1


@pytest.mark.parametrize(
    ("usd", "text"), [(1.89, "1.89"), (0.5, "0.50"), (2, "2.00"), (0.125, "0.125"), (1 / 3, "0.333333")]
)
def test_money_has_cents_and_more_where_it_takes_more(usd: float, text: str) -> None:
    assert money(usd) == text


def test_a_refusal_joins_its_reasons() -> None:
    wish = Wish(("H200",), max_price_per_gpu_hour=2.0, countries=("US",))
    refusal = Refusal(HOST, breaches(HOST, wish, None, NOW))
    assert refusal.why == "price 2.49 > ceiling 2.00; country CA not in US"
    assert not refusal.other_gpu


def test_the_country_codes_are_those_of_iso_3166() -> None:
    table = subprocess.run(
        [
            sys.executable,
            "-c",
            "import importlib.resources as r; print(r.files('tzdata.zoneinfo').joinpath('iso3166.tab').read_text())",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert {line.split("\t")[0] for line in table.splitlines() if line and not line.startswith("#")} == CODES
