"""When a Prefect task is worth another try: only when something outside did not answer."""

from typing import Any

from plugins.errors import ControlPlaneError


def outside_failed(_task: Any, _task_run: Any, state: Any) -> bool:
    """Retry only what a short wait can mend; a lost pod or a wrong recipe stays what it is."""
    return isinstance(state.result(raise_on_failure=False), ControlPlaneError)
