"""Runs inside `ray start` (RAY_START_HOOK) and changes what has no public option.

The Ray client server takes a fixed port, so a second head on the same machine could not start; the autoscaler's
monitor costs a process and more than a second of the start. A worker on loopback, which is the second node of an
emulated cluster, is refused by Ray together with every other worker of a Ray that is kept on loopback
(`settings.ray_environment`): only here, in this one process, that is let through.
"""

from typing import Any

LOOPBACK = "127.0.0.1"


def apply(params: Any, head: bool) -> None:
    """Change Ray's start parameters (ray._private.parameter.RayParams) in place."""
    if head:
        params.ray_client_server_port = None
        params.no_monitor = True
    elif params.node_ip_address == LOOPBACK:
        _let_join_on_loopback()


def _let_join_on_loopback() -> None:
    """Switch off the refusal, and the rewriting of the head's 127.0.0.1 that comes with it (Ray 2.60)."""
    from ray._private import ray_constants, services

    ray_constants.ENABLE_RAY_CLUSTER = True
    services.resolve_ip_for_localhost = lambda host: host
