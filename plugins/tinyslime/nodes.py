"""A hold on every node of a cluster, so that the stand-in fails as slime would when one of them is lost.

slime's ranks on all nodes meet in every step. The stand-in computes on one, and with `--actor-num-nodes` more than 1 it
keeps an actor on each node of the pod's Ray and calls all of them before each rollout is trained on. They compute
nothing: the results are those of one node, bit for bit. Ray is imported for that only.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from plugins.errors import ControlPlaneError
from plugins.tinyslime import log

PLACED_S = 60.0


class Held(Protocol):
    """The nodes of a run."""

    def meet(self, rollout_id: int) -> None:
        """Call every node and wait for all of them. Raises what Ray raises when one is lost."""


class _OneNode:
    def meet(self, rollout_id: int) -> None:
        """There is nobody to meet."""


class _Nodes:
    def __init__(self, ray: Any, actors: list[Any]) -> None:
        self._ray, self._actors = ray, actors

    def meet(self, rollout_id: int) -> None:
        """See `Held`."""
        said = self._ray.get([actor.meet.remote(rollout_id) for actor in self._actors])
        assert said == [rollout_id] * len(self._actors)


@contextmanager
def held(args: Namespace) -> Iterator[Held]:
    """Hold the nodes that the flags ask for while the block runs. Raises ControlPlaneError without room on each."""
    count = int(getattr(args, "actor_num_nodes", 1))
    if count == 1:
        yield _OneNode()
        return
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    try:
        group = placement_group([{"CPU": 1}] * count, strategy="STRICT_SPREAD")
        if not group.wait(PLACED_S):
            raise ControlPlaneError(f"Ray has no CPU free on each of {count} nodes within {PLACED_S:.0f} s")
        kind = ray.remote(num_cpus=1)(_Rank)
        actors = [
            kind.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, index)).remote()
            for index in range(count)
        ]
        nodes = ray.get([actor.node.remote() for actor in actors])
        log.say(f"holding {len(set(nodes))} nodes")
        yield _Nodes(ray, actors)
    finally:
        ray.shutdown()


class _Rank:
    """What is held on a node."""

    def node(self) -> str:
        """Ray's id of the node this is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def meet(self, rollout_id: int) -> int:
        """Answer, which shows that the node lives."""
        return rollout_id
