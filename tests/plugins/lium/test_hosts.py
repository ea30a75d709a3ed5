"""Hosts read off the listing: every figure is a sound number or None, whatever a host or a server writes."""

import math
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugins.lium.hosts import Host, host_from_info

KIB, MIB = 1024, 1024**2
ROW: dict[str, Any] = {
    "id": "e-1",
    "huid": "swift-fox-3a",
    "machine_name": "NVIDIA H200",
    "gpu_type": "H200",
    "gpu_count": 8,
    "available_gpu_count": 6,
    "whole_host_only": False,
    "price_per_gpu": 1.89,
    "tier": "Spot",
    "location": {"country": "Canada", "country_code": "ca", "city": "Toronto"},
    "specs": {
        "gpu": {"driver": "580.95.05", "details": [{"name": "NVIDIA H200", "capacity": 143771}]},
        "ram": {"total": 2_000_000_000},
        "hard_disk": {"free": 1_000_000_000},
    },
    "effective_download_speed_mbps": 5000.0,
    "effective_upload_speed_mbps": "4000",
    "max_cuda_version": 13.0,
    "available_port_count": 20,
    "nvlink": True,
    "reliability_score": 99.0,
    "frequent_rent_failures": False,
    "last_verified_at": "2026-01-01T00:00:00Z",
    "gpu_power_limited": False,
}


def read(**changes: Any) -> Host:
    return host_from_info(SimpleNamespace(**{**ROW, **changes}))


def test_every_figure_of_a_whole_row_is_read_in_its_unit() -> None:
    assert read() == Host(
        executor_id="e-1",
        huid="swift-fox-3a",
        gpu="NVIDIA H200",
        gpu_type="H200",
        gpu_count=8,
        free_gpus=6,
        whole_host_only=False,
        price_per_gpu_hour=1.89,
        tier="spot",
        country="CA",
        city="Toronto",
        download_mbps=5000.0,
        upload_mbps=4000.0,
        disk_gb=1_000_000_000 * KIB / 1e9,
        ram_gb=2_000_000_000 * KIB / 1e9,
        vram_gb=143771 * MIB / 1e9,
        cuda=13.0,
        driver="580.95.05",
        ports=20,
        nvlink=True,
        reliability=99.0,
        frequent_failures=False,
        verified_at="2026-01-01T00:00:00Z",
        power_limited=False,
    )


def test_what_is_missing_is_none_and_no_count_is_no_gpu() -> None:
    host = host_from_info(SimpleNamespace())
    named = {"executor_id", "huid", "gpu", "gpu_type", "gpu_count", "free_gpus", "whole_host_only"}
    assert {field.name: getattr(host, field.name) for field in fields(host) if field.name not in named} == {
        field.name: None for field in fields(host) if field.name not in named
    }
    assert (host.gpu_count, host.free_gpus, host.whole_host_only) == (0, 0, False)


def test_without_a_count_of_free_gpus_the_whole_host_is_free() -> None:
    assert read(available_gpu_count=None).free_gpus == 8


def test_more_free_gpus_than_the_host_has_are_not_believed() -> None:
    assert read(available_gpu_count=64).free_gpus == 8


@pytest.mark.parametrize("price", [0, 0.0, None, -1, math.nan, math.inf, "free", True])
def test_a_price_that_is_none_does_not_look_like_the_cheapest(price: object) -> None:
    assert read(price_per_gpu=price).price_per_gpu_hour is None


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ({"country_code": "fi"}, "FI"),
        ({"country": "US"}, "US"),
        ({"country": "United States"}, None),
        ({"country_code": "", "country": "DE"}, "DE"),
        ({"country_code": 7}, None),
        (None, None),
    ],
)
def test_a_country_is_a_two_letter_code_or_none(location: object, code: str | None) -> None:
    assert read(location=location).country == code


def test_the_smallest_gpu_counts_for_memory() -> None:
    cards = [{"capacity": 143771}, {"capacity": 81559}, {"capacity": None}]
    assert read(specs={"gpu": {"details": cards}}).vram_gb == pytest.approx(81559 * MIB / 1e9)


def test_a_host_without_a_name_is_called_after_its_first_gpu() -> None:
    assert read(machine_name="").gpu == "NVIDIA H200"


def test_control_characters_of_a_host_do_not_reach_a_terminal() -> None:
    assert read(machine_name="NVIDIA\x1b[2J H200\n").gpu == "NVIDIA[2J H200"


def test_a_host_cannot_fill_the_screen() -> None:
    assert len(read(location={"city": "x" * 10_000}).city or "") == 100


nonsense = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["gpu", "details", "capacity", "driver", "ram", "total", "country_code", "free"]), inner
        )
    ),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(sorted(ROW)), nonsense))
def test_nonsense_never_raises_and_never_becomes_a_figure(row: dict[str, object]) -> None:
    host = read(**row)
    numbers = [value for field in fields(host) if isinstance(value := getattr(host, field.name), int | float)]
    assert all(math.isfinite(number) and number >= 0 for number in numbers)
    assert 0 <= host.free_gpus <= host.gpu_count


def test_the_sdks_listing_of_a_running_server_is_read(world: Any) -> None:
    hosts = {host.executor_id: host for host in world.account.hosts()}
    spot = next(host for host in hosts.values() if host.gpu == "NVIDIA H200" and host.tier == "spot")
    assert (spot.gpu_type, spot.price_per_gpu_hour, spot.country, spot.city) == ("H200", 1.89, "CA", "Toronto")
    assert (spot.disk_gb, spot.ram_gb) == (pytest.approx(4000, abs=1e-3), pytest.approx(1024, abs=1e-3))
    whole = next(host for host in hosts.values() if host.price_per_gpu_hour == 1.79)
    assert whole.whole_host_only and not spot.whole_host_only
