"""The store in a model repository on the Hugging Face Hub: `hub://user/repo[@branch][/prefix]`.

The repository is private when we make it. What is stored is as `objects.py` says; how a change becomes one commit, and
why we make fewer than a hundred of them an hour, is said in `plugins/checkpoints/hub/`. Deleting a checkpoint removes
its files from the branch; the history keeps them, and their storage, until the user has it squashed (`squash_history`).

Nothing of `huggingface_hub` is imported before a store is opened.
"""

import time
from collections.abc import Callable

from plugins.checkpoints.hub.pace import Pace
from plugins.checkpoints.hub.place import HubPlace
from plugins.checkpoints.stores.objects import ObjectStore

__all__ = ["open_hub", "squash_history"]


def open_hub(
    uri: str,
    *,
    token: str | None = None,
    pace: Pace | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> ObjectStore:
    """The store of a URI. Nothing is asked or made yet; `check` makes the repository and the branch.

    token: None for what `huggingface_hub` finds. pace, sleep: for tests.

    Raises UserError when the URI is none.
    """
    place = HubPlace.of(uri)
    from plugins.checkpoints.hub.backend import HubBackend
    from plugins.checkpoints.hub.repo import HubRepo

    return ObjectStore(HubBackend(HubRepo(place, token=token, pace=pace, sleep=sleep)), sleep=sleep)


def squash_history(uri: str, *, token: str | None = None) -> None:
    """Forget every commit of the branch but the newest, so that the Hub can free the storage of what was deleted.

    Cannot be undone: revisions that were noted somewhere (milestones) are gone. Call it when nobody writes.
    """
    place = HubPlace.of(uri)
    from plugins.checkpoints.hub.repo import HubRepo
    from plugins.checkpoints.hub.writing import HubWriter

    HubWriter(HubRepo(place, token=token)).squash_history()
