"""What slime, Megatron or SGLang would refuse, hang on or quietly get wrong, found from the flags before renting.

Each rule names the key to change. `flags` are those of the whole command line, `shape` those of the model's
architecture (empty where they are not known yet), `keys` flag to recipe key. Sources: slime.md 1.3, 2.1, 5.5, 6;
Megatron-LM megatron/training/arguments.py (validate_args) at the commit slime pins.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from plugins.errors import UserError
from plugins.slime.defaults import Machine, StageName
from plugins.slime.flags import Value

Flags = Mapping[str, Value]
REWARDS = ("math", "deepscaler", "dapo", "f1", "gpqa", "ifbench", "random", "remote_rm")
"""slime's own rewards, each also with `boxed_` before it (slime/rollout/rm_hub/__init__.py:66-94)."""
_COMPARING = ("grpo", "gspo", "cispo", "reinforce_plus_plus_baseline")


def check_flags(
    flags: Flags,
    stage: StageName,
    machine: Machine | None,
    shape: Flags,
    keys: Mapping[str, str],
    *,
    asynchronous: bool,
    environment: bool = False,
) -> None:
    """Raise one UserError with a line for each rule that is broken. machine None: GPUs do not matter (stand-in)."""
    look = _Look(flags, shape, keys)
    problems = [*_rollouts(look, stage), *_rewards(look, stage, environment), *_schedule(look), *_evaluation(look)]
    if machine is not None:
        problems += [
            *_gpus(look, stage, machine, asynchronous),
            *_sizes(look, machine),
            *_engines(look, stage),
        ]
    if problems:
        raise UserError("\n".join(problems))


def advice(flags: Flags, stage: StageName, machine: Machine, keys: Mapping[str, str]) -> list[str]:
    """What is allowed and probably not meant, a line each."""
    look = _Look(flags, {}, keys)
    return [*_waste(look, stage, machine), *_long_answers(look, stage)]


