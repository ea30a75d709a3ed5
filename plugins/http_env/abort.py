"""Noticing that the trainer wants its samples back: slime sets a flag, asks its engines to stop, and then waits for
every sample without a time limit (slime/rollout/sglang_rollout.py, abort), so whatever we wait for must be left at
once.
"""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
POLL_S = 0.2


class Aborted(Exception):
    """The trainer called the sample back. Never leaves the adapter."""


class AbortFlag:
    """The trainer's flag: `aborted` of slime's GenerateState, or `args.rollout_aborted()` if a trainer gives that."""

    def __init__(self, args: Any) -> None:
        self._ask = getattr(args, "rollout_aborted", None)
        self._state = slime_state(args) if self._ask is None else None

    def __bool__(self) -> bool:
        return bool(self._ask()) if self._ask is not None else bool(getattr(self._state, "aborted", False))

    async def wait_for(self, work: "Coroutine[Any, Any, T] | asyncio.Task[T]", *, grace_s: float = 0) -> T:
        """The result of `work`; raises Aborted, and cancels it, when the flag is up for `grace_s` before it is done."""
        task = work if isinstance(work, asyncio.Task) else asyncio.create_task(work)
        try:
            while not self:
                done, _ = await asyncio.wait({task}, timeout=POLL_S)
                if done:
                    return task.result()
            await asyncio.wait({task}, timeout=grace_s)
            if task.done():
                return task.result()
            raise Aborted
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=1)


def slime_state(args: Any) -> Any:
    """slime's GenerateState when slime is the one that called us (then its module is loaded), None otherwise."""
    module = sys.modules.get("slime.rollout.sglang_rollout")
    return None if module is None else module.GenerateState(args)
