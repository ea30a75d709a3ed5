"""What slime, Megatron or SGLang would refuse, wait for or get wrong is found from the flags, with its key."""

import pytest

from plugins.errors import UserError
from plugins.slime.cross_checks import advice, check_flags, fill_batches
from plugins.slime.defaults import Machine, stage_defaults

KEYS = {
    "global-batch-size": "rollout.global_batch_size",
    "rollout-batch-size": "rollout.batch_size",
    "n-samples-per-prompt": "rollout.n_samples",
    "tensor-model-parallel-size": "parallelism.tensor",
    "rollout-num-gpus-per-engine": "engine.gpus_per_engine",
    "eval-interval": "evaluation.interval",
}
SHAPE = {"num-layers": 36, "num-attention-heads": 32, "num-query-groups": 8}


def command(stage, given, machine):
    flags = stage_defaults(stage, given, machine) | given
    fill_batches(flags, stage, KEYS)
    return flags


def check(stage="rl", machine=None, shape=SHAPE, asynchronous=False, **given):
    machine = machine or Machine(1, 8)
    flags = command(stage, {name.replace("_", "-"): value for name, value in given.items()}, machine)
    check_flags(flags, stage, machine, shape, KEYS, asynchronous=asynchronous)
    return flags


@pytest.mark.parametrize("stage", ["sft", "rl"])
@pytest.mark.parametrize("machine", [Machine(1, 1), Machine(1, 8), Machine(2, 8)])
def test_defaults_fit_every_machine_that_divides_the_batch(stage, machine):
    flags = check(stage, machine)
    assert flags["actor-num-nodes"] * flags["actor-num-gpus-per-node"] == machine.gpus
    assert flags["num-gpus-per-node"] == machine.gpus_per_node


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"global_batch_size": 100},
            "rollout.batch_size 32 * rollout.n_samples 8 = 256, but rollout.global_batch_size",
        ),
        ({"n_samples_per_prompt": 1}, "rollout.n_samples: grpo compares the answers to one prompt"),
        ({"tensor_model_parallel_size": 3}, "parallelism.tensor"),
        ({"tensor_model_parallel_size": 16}, "does not divide the 8 GPUs that train"),
        ({"pipeline_model_parallel_size": 8}, "8 does not divide the model's num-layers 36"),
        ({"rollout_num_gpus_per_engine": 3}, "engine.gpus_per_engine: 3 does not divide the 8 GPUs that generate"),
        ({"actor_num_gpus_per_node": 16}, "slime would wait for them for ever"),
        ({"colocate": False}, "say how many GPUs generate"),
        ({"rollout_num_gpus": 4, "colocate": True}, "the same GPUs train and generate"),
        ({"rollout_num_gpus": 8}, "none is left to train"),
        ({"expert_model_parallel_size": 2}, "the model has no experts"),
        ({"eval_interval": 20}, "evaluation.interval: missing data"),
        ({"eval_prompt_data": ["a", "b"]}, "is never used without evaluation.interval"),
        ({"rm_type": "math", "label_key": False}, "label-key: missing; the reward math"),
        ({"rollout_max_context_len": 100}, "do not fit into"),
        ({"over_sampling_batch_size": 8}, "8 is less than rollout.batch_size 32"),
        ({"min_lr": 1.0}, "min-lr: 1 is more than"),
        ({"lr_warmup_fraction": 0.1, "lr_warmup_iters": 5}, "not both"),
    ],
)
def test_what_cannot_work_is_refused_with_its_key(given, said):
    with pytest.raises(UserError) as refused:
        check(**given)
    assert said in str(refused.value)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(UserError) as refused:
        check(eval_interval=5, min_lr=1.0, n_samples_per_prompt=1)
    assert len(str(refused.value).splitlines()) == 3


def test_a_batch_that_the_replicas_cannot_share_is_refused():
    with pytest.raises(UserError, match=r"rollout\.global_batch_size: 12 is not a multiple of the 8 model replicas"):
        check(rollout_batch_size=3, n_samples_per_prompt=4)


def test_asynchronous_rl_needs_gpus_of_its_own():
    with pytest.raises(UserError, match=r"rollout\.asynchronous: needs GPUs of its own"):
        check(asynchronous=True)
    flags = check(asynchronous=True, rollout_num_gpus=4)
    assert flags["actor-num-gpus-per-node"] == 4 and "colocate" not in flags


def test_supervised_training_never_shares_its_gpus_with_engines():
    with pytest.raises(UserError, match="sft generates nothing, and its script"):
        check("sft", asynchronous=True, colocate=True)


def test_answers_are_compared_unless_that_is_switched_off():
    assert check(n_samples_per_prompt=1, disable_rewards_normalization=True)["advantage-estimator"] == "grpo"


def test_gpus_that_generate_are_taken_in_whole_nodes_from_a_cluster():
    flags = check(machine=Machine(2, 8), rollout_num_gpus=8)
    assert (flags["actor-num-nodes"], flags["actor-num-gpus-per-node"]) == (1, 8)
    with pytest.raises(UserError, match="leave 12 GPUs to train, no whole number of nodes"):
        check(machine=Machine(2, 8), rollout_num_gpus=4)


def test_tensor_parallel_stays_within_a_node_and_brings_sequence_parallel():
    assert check(tensor_model_parallel_size=2)["sequence-parallel"] is True
    with pytest.raises(UserError, match="reaches over nodes"):
        check(machine=Machine(2, 4), tensor_model_parallel_size=8)


def test_layers_may_be_uneven_when_the_recipe_says_how():
    check("sft", pipeline_model_parallel_size=8, decoder_first_pipeline_num_layers=1)


def test_the_stand_in_needs_no_gpus():
    flags = command("rl", {"actor-num-gpus-per-node": 64}, Machine(1, 1))
    check_flags(flags, "rl", None, {}, KEYS, asynchronous=False)


def test_advice_names_gpus_that_do_nothing_and_answers_longer_than_planned():
    flags = command("rl", {"actor-num-gpus-per-node": 4, "max-tokens-per-gpu": 2048}, Machine(1, 8))
    said = "\n".join(advice(flags, "rl", Machine(1, 8), KEYS))
    assert "4 of 8 GPUs are paid for and not used" in said
    assert "an answer of 8192 tokens" in said and "2048 tokens planned" in said
    assert not advice(command("rl", {}, Machine(1, 8)), "rl", Machine(1, 8), KEYS)
