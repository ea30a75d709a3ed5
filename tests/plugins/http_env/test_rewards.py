from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from plugins.http_env.rewards import normalise
from plugins.http_env.transcript import make_harmless


@dataclass
class Scored:
    reward: float
    group_index: int | None
    remove_sample: bool = False

    def get_reward_value(self, args: Any) -> float:
        return self.reward


def args(**more: Any) -> SimpleNamespace:
    values = {"advantage_estimator": "grpo", "rewards_normalization": True, "grpo_std_normalization": False}
    return SimpleNamespace(**(values | {"n_samples_per_prompt": 2} | more))


def test_a_dropped_sample_moves_neither_its_group_nor_the_logged_mean() -> None:
    samples = [Scored(1.0, 0), Scored(0.5, 0), Scored(0.0, 0, True), Scored(0.2, 1), Scored(0.4, 1)]
    raw, rewards = normalise(args(), samples)
    assert raw == pytest.approx([1.0, 0.5, 0.525, 0.2, 0.4])
    assert sum(raw) / 5 == pytest.approx(0.525)
    assert rewards == pytest.approx([0.25, -0.25, 0.0, -0.1, 0.1])


def test_scaling_and_groups_by_order_are_as_in_slime() -> None:
    samples = [Scored(1.0, None), Scored(0.0, None), Scored(3.0, None), Scored(3.0, None)]
    _, rewards = normalise(args(grpo_std_normalization=True), samples)
    assert rewards == pytest.approx([0.70710, -0.70710, 0.0, 0.0], abs=1e-4)
    _, plain = normalise(args(advantage_estimator="ppo"), samples)
    assert plain == [1.0, 0.0, 3.0, 3.0]


def test_a_batch_of_dropped_samples_has_no_advantage_at_all() -> None:
    raw, rewards = normalise(args(), [Scored(0.0, 0, True)] * 4)
    assert raw == rewards == [0.0] * 4


def test_a_harmless_sample_has_what_the_whole_batch_must_have() -> None:
    options = SimpleNamespace(rollout_top_p=0.9, use_rollout_routing_replay=True, num_layers=2, moe_router_topk=3)
    sample = SimpleNamespace()
    make_harmless(options, sample)
    assert (sample.rollout_top_p_token_ids, sample.rollout_top_p_token_offsets) == ([], [0, 0])
    assert sample.rollout_routed_experts == [[[0, 0, 0], [0, 0, 0]]]
    assert len(sample.rollout_routed_experts) == len(sample.tokens) - 1
