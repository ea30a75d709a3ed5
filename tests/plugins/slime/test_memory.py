"""Parameters from a model's flags, and what a training GPU must hold of them."""

import pytest

from plugins.lium.gpu_memory import least_memory_gb
from plugins.slime.defaults import Machine
from plugins.slime.memory import fits, need
from plugins.slime.model_size import Size, expert_layers, model_size
from plugins.slime.models import check_model_name, shape_of_model

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
    size = model_size(shape)
    assert size and size.parameters == pytest.approx(billions * 1e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "billions", "experts"),
    [
        ("qwen3-0.6B", 0.6, 0),
        ("llama3.1-8B-Instruct", 8.03, 0),
        ("moonlight", 16.0, 14.4),
        ("qwen3-235B-A22B", 235.1, 227.1),
        ("deepseek-v3", 671.0, 653.9),
        ("kimi-k2", 1026.0, 1014.7),
    ],
)
def test_models_of_slime_are_as_large_as_their_cards_say_without_slime(name, billions, experts):
    size = model_size(shape_of_model(name))
    assert size and size.parameters == pytest.approx(billions * 1e9, rel=0.01)
    assert size.experts == pytest.approx(experts * 1e9, rel=0.01)
    check_model_name(name)


@pytest.mark.parametrize(
    ("frequency", "layers"),
    [(1, 8), (2, 4), (3, 3), ("[0]*3+[1]*5", 5), ("([1]*3+[0])*2", 6), ("[0,1,1,1,1,1,1,1]", 7), ("[1]*[1]", 8)],
)
def test_layers_with_experts_follow_megatrons_pattern(frequency, layers):
    assert expert_layers({"num-experts": 4, "moe-layer-freq": frequency}, 8) == layers


def test_a_shape_that_says_too_little_gives_no_number():
    assert model_size({"num-layers": 2}) is None


def test_the_optimizer_is_spread_over_the_replicas_and_the_rest_over_tensor_and_pipeline():
    alone = need(Size(4e9), {}, Machine(1, 1))
    assert (alone.weights_gb, alone.gradients_gb, alone.optimizer_gb) == (8, 16, 48)
    assert need(Size(4e9), {}, Machine(1, 8)).optimizer_gb == 6
    split = need(Size(4e9), {"tensor-model-parallel-size": 2, "pipeline-model-parallel-size": 2}, Machine(1, 8))
    assert (split.weights_gb, split.gradients_gb, split.optimizer_gb) == (2, 4, 6)


OFFLOAD = {"optimizer-cpu-offload": True, "use-precision-aware-optimizer": True}


def test_an_optimizer_that_the_host_keeps_is_not_on_the_gpu():
    assert need(Size(4e9), OFFLOAD, Machine(1, 1)).optimizer_gb == 0
    assert need(Size(4e9), OFFLOAD | {"optimizer-offload-fraction": 0.75}, Machine(1, 1)).optimizer_gb == 12
    assert need(Size(4e9), OFFLOAD | {"optimizer-offload-fraction": 0.0}, Machine(1, 1)).optimizer_gb == 48


def test_experts_are_divided_by_other_sizes_than_the_rest():
    flags = {"tensor-model-parallel-size": 4, "expert-model-parallel-size": 8, "expert-tensor-parallel-size": 1}
    wanted = need(Size(30e9, 28e9), flags, Machine(1, 8))
    assert wanted.weights_gb == 2 * (2 / 4 + 28 / 8)
    assert wanted.optimizer_gb == 12 * (2 / 8 + 28 / 8)
    del flags["expert-tensor-parallel-size"]  # then it is the tensor size
    assert need(Size(30e9, 28e9), flags, Machine(4, 8)).weights_gb == 2 * (2 / 4 + 28 / 32)
    assert need(Size(30e9, None), flags, Machine(4, 8)).weights_gb == 2 * 30 / 32


def test_a_model_that_is_known_to_fit_is_not_refused():
    flags = {"tensor-model-parallel-size": 8, "expert-model-parallel-size": 8}
    wanted = need(model_size(shape_of_model("qwen3-235B-A22B")), flags, Machine(8, 8))
    assert wanted.total_gb == pytest.approx(71, abs=2) and fits(wanted, 141)


@pytest.mark.parametrize(
    ("flags", "gigabytes"),
    [
        ({"grad-reduce-in-bf16": True}, (8, 8, 48)),
        ({"use-precision-aware-optimizer": True, "exp-avg-dtype": "bf16", "exp-avg-sq-dtype": "fp8"}, (8, 16, 28)),
        ({"fp8-param-gather": True}, (4, 16, 48)),
        ({"only-train-params-name-list": ["lora"]}, (8, 0, 0)),
    ],
)
def test_flags_that_save_memory_count(flags, gigabytes):
    wanted = need(Size(4e9), flags, Machine(1, 1))
    assert (wanted.weights_gb, wanted.gradients_gb, wanted.optimizer_gb) == gigabytes


def test_a_model_fits_is_tight_or_cannot_fit():
    assert fits(need(Size(4e9), {}, Machine(1, 1)), 141) is True
    assert fits(need(Size(4e9), {}, Machine(1, 1)), 80) is None
    assert fits(need(Size(4e9), {}, Machine(1, 1)), 48) is False


@pytest.mark.parametrize(
    ("names", "gigabytes"),
    [(["H100", "H200"], 80), (["A100 40GB"], 40), (["NVIDIA A100 80GB PCIe"], 80), (["RTX4090"], 24), (["X99"], None)],
)
def test_memory_of_the_smallest_gpu_that_may_be_rented(names, gigabytes):
    assert least_memory_gb(names) == gigabytes
