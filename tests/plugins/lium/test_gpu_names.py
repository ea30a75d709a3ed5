"""Which GPU a name means."""

import pytest
from lium.sdk.utils import extract_gpu_type

from plugins.lium.gpu_names import same_gpu

H100, A100, A10 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA A10"
RTX4090, RTX4090D = "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090 D"
PRO6000 = "NVIDIA RTX PRO 6000 Blackwell Server Edition"


@pytest.mark.parametrize(
    ("asked", "full_name"),
    [
        ("H200", "NVIDIA H200"),
        ("h200", "NVIDIA H200"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("H100", H100),
        (H100, H100),
        ("H100 PCIe", "NVIDIA H100 PCIe"),
        ("A100", A100),
        ("A100 80GB", A100),
        ("A10", A10),
        ("RTX4090", RTX4090),
        ("RTX 4090", RTX4090),
        ("rtx-4090", RTX4090),
        ("4090", RTX4090),
        ("4090D", RTX4090D),
        ("RTX 4090 D", RTX4090D),
        ("RTXPRO6000", PRO6000),
        ("PRO6000", PRO6000),
        ("RTX 6000 Pro", PRO6000),
        ("6000", PRO6000),
        ("6000", "NVIDIA RTX A6000"),
        ("A6000", "NVIDIA RTX A6000"),
        ("RTX6000", "NVIDIA RTX 6000 Ada Generation"),
        ("V100", "Tesla V100-SXM2-16GB"),
        ("100", H100),
        ("L4", "NVIDIA L4"),
        ("TITAN RTX", "NVIDIA TITAN RTX"),
    ],
)
def test_the_name_of_a_recipe_accepts_its_gpu(asked: str, full_name: str) -> None:
    assert same_gpu(asked, full_name)


@pytest.mark.parametrize(
    ("asked", "full_name"),
    [
        ("A100", A10),
        ("A10", A100),
        ("H20", "NVIDIA H200"),
        ("H200", "NVIDIA H20"),
        ("H200", "NVIDIA GH200 480GB"),
        ("L40", "NVIDIA L40S"),
        ("RTX4090", RTX4090D),
        ("4090", RTX4090D),
        ("4090D", RTX4090),
        ("RTX3060", "NVIDIA GeForce RTX 3060 Ti"),
        ("RTX6000", PRO6000),
        ("RTXPRO6000", "NVIDIA RTX PRO 6000D Blackwell Workstation Edition"),
        ("A100 80GB", "NVIDIA A100-SXM4-40GB"),
        ("H100 PCIe", H100),
        ("90", RTX4090),
        ("H200", ""),
        ("", "NVIDIA H200"),
        ("", ""),
        ("NVIDIA", "NVIDIA H200"),
        ("BM3", "NVIDIA HBM3"),
        ("170H", "NVIDIA CMP 170HX"),
    ],
)
def test_another_gpu_is_refused(asked: str, full_name: str) -> None:
    assert not same_gpu(asked, full_name)


@pytest.mark.parametrize(
    "full_name",
    [
        "NVIDIA H200",
        H100,
        A100,
        "NVIDIA B200",
        "NVIDIA L40S",
        RTX4090,
        "NVIDIA GeForce RTX 5090",
        "NVIDIA RTX A6000",
        "NVIDIA RTX 6000 Ada Generation",
        PRO6000,
    ],
)
def test_the_short_name_of_the_sdk_accepts_its_gpu(full_name: str) -> None:
    assert same_gpu(extract_gpu_type(full_name), full_name)
