"""Runs inside `ray start` (RAY_START_HOOK) and leaves out what one pod does not need.

The Ray client server takes a fixed port, so a second head on the same machine could not start; the autoscaler's
monitor costs a process and more than a second of the start. Neither has a public option to switch it off.
"""

from typing import Any


def apply(params: Any, head: bool) -> None:
    """Change Ray's start parameters (ray._private.parameter.RayParams) in place."""
    if head:
        params.ray_client_server_port = None
        params.no_monitor = True
