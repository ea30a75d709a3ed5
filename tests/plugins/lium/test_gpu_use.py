"""How busy a pod's GPUs are, from the nvidia-smi of an emulator pod and from texts of real ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins.errors import ControlPlaneError
from plugins.lium.gpu_use import GpuUse, gpu_use, mean_percent, parse
from plugins.lium.tunnel import PodConnection
from tests.plugins.lium.rented import lie, rented_pod


@pytest.fixture
def pod(world, tmp_path: Path) -> Iterator[PodConnection]:
    settings = world.settings
    reach = (settings.base_url, settings.api_key, settings.ssh_key_path, tmp_path / "pins")
    with rented_pod(*reach, gpu="H200", count=2, environment={}) as connection:
        yield connection


def use(percent: float | None) -> GpuUse:
    return GpuUse(0, "NVIDIA H200", percent, 4, 143_771)


def test_the_gpus_of_a_pod_are_read(pod: PodConnection) -> None:
    seen = gpu_use(pod)
    assert [(gpu.index, gpu.name, gpu.memory_total_mib) for gpu in seen] == [
        (0, "NVIDIA H200", 143_771),
        (1, "NVIDIA H200", 143_771),
    ]
    assert all(gpu.percent is not None and 0 <= gpu.percent <= 100 for gpu in seen)
    assert mean_percent(seen) is not None


def test_what_is_no_reading_raises_and_shows_the_text(pod: PodConnection) -> None:
    lie(pod, "echo 'NVIDIA-SMI has failed because it could not talk to the driver.'; exit 9")
    with pytest.raises(ControlPlaneError, match=r"pod ts-\w+-sft-a1 gave status 9 .* could not talk to the driver"):
        gpu_use(pod)
    lie(pod, "echo '0, NVIDIA H200, 0, 4, 143771'; exit 15")
    with pytest.raises(ControlPlaneError, match="gave status 15"):
        gpu_use(pod)
    lie(pod, "echo 'No devices were found'")
    with pytest.raises(ControlPlaneError, match="no reading: No devices were found"):
        gpu_use(pod)
    lie(pod, "true")
    with pytest.raises(ControlPlaneError, match="no reading: nothing"):
        gpu_use(pod)


def test_a_pod_without_nvidia_smi_has_no_gpus(pod: PodConnection) -> None:
    lie(pod, None)
    if pod.run(["sh", "-c", "command -v nvidia-smi"]).rc == 0:
        pytest.skip("this machine has an nvidia-smi of its own, which the pod sees")
    assert gpu_use(pod) == []


def test_a_pod_that_does_not_answer_raises(pod: PodConnection) -> None:
    pod.close()
    with pytest.raises(ControlPlaneError, match="closed"):
        gpu_use(pod)


def test_the_lines_of_nvidia_smi() -> None:
    text = "0, NVIDIA H100 80GB HBM3, 97, 70123, 81559\n1, NVIDIA H100 80GB HBM3, 0, 4, 81559\n"
    assert parse(text) == [
        GpuUse(0, "NVIDIA H100 80GB HBM3", 97.0, 70_123, 81_559),
        GpuUse(1, "NVIDIA H100 80GB HBM3", 0.0, 4, 81_559),
    ]


def test_a_figure_that_is_not_given_is_unknown_and_not_zero() -> None:
    assert parse("0, NVIDIA A100-SXM4-80GB, [N/A], [Not Supported], 81920") == [
        GpuUse(0, "NVIDIA A100-SXM4-80GB", None, None, 81_920)
    ]


@pytest.mark.parametrize("text", ["0, NVIDIA H200, 5", "zero, NVIDIA H200, 5, 4, 5", "0, NVIDIA H200, busy, 4, 5"])
def test_a_line_that_is_no_reading_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_the_mean_is_not_known_when_one_gpu_is_not() -> None:
    assert mean_percent([use(10.0), use(30.0)]) == 20.0
    assert mean_percent([use(0.0), use(None)]) is None
    assert mean_percent([]) is None
