"""Parameters from a model's flags, and what a training GPU must hold of them."""

import pytest

from plugins.lium.gpu_memory import least_memory_gb
from plugins.slime.defaults import Machine
from plugins.slime.memory import fits, need, parameters

QWEN3_4B = {
    "swiglu": True,
    "num-layers": 36,
    "hidden-size": 2560,
    "ffn-hidden-size": 9728,
    "num-attention-heads": 32,
    "group-query-attention": True,
    "num-query-groups": 8,
    "vocab-size": 151936,
    "kv-channels": 128,
}
QWEN3_30B_A3B = {
    **QWEN3_4B,
    "num-layers": 48,
    "hidden-size": 2048,
    "num-query-groups": 4,
    "num-experts": 128,
    "moe-ffn-hidden-size": 768,
    "untie-embeddings-and-output-weights": True,
}


@pytest.mark.parametrize(("shape", "billions"), [(QWEN3_4B, 4.02), (QWEN3_30B_A3B, 30.5)])
def test_parameters_are_those_of_the_model_card(shape, billions):
    assert parameters(shape) == pytest.approx(billions * 1e9, rel=0.01)


def test_a_shape_that_says_too_little_gives_no_number():
    assert parameters({"num-layers": 2}) is None


def test_the_optimizer_is_spread_over_the_replicas_and_the_rest_over_tensor_and_pipeline():
    alone = need(4e9, {}, Machine(1, 1))
    assert (alone.weights_gb, alone.gradients_gb, alone.optimizer_gb) == (8, 16, 48)
    assert need(4e9, {}, Machine(1, 8)).optimizer_gb == 6
    split = need(4e9, {"tensor-model-parallel-size": 2, "pipeline-model-parallel-size": 2}, Machine(1, 8))
    assert (split.weights_gb, split.gradients_gb, split.optimizer_gb) == (2, 4, 6)


def test_a_model_fits_is_tight_or_cannot_fit():
    assert fits(need(4e9, {}, Machine(1, 1)), 141) is True
    assert fits(need(4e9, {}, Machine(1, 1)), 80) is None
    assert fits(need(4e9, {}, Machine(1, 1)), 48) is False


@pytest.mark.parametrize(
    ("names", "gigabytes"),
    [(["H100", "H200"], 80), (["A100 40GB"], 40), (["NVIDIA A100 80GB PCIe"], 80), (["RTX4090"], 24), (["X99"], None)],
)
def test_memory_of_the_smallest_gpu_that_may_be_rented(names, gigabytes):
    assert least_memory_gb(names) == gigabytes
