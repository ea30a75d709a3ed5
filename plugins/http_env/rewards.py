"""Group normalisation that leaves dropped samples out.

    --custom-reward-post-process-path plugins.http_env.rewards.normalise     (slime)

slime's own (slime/ray/rollout.py, _post_process_rewards) counts a removed sample's placeholder 0.0 in its group's
mean, so a failing environment would lower the baseline of its neighbours. Here a dropped sample counts nowhere and
its advantage is 0.
"""

from collections import defaultdict
from statistics import fmean, stdev
from typing import Any

_GROUPED = ("grpo", "gspo", "cispo", "reinforce_plus_plus_baseline")
_SCALED = ("grpo", "gspo", "cispo")


def normalise(args: Any, samples: list[Any]) -> tuple[list[float], list[float]]:
    """Raw rewards (for the log) and rewards (for training), one each per sample, in order.

    The raw reward shown for a dropped sample is the mean of those that were scored, so that the logged mean is theirs.
    """
    scored = [float(sample.get_reward_value(args)) for sample in samples if not sample.remove_sample]
    mean = fmean(scored) if scored else 0.0
    raw = [mean if sample.remove_sample else float(sample.get_reward_value(args)) for sample in samples]
    if args.advantage_estimator not in _GROUPED or not args.rewards_normalization:
        return raw, [0.0 if sample.remove_sample else value for sample, value in zip(samples, raw, strict=True)]
    scale = args.advantage_estimator in _SCALED and args.grpo_std_normalization
    rewards = [0.0] * len(samples)
    for members in _groups(args, samples):
        values = [raw[index] for index in members]
        middle = fmean(values)
        spread = stdev(values) + 1e-6 if scale and len(values) > 1 else 1.0
        for index, value in zip(members, values, strict=True):
            rewards[index] = (value - middle) / spread
    return raw, rewards


def _groups(args: Any, samples: list[Any]) -> list[list[int]]:
    """Places of the samples that count, group by group; without a group index, by their order."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        if not sample.remove_sample:
            group = sample.group_index
            groups[index // args.n_samples_per_prompt if group is None else group].append(index)
    return list(groups.values())