def fill_batches(flags: dict[str, Value], stage: StageName, keys: Mapping[str, str]) -> None:
    """rollout_batch_size * n_samples_per_prompt == global_batch_size * num_steps_per_rollout; fills in the last two.

    Raises UserError when the four do not fit (slime's quick start, "Alignment of data sampling and training").
    """
    look = _Look(flags, {}, keys)
    batch, samples = look.count("rollout-batch-size"), look.count("n-samples-per-prompt")
    if stage == "sft" and samples != 1:
        raise UserError(f"{look.key('n-samples-per-prompt')}: must be 1 for SFT, not {samples}")
    steps = look.count("num-steps-per-rollout")
    given = flags.get("global-batch-size") is not None
    size = look.count("global-batch-size") if given else batch * samples // steps
    if given and flags.get("num-steps-per-rollout") is None:
        steps = max(1, batch * samples // size)
    if size * steps != batch * samples:
        names = ("rollout-batch-size", "n-samples-per-prompt", "global-batch-size", "num-steps-per-rollout")
        a, b, c, d = (look.key(name) for name in names)
        raise UserError(
            f"batch sizes do not add up: {a} {batch} * {b} {samples} = {batch * samples}, "
            f"but {c} {size} * {d} {steps} = {size * steps}; change one of the four"
        )
    flags["global-batch-size"], flags["num-steps-per-rollout"] = size, steps


class _Look:
    """Reads flags, and writes them as the recipe's keys."""

    def __init__(self, flags: Flags, shape: Flags, keys: Mapping[str, str]) -> None:
        self.flags, self.shape, self._keys = flags, shape, keys

    def key(self, name: str) -> str:
        return self._keys.get(name, f"extra_args.{name}")

    def on(self, name: str) -> bool:
        value = self.flags.get(name)
        return value is not None and value is not False

    def count(self, name: str, default: int = 1) -> int:
        value = self.flags.get(name)
        if value is None or value is False:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{self.key(name)}: must be a whole number from 1 on, not {value!r}")
        return value

    def size(self, name: str) -> int | None:
        value: Any = self.shape.get(name, self.flags.get(name))
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def _rollouts(look: _Look, stage: StageName) -> Iterator[str]:
    if stage == "rl" and not look.on("rollout-max-response-len"):
        yield f"{look.key('rollout-max-response-len')}: missing; without it answers have no limit"
    longest, context = look.count("rollout-max-response-len", 0), look.count("rollout-max-context-len", 0)
    if context and longest > context:
        key = look.key("rollout-max-response-len")
        yield f"{key}: {longest} tokens do not fit into {look.key('rollout-max-context-len')} {context}"
    batch, over = look.count("rollout-batch-size"), look.count("over-sampling-batch-size", 0)
    if over and over < batch:
        yield f"{look.key('over-sampling-batch-size')}: {over} is less than {look.key('rollout-batch-size')} {batch}"
    engine = look.count("sglang-context-length", 0)
    if engine and longest >= engine:
        key = look.key("sglang-context-length")
        yield f"{key}: {engine} tokens leave no room for a prompt beside an answer of {longest}"


def _rewards(look: _Look, stage: StageName, environment: bool) -> Iterator[str]:
    if stage == "sft":
        return
    reward, advantage = look.flags.get("rm-type"), look.flags.get("advantage-estimator")
    if advantage == "ppo":
        yield (
            f"{look.key('advantage-estimator')}: ppo trains a critic, which slime saves over the actor's checkpoint "
            "(slime.md 2.2); take grpo, gspo, cispo or reinforce_plus_plus"
        )
    alone = look.count("n-samples-per-prompt") == 1 and not look.on("disable-rewards-normalization")
    if advantage in _COMPARING and alone:  # slime/ray/rollout.py:691
        yield (
            f"{look.key('n-samples-per-prompt')}: {advantage} compares the answers to one prompt, and with 1 answer "
            "every advantage is 0: nothing would be learnt; take 2 at least"
        )
    if environment and (look.on("rm-type") or look.on("custom-rm-path")):
        key = look.key("rm-type" if look.on("rm-type") else "custom-rm-path")
        yield f"{key}: `environment` gives the reward already; leave one of the two out"
    if isinstance(reward, str):
        if reward.removeprefix("boxed_") not in REWARDS:
            near = difflib.get_close_matches(reward, REWARDS, n=2)
            known = f"did you mean {' or '.join(near)}?" if near else f"slime has {', '.join(REWARDS)}"
            yield f"{look.key('rm-type')}: slime has no reward {reward!r}; {known}"
        if reward == "remote_rm" and not look.on("rm-url"):
            yield f"{look.key('rm-url')}: missing; the reward remote_rm asks a server at that URL"
        if not look.on("label-key"):
            yield f"{look.key('label-key')}: missing; the reward {reward} compares answers with it"
    low, high = look.flags.get("eps-clip"), look.flags.get("eps-clip-high")
    if isinstance(low, int | float) and isinstance(high, int | float) and high < low:
        yield f"{look.key('eps-clip-high')}: {high:g} is less than {look.key('eps-clip')} {low:g}"


def _long_answers(look: _Look, stage: StageName) -> Iterator[str]:
    longest = look.count("rollout-max-response-len", 0)
    tokens = look.count("max-tokens-per-gpu", 0) * look.count("context-parallel-size")
    if look.on("use-dynamic-batch-size") and stage == "rl" and tokens and longest > tokens:
        yield (
            f"{look.key('max-tokens-per-gpu')}: an answer of {longest} tokens ({look.key('rollout-max-response-len')}) "
            f"is longer than the {tokens} tokens planned for a GPU and may run out of memory; raise it, raise "
            f"{look.key('context-parallel-size')}, or allow shorter answers"
        )


def _waste(look: _Look, stage: StageName, machine: Machine) -> Iterator[str]:
    training = look.count("actor-num-nodes") * look.count("actor-num-gpus-per-node")
    generating = look.count("rollout-num-gpus", 0) if stage == "rl" and not look.on("colocate") else 0
    if (idle := machine.gpus - training - generating) > 0:
        yield (
            f"{look.key('actor-num-gpus-per-node')}: {idle} of {machine} are paid for and not used; use them or lower "
            "pod.gpu_count"
        )


def _schedule(look: _Look) -> Iterator[str]:
    if look.on("lr-warmup-fraction") and look.on("lr-warmup-iters"):
        yield f"{look.key('lr-warmup-iters')}: give it or {look.key('lr-warmup-fraction')}, not both (Megatron refuses)"
    lr, least = look.flags.get("lr"), look.flags.get("min-lr")
    if isinstance(lr, int | float) and lr <= 0:
        yield f"{look.key('lr')}: must be more than 0, not {lr:g}"
    if isinstance(lr, int | float) and isinstance(least, int | float) and least > lr:
        yield f"{look.key('min-lr')}: {least:g} is more than {look.key('lr')} {lr:g} (Megatron refuses)"
    warm, total = look.flags.get("lr-warmup-iters"), look.flags.get("num-rollout")
    if isinstance(warm, int) and isinstance(total, int) and not isinstance(warm, bool) and warm:
        steps = look.count("lr-decay-iters", total * look.count("num-steps-per-rollout"))
        if warm >= steps:
            key = look.key("lr-warmup-iters")
            yield f"{key}: {warm} steps of warm-up are all of the schedule's {steps} (Megatron refuses)"


def _evaluation(look: _Look) -> Iterator[str]:
    if look.on("eval-interval") and not (look.on("eval-prompt-data") or look.on("eval-config")):
        yield f"{look.key('eval-interval')}: missing data: give evaluation.data, a name and a file (slime refuses)"
    if look.on("eval-prompt-data") and not look.on("eval-interval"):
        yield f"{look.key('eval-prompt-data')}: is never used without {look.key('eval-interval')}"


def _gpus(look: _Look, stage: StageName, machine: Machine, asynchronous: bool) -> Iterator[str]:
    """slime waits for ever for GPUs that are not there (slime.md 5.1)."""
    training = look.count("actor-num-nodes") * look.count("actor-num-gpus-per-node")
    separate = stage == "rl" and not look.on("colocate")
    generating = look.count("rollout-num-gpus", 0) if separate else 0
    if look.on("colocate") and look.on("rollout-num-gpus") and look.count("rollout-num-gpus") != training:
        yield (
            f"{look.key('rollout-num-gpus')}: with {look.key('colocate')} the same GPUs train and generate; "
            "leave one of the two out"
        )
    if separate and not generating:
        yield f"{look.key('rollout-num-gpus')}: missing; without {look.key('colocate')} say how many GPUs generate"
    if training + generating > machine.gpus:
        each = look.key("actor-num-gpus-per-node")
        said = f"{training} to train ({each})" + (f" and {generating} to generate" if generating else "")
        yield f"{each}: {said} are more than the pod has, {machine} (pod.gpu_count); slime would wait for them for ever"
    if look.count("actor-num-gpus-per-node") > machine.gpus_per_node:
        yield f"{look.key('actor-num-gpus-per-node')}: a node has {machine.gpus_per_node} GPUs (pod.gpu_count)"
    if stage == "sft" and look.on("colocate"):
        yield f"{look.key('colocate')}: sft generates nothing, and its script (train_async.py) refuses it; leave it out"
    elif asynchronous and look.on("colocate"):
        yield (
            "rollout.asynchronous: needs GPUs of its own to generate (train_async.py refuses colocate); set "
            "parallelism.rollout_gpus"
        )


def _sizes(look: _Look, machine: Machine) -> Iterator[str]:
    tensor, pipeline = look.count("tensor-model-parallel-size"), look.count("pipeline-model-parallel-size")
    context, expert = look.count("context-parallel-size"), look.count("expert-model-parallel-size")
    world = look.count("actor-num-nodes") * look.count("actor-num-gpus-per-node")
    parts = tensor * pipeline * context
    names = ("tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size")
    said = " * ".join(look.key(name) for name in names)
    if world % parts:
        yield f"{said} = {parts} does not divide the {world} GPUs that train"
        return
    replicas = world // parts
    size = look.count("global-batch-size")
    if size % replicas:
        key = look.key("global-batch-size")
        yield f"{key}: {size} is not a multiple of the {replicas} model replicas ({world} GPUs / {parts})"
    if tensor > machine.gpus_per_node:
        yield f"{look.key(names[0])}: {tensor} reaches over nodes of {machine.gpus_per_node} GPUs; keep it within one"
    for name, by, value in (
        ("num-attention-heads", names[0], tensor),
        ("num-query-groups", names[0], tensor),
        ("num-layers", names[1], pipeline),
        ("num-experts", "expert-model-parallel-size", expert),
    ):
        count = look.size(name)
        grouped = name != "num-query-groups" or tensor <= (count or tensor)
        if count and value > 1 and count % value and grouped and not _uneven(look, name):
            yield f"{look.key(by)}: {value} does not divide the model's {name} {count}"
    if expert > 1 and not look.size("num-experts") and look.shape:
        yield f"{look.key('expert-model-parallel-size')}: the model has no experts"


def _uneven(look: _Look, name: str) -> bool:
    ways = ("decoder-first-pipeline-num-layers", "decoder-last-pipeline-num-layers", "pipeline-model-parallel-layout")
    return name == "num-layers" and any(look.on(way) for way in ways)


def _engines(look: _Look, stage: StageName) -> Iterator[str]:
    if stage == "sft":
        return
    training = look.count("actor-num-nodes") * look.count("actor-num-gpus-per-node")
    each = look.count("rollout-num-gpus-per-engine")
    gpus = training if look.on("colocate") else look.count("rollout-num-gpus", training)
    if gpus % each:
        yield f"{look.key('rollout-num-gpus-per-engine')}: {each} does not divide the {gpus} GPUs that generate"
    heads = look.size("num-attention-heads")
    if heads and heads % each:
        yield f"{look.key('rollout-num-gpus-per-engine')}: {each} does not divide the model's {heads} attention heads"
