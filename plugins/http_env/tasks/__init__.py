"""The tasks an environment server can serve. A new environment is a new file here and one line in `create`.

A task opens an episode for each session; the episode judges the actions. Both may be slow (a browser, a container):
they are async, and the server around them keeps deadlines, retries and expiry.
"""

from typing import Protocol

from plugins.errors import UserError
from plugins.http_env.protocol import Problem, Turn

NAMES = ("arithmetic", "answer")


class Episode(Protocol):
    """One try at one problem. `step` is never called twice at the same time, nor after a turn that was done."""

    async def step(self, action: str) -> Turn:
        """Take the model's text and say what came of it. A turn with `done` carries a reward."""
        ...

    async def close(self) -> None:
        """Let go of what the episode holds. Called exactly once, at the end, expiry or shutdown."""
        ...


class Task(Protocol):
    """A kind of problem."""

    async def start(self, problem: Problem) -> tuple[Episode, Turn]:
        """Open an episode. The turn's observation is what the model is told besides the prompt, if anything.

        Raises EnvError for a problem this task cannot pose or judge.
        """
        ...


def create(name: str) -> Task:
    """The task called `name`; raises UserError listing the known ones."""
    if name == "arithmetic":
        from plugins.http_env.tasks.arithmetic import Arithmetic

        return Arithmetic()
    if name == "answer":
        from plugins.http_env.tasks.answer import Answer

        return Answer()
    raise UserError(f"no task is called {name!r}; there are: {', '.join(NAMES)}")
